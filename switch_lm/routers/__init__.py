"""Which expert each token goes to, and whether there is room for it."""
