"""What a trained model's routers and experts do: `python -m switch_lm.inspect`."""
