"""Training loop, checkpoints and log."""
