"""Files of runs: written whole, found by name, locked; and checkpoints."""
