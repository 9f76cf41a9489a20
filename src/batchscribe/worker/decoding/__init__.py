"""What lies between an object's bytes and samples: what pieces of a recording lack, and the decoder.

`worker/audio.py` is its face.
"""
