"""Many checkpoints on the same tokens, into records that outlive a crash."""
