"""From an object's bytes to samples: repair of pieces of a recording, and the decoder process.

The interface is `audio/audio_decoder.py`.
"""
