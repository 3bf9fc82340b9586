"""Reports on runs: what won, by how much, at what cost, and whether that is resolved."""
