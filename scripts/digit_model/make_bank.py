"""Speaks the bank of speech that training draws from; flite and espeak-ng are installed."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import bank

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--phrases", type=int, default=3000)
    given = parser.parse_args()
    bank.make(given.path, seed=given.seed, phrases=given.phrases)
