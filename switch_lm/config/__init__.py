"""The configuration: what each key is, which values it takes, and what a command line means. No torch."""
