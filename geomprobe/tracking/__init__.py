"""A sweep as a W&B run, and a view of a W&B project."""
