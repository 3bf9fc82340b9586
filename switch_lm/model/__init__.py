"""The language model: attention, experts, the Switch layer, losses."""
