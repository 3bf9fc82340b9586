"""The jobs of a sweep and its table."""
