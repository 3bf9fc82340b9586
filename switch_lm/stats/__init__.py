"""Statistics that commands share: means with their intervals."""
