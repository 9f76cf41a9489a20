"""What lies between an object's bytes and samples: what pieces of a recording lack, and the decoder.

`audio/audio_decoder.py` is its face.
"""
