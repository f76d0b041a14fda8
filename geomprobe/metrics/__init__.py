"""Metrics: which accumulators each of them needs, and the scalars and curves that are computed from their states."""
