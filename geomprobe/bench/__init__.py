"""Benchmarks: the cost of geomprobe relative to a model without a probe, measured in runs that alternate."""
