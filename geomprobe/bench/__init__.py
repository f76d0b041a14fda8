"""Benchmarks: the cost of geomprobe relative to the bare model, measured in interleaved runs."""
