"""Speed, measured side by side in one run; figures are for reading, nothing passes or fails by them."""
