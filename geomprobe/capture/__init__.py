"""Capture: all hooks of geomprobe. It finds the decoder layers, and reports the hidden states of each forward to a listener."""
