"""Numerics in pure torch: rows, sums that add, factors and spectra. Knows no model, no hook and no file."""
