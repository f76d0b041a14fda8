"""Models: loading them from a hub or a disk, and the small model that the demo trains."""
