"""Episodes with up to 20 created machines of several types and markets."""
