"""300 files of every container, codec, shape, join and damage: is all sound decoded, or its loss flagged?

The reference is the sound that the generator put in. If more than 0.5 s of it is not decoded, the file must
be flagged or refused. ffmpeg's command line is a second opinion: it joins and maps too little itself.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from batchscribe.audio.audio_decoder import AudioDecoder
from support.differential import COUNT, MISSING, SEED, Made, Outcome, corpus, decoded

RATE = 16_000
COLUMNS = (
    "files",
    "decoded",
    "of these flagged",
    "missing, flagged",
    "refused",
    "missing, NOT flagged",
    "ffmpeg has more",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    with AudioDecoder() as decoder, tempfile.TemporaryDirectory() as folder:
        rows = [row(decoder, made, Path(folder)) for made in corpus(options.files, options.seed)]
    show("by kind", rows, lambda made: made.form)
    show("by treatment", rows, lambda made: made.treatment)
    for made, counted in rows:
        if counted["missing, NOT flagged"]:
            print(f"NOT FLAGGED: {made.form}, {made.treatment}, {made.shape}")


def row(decoder: AudioDecoder, made: Made, folder: Path) -> tuple[Made, Counter[str]]:
    found = decoded(decoder, made)
    counted = Counter(["files", verdict(made, found)])
    counted["of these flagged"] += verdict(made, found) == "decoded" and found.is_flagged
    counted["ffmpeg has more"] += ffmpeg(made, folder) > found.seconds + MISSING
    return made, counted


def verdict(made: Made, found: Outcome) -> str:
    if found.refusal:
        return "refused"
    if made.seconds - found.seconds <= MISSING:
        return "decoded"
    return "missing, flagged" if found.is_flagged else "missing, NOT flagged"


def ffmpeg(made: Made, folder: Path) -> float:
    """Seconds that ffmpeg decodes; 0 if it is not installed, or fails."""
    if not shutil.which("ffmpeg"):
        return 0.0
    (file := folder / f"talk.{made.extension}").write_bytes(made.data)
    words = [
        "ffmpeg",
        "-v",
        "quiet",
        "-nostdin",
        "-i",
        str(file),
        "-ac",
        "1",
        "-ar",
        str(RATE),
        "-f",
        "s16le",
        "-",
    ]
    return len(subprocess.run(words, capture_output=True, check=False).stdout) / 2 / RATE


def show(title: str, rows: list[tuple[Made, Counter[str]]], kind_of: Callable[[Made], str]) -> None:
    kinds: dict[str, Counter[str]] = {}
    for made, counted in rows:
        kinds.setdefault(kind_of(made), Counter()).update(counted)
    kinds["all"] = sum((counted for _, counted in rows), Counter())
    print(f"\n{title:<22}" + "".join(f"{name:>{len(name) + 2}}" for name in COLUMNS))
    for kind, counted in kinds.items():
        print(f"{kind:<22}" + "".join(f"{counted[name]:>{len(name) + 2}}" for name in COLUMNS))


if __name__ == "__main__":
    main()
