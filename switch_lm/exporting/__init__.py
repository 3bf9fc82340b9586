"""A trained model in a folder that other programs read."""
