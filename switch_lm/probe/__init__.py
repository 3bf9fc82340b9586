"""Tools that replay a trained model and intervene in it."""
