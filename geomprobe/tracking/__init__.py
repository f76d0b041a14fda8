"""Tracking: a sweep as a W&B run, and a saved view of a W&B project."""
