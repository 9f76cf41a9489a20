"""Templates of the units that batchscribe installs."""
