"""Word times of each engine that can run here against those of a synthesiser.

`python -m bench.times [--words 300] [--voice rms]`: flite speaks sentences and reports where each word begins
and ends. Each engine with each of its models that is here transcribes them through the real worker, on the
CPU; compared are the words that it recognises. Parakeet's models cannot be had everywhere: its rows take the
synthesiser's own times as those of the tokens, each in the frame of 80 ms in which its sound begins, so they
show what the frames and the estimate of the ends cost, and not how the model places its tokens.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jiwer
import numpy as np
import structlog

from batchscribe.adapters.engines.parakeet.words import Token, build_segments
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.core.text.transcripts import Word
from batchscribe.wiring.engines import engine_factory, engine_reports
from bench.bucket import Bucket
from bench.flite import Flite, Spoken
from bench.gpu import hardware
from bench.speech import Samples, in_a_room, sentences
from bench.words import words
from support.audio import wav

FRAME = 0.08
"""Seconds of one step of Parakeet's encoder."""
LONG_PAUSE = 0.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--voice", default="rms", help="one of flite's at 16 kHz: rms, slt")
    wanted = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    audio, spoken = speak(wanted.words, wanted.voice)
    print(
        f"{hardware()}, voice {wanted.voice}, {len(spoken)} words in {len(audio) / SAMPLE_RATE / 60:.1f} min"
    )
    print(f"{'':<40}{'words':>6}  {'begin, ms:':<20}{'end, ms:':<20}")
    print(f"{'':<40}{'':>6}{'median':>8}{'p95':>6}{'mean':>6}{'median':>8}{'p95':>6}{'mean':>6}")
    for spec in list_specs():
        show(f"{spec.engine} {spec.model}", spoken, transcribe(spec, audio))
    show("parakeet, a token a syllable", spoken, decode(spoken))
    show("parakeet, a token a word", spoken, decode([cut_to_word(word) for word in spoken]))


def speak(count: int, voice: str) -> tuple[Samples, list[Spoken]]:
    """Sentences with pauses between them, and when each word is spoken."""
    flite, chance = Flite(voice), random.Random(1)
    parts, found, size = [], list[Spoken](), 0
    for sentence in sentences(count, chance):
        part, inside = flite.speak(sentence)
        found += [move(word, size / SAMPLE_RATE) for word in inside]
        pause = np.zeros(int(chance.uniform(0.0, LONG_PAUSE) * SAMPLE_RATE), np.float32)
        parts += [part, pause]
        size += len(part) + len(pause)
    return in_a_room(np.concatenate(parts)), found


def move(word: Spoken, seconds: float) -> Spoken:
    syllables = tuple(begin + seconds for begin in word.syllables)
    return Spoken(word.word, word.start + seconds, word.end + seconds, syllables)


def cut_to_word(word: Spoken) -> Spoken:
    return Spoken(word.word, word.start, word.end, word.syllables[:1])


def list_specs() -> Iterator[EngineSpec]:
    """Yields each engine that can run here with each model that is here."""
    for report in engine_reports(lambda name: EngineSpec(engine=name, device="cpu")):
        here = [name for name, there in report.models.items() if there]
        for model in here if report.models else [""] if report.usable else []:
            yield EngineSpec(engine=report.name, model=model, device="cpu", language="en")


def transcribe(spec: EngineSpec, audio: Samples) -> list[Word]:
    engine = engine_factory(spec.engine).load(spec)
    with tempfile.TemporaryDirectory() as folder:
        bucket = Bucket(Path(folder) / "bucket")
        bucket.put_session("s", [wav(audio)], "wav")
        bucket.transcribe(bucket.manifest(spec), engine)
        found = [word for session in bucket.sessions() for part in session.segments for word in part.words]
    getattr(engine, "close", lambda: None)()
    return found


def decode(spoken: Sequence[Spoken]) -> list[Word]:
    """Words of tokens that are emitted in the frame in which a syllable begins."""
    tokens = [
        Token(f" {word.word}" if number == 0 else "-", begin // FRAME * FRAME)
        for word in spoken
        for number, begin in enumerate(word.syllables)
    ]
    return [word for segment in build_segments(tokens, FRAME) for word in segment.words]


def show(name: str, spoken: Sequence[Spoken], found: Sequence[Word]) -> None:
    pairs = list(align(spoken, found))
    begins = [word.start - truth.start for truth, word in pairs]
    ends = [word.end - truth.end for truth, word in pairs]
    print(f"{name:<40}{len(pairs):>6}{describe(begins)}{describe(ends)}", flush=True)


def align(spoken: Sequence[Spoken], found: Sequence[Word]) -> Iterator[tuple[Spoken, Word]]:
    """Yields the words that were recognised, with the spoken ones."""
    said = [(text, word) for word in found for text in words(word.word)[:1]]
    truth = " ".join(word.word for word in spoken)
    for part in jiwer.process_words(truth, " ".join(text for text, _ in said)).alignments[0]:
        if part.type == "equal":
            heard = said[part.hyp_start_idx : part.hyp_end_idx]
            for one, (_, word) in zip(spoken[part.ref_start_idx : part.ref_end_idx], heard, strict=True):
                yield one, word


def describe(errors: Sequence[float]) -> str:
    """Median and 95th percentile of the distance, and the mean; all in milliseconds."""
    distances = 1000 * np.abs(errors)
    middle, most = np.percentile(distances, [50, 95])
    return f"{middle:>8.0f}{most:>6.0f}{1000 * float(np.mean(errors)):>+6.0f}"


if __name__ == "__main__":
    main()
