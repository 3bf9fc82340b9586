"""Text from a trained model, character by character."""
