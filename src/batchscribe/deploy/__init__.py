"""Templates of what `batchscribe install` writes."""
