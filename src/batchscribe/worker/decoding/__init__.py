"""From an object's bytes to samples: what pieces of a recording lack, and a decoder in a sandbox."""
