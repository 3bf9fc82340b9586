"""What happens around the steps of a run."""
