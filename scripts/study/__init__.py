"""Long experiments: a line per finished run in a committed file, and only what is missing is run."""
