"""Benchmarks: what geomprobe costs, as ratios from one interleaved run."""
