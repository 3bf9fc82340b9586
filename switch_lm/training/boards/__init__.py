"""Where a run's figures are shown, beside metrics.jsonl. A board is one file here, or one in a plugin."""
