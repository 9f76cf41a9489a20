"""What a vocabulary is worth: recall of its terms, word error rate, false terms, and time.

`python -m bench.vocabulary [--model tiny.en] [--names 20] [--sentences 60]`. flite speaks sentences with rare
names, and as many without; each is transcribed with and without the names in the prompt.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence

import jiwer
from msgspec import structs

from batchscribe.adapters.engines.whisper.engine import FACTORY
from batchscribe.cli.compare import split_words
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.speech import Window
from bench.flite import Flite

PARTS = ("bran", "clo", "dri", "fen", "gar", "hul", "jor", "kel", "lom", "nad", "ost", "quin", "rav", "tesk")
WITH = ("please send the report to {0}", "{0} and {1} meet at noon", "the {0} project is late", "ask {0} now")
WITHOUT = (
    "please send the report today",
    "we will meet at noon",
    "the new project is late",
    "ask them about it",
)


def make_names(count: int, rng: random.Random) -> list[str]:
    pairs = [f"{one}{two}".title() for one in PARTS for two in PARTS if one != two]
    return rng.sample(pairs, count)


def speak(texts: Sequence[str]) -> list[Window]:
    voice = Flite("slt")
    return [Window(id=at, start=0.0, audio=voice.speak(text)[0]) for at, text in enumerate(texts)]


def measure(spec: EngineSpec, windows: Sequence[Window], texts: Sequence[str], names: Sequence[str]) -> str:
    engine = FACTORY.load(spec)
    begun = time.process_time()
    found = {result.window: result for window in windows for result in engine.transcribe([window])}
    seconds = time.process_time() - begun
    heard = [
        " ".join(split_words(" ".join(part.text for part in found[window.id].segments))) for window in windows
    ]
    wanted = [" ".join(split_words(text)) for text in texts]
    known = {name.lower() for name in names}
    said = [[word for word in text.split() if word in known] for text in wanted]
    hits = sum(word in text.split() for words, text in zip(said, heard, strict=True) for word in words)
    extra = sum(
        word in known and word not in words
        for words, text in zip(said, heard, strict=True)
        for word in text.split()
    )
    total = sum(map(len, said))
    return (
        f"recall {hits}/{total}, false terms {extra}, WER {jiwer.wer(wanted, heard):.3f}, CPU {seconds:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--names", type=int, default=20)
    parser.add_argument("--sentences", type=int, default=60)
    options = parser.parse_args()
    rng = random.Random(7)
    names = make_names(options.names, rng)
    texts = [rng.choice(WITH).format(*rng.sample(names, 2)) for _ in range(options.sentences)]
    plain = [rng.choice(WITHOUT) for _ in range(options.sentences)]
    spec = EngineSpec(engine="faster-whisper", model=options.model, device="cpu", language="en")
    for title, chosen in (("with names", texts), ("without names", plain)):
        windows = speak(chosen)
        for label, vocabulary in (("no vocabulary", ()), ("vocabulary", tuple(names))):
            result = measure(structs.replace(spec, vocabulary=vocabulary), windows, chosen, names)
            print(f"{title}, {label}: {result}")


if __name__ == "__main__":
    main()
