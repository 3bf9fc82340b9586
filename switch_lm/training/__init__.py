"""A training run: the LightningModule, data, hardware, signals. The only home of Lightning."""
