"""Sweeps: measure many checkpoints on the same tokens, and write records that survive a crash."""
