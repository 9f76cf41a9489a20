"""Episodes with machines that each run creates: up to 20, of several types and markets."""
