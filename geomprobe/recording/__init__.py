"""Recording: collects the hidden states that the hooks report, and adds them to the states of the accumulators."""
