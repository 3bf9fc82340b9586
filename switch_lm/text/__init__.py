"""The training text: sources, vocabulary, splits and windows."""
