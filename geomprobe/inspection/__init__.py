"""Inspection of one text under one model: a table of all sites, and the Lasso, ridge and attention weights of each token."""
