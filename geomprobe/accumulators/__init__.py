"""Sums that add: what each accumulator keeps of the rows it has seen."""
