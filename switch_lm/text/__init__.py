"""The text a model is trained on: sources, vocabulary, splits and windows."""
