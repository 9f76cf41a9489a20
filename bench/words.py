"""Word error rates of a long session, whole and cut into chunks: each file for itself, and stitched.

`python -m bench.words [--engine NAME] [--words 2000] [--type webm]`. The session is spoken by flite;
`--speech FOLDER` takes real recordings (X.wav or X.flac, and what is said in X.txt beside it), one behind the
other. The worker is the real one, on a folder; a window that was heard before is not heard again. The goal:
stitched chunks are within half a word in a hundred of the whole recording, and never worse than file by file.
`--features`: two voices take turns; vocabulary, replacements, speakers and word-highlighted WebVTT are on,
and the words are those of the subtitles. The model of voices is the tests' own.
Some words differ by chance alone: `--chance` says how many, by the whole recording begun some milliseconds
later.
"""

from __future__ import annotations

import argparse
import html
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
import structlog
from msgspec import structs

from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import publish_session
from batchscribe.core.run.manifest import AudioOptions, EngineSpec, Manifest
from batchscribe.core.text.caption_style import CaptionStyle, Highlight
from batchscribe.core.text.rendering import Rendering
from batchscribe.core.text.replacements import parse_replacements
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition
from batchscribe.core.text.transcripts import Word
from batchscribe.engine import Engine
from batchscribe.testing.speakers import SpectralSpeakers
from batchscribe.wiring.engines import engine_factory
from bench import speech
from bench.bucket import Bucket, Remembering
from bench.speech import Session

TEXTS = {
    "english": speech.english,
    "dense": speech.dense_digits,
    "paused": speech.paused_digits,
    "runs": speech.runs_of_digits,
}
WHOLE_WEBM = "whole, as WebM"
LATER_MS = (5, 10, 15)
GAP = np.zeros(SAMPLE_RATE, np.float32)
TURNS = 12
"""Of the two voices, with `--features`."""
TERMS = ("Brandri", "Clofen", *speech.PEOPLE[:4])
"""Vocabulary with `--features`: terms that are spoken, and terms that are not."""
RULE = r"/\b(the) (\w+)/ => \1 \2"
"""Replacement with `--features`: it joins and divides words, and leaves the text."""
FEATURES = Rendering(
    style=CaptionStyle(highlight=Highlight.WORDS), replacements=parse_replacements(RULE), speakers="2"
)


@dataclass(frozen=True)
class Way:
    """One way to cut the session and to hear it."""

    name: str
    files: list[bytes]
    kind: str
    stitched: bool
    overlap_ms: int | None = None
    whole: str = "whole"
    """What it is compared with: the same sound, whole, after the same codec."""


@dataclass(frozen=True)
class Result:
    said: list[str]
    times: list[Word]
    errors: jiwer.WordOutput
    windows: int
    new: int
    """Windows that the engine had not heard already, of another way."""

    @property
    def wer(self) -> float:
        return float(self.errors.wer)


def main() -> None:
    wanted = _arguments()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    for session in _sessions(wanted):
        about = f"{session.name}, {session.seconds / 60:.1f} min, {wanted.type}"
        print(f"\n{about}, {wanted.engine} {wanted.model}", flush=True)
        _table(session, wanted)


@contextmanager
def _loaded(wanted: argparse.Namespace) -> Iterator[Engine]:
    """An engine for one way: it decodes again what looks wrong within a budget of time of its own."""
    engine = engine_factory(wanted.engine).load(_spec(wanted))
    try:
        yield engine
    finally:
        getattr(engine, "close", lambda: None)()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--engine", default="faster-whisper")
    parser.add_argument("--model", default="tiny.en", help="the name or the folder of a model")
    parser.add_argument("--text", nargs="*", default=["english"], choices=sorted(TEXTS))
    parser.add_argument("--words", type=int, default=2000)
    parser.add_argument("--voice", default="", help="one of flite's at 16 kHz: rms, slt")
    parser.add_argument("--type", default="wav", choices=["wav", "webm", "flac", "m4a"])
    parser.add_argument("--seconds", type=float, nargs="*", default=[5, 10, 30])
    parser.add_argument("--overlap-ms", type=int, nargs="*", default=[0, 500])
    parser.add_argument("--chance", action="store_true", help="how much any small change changes")
    parser.add_argument("--speech", type=Path, help="a folder of real recordings")
    parser.add_argument("--features", action="store_true", help="vocabulary, speakers and subtitles are on")
    parser.add_argument("--show", action="store_true", help="the words that the cuts changed")
    return parser.parse_args()


def _spec(wanted: argparse.Namespace) -> EngineSpec:
    spec = EngineSpec(engine=wanted.engine, model=wanted.model, device="cpu", language="en")
    return structs.replace(spec, vocabulary=TERMS, speakers=True) if wanted.features else spec


def _sessions(wanted: argparse.Namespace) -> Iterator[Session]:
    if wanted.speech:
        yield _real(wanted.speech)
        return
    if wanted.features:
        yield _converse(wanted.words)
        return
    voice = {"voice": wanted.voice} if wanted.voice else {}
    for text in wanted.text:
        yield TEXTS[text](wanted.words, **voice)


def _converse(words: int) -> Session:
    turns = [
        speech.english(words // TURNS, voice=("rms", "slt")[number % 2], seed=number)
        for number in range(TURNS)
    ]
    text = " ".join(turn.text for turn in turns)
    return Session("two voices, all features", text, np.concatenate([turn.samples for turn in turns]))


def _real(folder: Path) -> Session:
    """All recordings with a text beside them, one behind the other."""
    found = [
        (path, text)
        for path in sorted(folder.iterdir())
        if path.suffix in {".wav", ".flac"} and (text := path.with_suffix(".txt")).exists()
    ]
    assert found, f"no X.wav or X.flac with an X.txt in {folder}"
    audio = [part for path, _ in found for part in (speech.read(path), GAP)]
    said = " ".join(text.read_text() for _, text in found)
    return Session(f"{len(found)} recordings", said, np.concatenate(audio))


def _ways(session: Session, wanted: argparse.Namespace) -> Iterator[Way]:
    """The whole recording comes first."""
    audio, kind = session.samples, wanted.type
    yield _whole("whole", session, kind)
    for later in LATER_MS if wanted.chance else ():
        rest = audio[later * SAMPLE_RATE // 1000 :]
        files = speech.files(rest, kind, session.seconds + 1, 0)
        yield Way(f"whole, begun {later} ms later", files, kind, stitched=True)
    for seconds in wanted.seconds:
        for overlap in wanted.overlap_ms:
            files = speech.files(audio, kind, seconds, overlap / 1000)
            name = f"{seconds:g} s, {overlap} ms"
            yield Way(f"{name}, each file for itself", files, kind, stitched=False)
            yield Way(f"{name}, stitched", files, kind, stitched=True)
            yield Way(f"{name}, stitched, overlap told", files, kind, stitched=True, overlap_ms=overlap)
    if kind != "webm":
        yield _whole(WHOLE_WEBM, session, "webm")
    slices = speech.timeslices(audio, 10)
    whole = "whole" if kind == "webm" else WHOLE_WEBM
    yield Way("10 s without headers, stitched", slices, "webm", stitched=True, whole=whole)


def _whole(name: str, session: Session, kind: str) -> Way:
    files = speech.files(session.samples, kind, session.seconds + 1, 0)
    return Way(name, files, kind, stitched=True, whole=name)


def _table(session: Session, wanted: argparse.Namespace) -> None:
    heads = f"{'':<36}{'words':>7}{'errors':>7}  {'sub/del/ins':<12}{'WER':>7}"
    print(f"{heads}{'to whole':>9}{'windows':>9}{'new':>5}", flush=True)
    results: dict[str, Result] = {}
    known: dict[bytes, Recognition] = {}
    for way in _ways(session, wanted):
        with _loaded(wanted) as engine:
            found = results[way.name] = _heard(way, session, Remembering(engine, known), wanted)
        whole = results[way.whole]
        _row(way, found, whole)
        if wanted.show and found is not whole:
            _show(found, whole)


def _row(way: Way, found: Result, whole: Result) -> None:
    wrong = found.errors
    errors = wrong.substitutions + wrong.deletions + wrong.insertions
    kinds = f"{wrong.substitutions}/{wrong.deletions}/{wrong.insertions}"
    print(
        f"{way.name:<36}{len(found.said):>7}{errors:>7}  {kinds:<12}"
        f"{found.wer:>7.4f}{found.wer - whole.wer:>+9.4f}{found.windows:>9}{found.new:>5}",
        flush=True,
    )


def _heard(way: Way, session: Session, engine: Remembering, wanted: argparse.Namespace) -> Result:
    before, known = engine.windows, len(engine.known)
    with tempfile.TemporaryDirectory() as folder:
        bucket = Bucket(Path(folder) / "bucket")
        (bucket.put_session if way.stitched else bucket.put_strangers)("s", way.files, way.kind)
        manifest = bucket.manifest(EngineSpec(engine="bench"), AudioOptions(overlap_ms=way.overlap_ms))
        bucket.transcribe(manifest, engine, SpectralSpeakers() if wanted.features else None)
        found = list(bucket.sessions())
        text = _read_captions(bucket, manifest) if wanted.features else " ".join(each.text for each in found)
    said = words(text)
    times = [word for session in found for part in session.segments for word in part.words]
    errors = jiwer.process_words(" ".join(words(session.text)), " ".join(said))
    return Result(said, times, errors, engine.windows - before, len(engine.known) - known)


def _read_captions(bucket: Bucket, manifest: Manifest) -> str:
    """The text of all sessions' WebVTT, without its markup."""
    scanner = Scanner(bucket.store, bucket.store, clock=SystemClock())
    sessions = dict.fromkeys(chunk.session for chunk in manifest.chunks)
    stems = filter(None, (publish_session(scanner, session, FEATURES) for session in sessions))
    files = [(bucket.folder / f"{stem}.vtt").read_text() for stem in stems]
    assert len(files) > 1 or "<v Speaker 2>" in files[0]
    cues = (cue.split("\n", 2)[2] for file in files for cue in file.split("\n\n") if "-->" in cue)
    return html.unescape(re.sub("<[^>]*>", "", " ".join(cues)))


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def _show(found: Result, whole: Result) -> None:
    """Where what was heard differs from what was heard of the whole recording, and when."""
    differ = jiwer.process_words(" ".join(whole.said), " ".join(found.said))
    for part in differ.alignments[0]:
        if part.type != "equal":
            at = _when(whole, part.ref_start_idx)
            ours, theirs = part.hyp_start_idx, part.ref_start_idx
            print(
                f"    {at:8.2f} s  whole: {_some(whole.said, theirs, part.ref_end_idx)!r}"
                f"  here: {_some(found.said, ours, part.hyp_end_idx)!r}"
            )


def _when(result: Result, at: int) -> float:
    same = len(result.times) == len(result.said)
    return result.times[min(at, len(result.times) - 1)].start if same and result.times else float("nan")


def _some(said: Sequence[str], begin: int, end: int) -> str:
    before, here, after = said[max(0, begin - 2) : begin], said[begin:end], said[end : end + 2]
    return f"{' '.join(before)} [{' '.join(here)}] {' '.join(after)}"


if __name__ == "__main__":
    main()
