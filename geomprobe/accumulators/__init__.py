"""Accumulators: sums over hidden states, which can be added across batches, ranks and sessions."""
