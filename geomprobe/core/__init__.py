"""Formulas in pure torch: rows, symmetric products, factors and spectra. They depend on no model, hook or file."""
