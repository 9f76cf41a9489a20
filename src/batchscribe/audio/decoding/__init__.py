"""Turns an object's bytes into samples: repair of pieces, decoder process.

The interface is `audio/audio_decoder.py`.
"""
