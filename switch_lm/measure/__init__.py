"""What models and runs are measured by: losses, loads, health of routers, computation."""
