"""What the commands share: arguments, messages, exit codes, and how a trained model is found."""
