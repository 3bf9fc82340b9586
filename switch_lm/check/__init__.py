"""The certificate: what a model's routing does, measured on real text, against what its rules promise."""
