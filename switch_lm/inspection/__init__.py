"""What `inspect` does: shows what the experts of a model do."""
