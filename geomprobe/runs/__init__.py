"""Sweeps over checkpoints: where they come from, what they read, and the records they leave."""
