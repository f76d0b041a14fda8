"""Named metrics: which accumulators each needs, and the scalars and curves it reads off them."""
