"""Trains a Whisper that knows ten words, from synthetic speech, and writes it as CTranslate2 reads it.

A maintainer's tool: what it writes is committed as test data, and nothing of it is needed to use the package.
`tests/data/digits/README.md` has the command.
"""
