"""Loading models, and the small one that the demo trains."""
