"""Text written with a trained model, character by character."""
