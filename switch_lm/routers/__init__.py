"""Routers: which experts each token selects, and which of them have a free capacity slot for it."""
