"""Statistics: intervals, clusters, information."""
