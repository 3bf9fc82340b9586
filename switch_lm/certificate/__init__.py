"""What `check` does: measures a model against what its rules promise."""
