"""Published speech models and their figures, and the choice of `auto` among them.

Sources, read in November 2026: the Open ASR Leaderboard (huggingface/open_asr_leaderboard, commit d1e99b2,
`en_shortform.csv` and `en_longform.csv`: word error rates in percent, speed on one A100) and the models' own
pages (languages, licence, size of the files that are fetched).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from batchscribe.core.run.manifest import EngineSpec

AS_OF = "2026-11"
WHISPER, PARAKEET = "faster-whisper", "parakeet"
ENGLISH = frozenset({"en"})
_EUROPEAN = "bg cs da de el en es et fi fr hr hu it lt lv mt nl pl pt ro ru sk sl sv uk"
EUROPEAN = frozenset(_EUROPEAN.split())
"""The 25 languages of Parakeet v3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedModel:
    """A model and what was published about it; None where nothing was."""

    engine: str
    name: str
    languages: frozenset[str] | None = None
    """None: about 100, and it identifies the language itself."""
    translates: bool = False
    short_wer: float | None = None
    """Word error rate in percent, English, utterances of up to 30 s, as our windows are."""
    long_wer: float | None = None
    """The same for whole recordings."""
    speed: int | None = None
    """Seconds of audio per second, on an A100, in large batches."""
    megabytes: int
    licence: str

    def can(self, language: str | None, task: str) -> bool:
        """True if it is made for this language (None: unknown before the run) and task."""
        known = self.languages is None or language in self.languages
        return known and (self.translates or task == "transcribe")


MODELS = (
    PublishedModel(
        engine=PARAKEET, name="nemo-parakeet-tdt-0.6b-v2", languages=ENGLISH,
        short_wer=6.05, long_wer=11.18, speed=3386, megabytes=2500, licence="CC-BY-4.0",
    ),
    PublishedModel(
        engine=PARAKEET, name="nemo-parakeet-tdt-0.6b-v3", languages=EUROPEAN,
        short_wer=6.32, long_wer=10.72, speed=3333, megabytes=2550, licence="CC-BY-4.0",
    ),
    PublishedModel(
        engine=WHISPER, name="large-v3-turbo",
        short_wer=7.83, long_wer=11.01, speed=200, megabytes=1620, licence="MIT",
    ),
    PublishedModel(
        engine=WHISPER, name="large-v3", translates=True,
        short_wer=7.44, long_wer=11.23, speed=146, megabytes=3090, licence="MIT",
    ),
    PublishedModel(
        engine=WHISPER, name="distil-large-v3.5", languages=ENGLISH,
        short_wer=7.21, long_wer=11.69, speed=202, megabytes=1510, licence="MIT",
    ),
    PublishedModel(
        engine=WHISPER, name="medium.en", languages=ENGLISH,
        short_wer=8.09, speed=182, megabytes=1530, licence="MIT",
    ),
    PublishedModel(
        engine=WHISPER, name="small.en", languages=ENGLISH,
        short_wer=8.59, speed=269, megabytes=484, licence="MIT",
    ),
    PublishedModel(engine=WHISPER, name="small", translates=True, megabytes=484, licence="MIT"),
    PublishedModel(engine=WHISPER, name="tiny.en", languages=ENGLISH, megabytes=75, licence="MIT"),
)  # fmt: skip
"""In the order in which `auto` prefers them.

Parakeet is ahead by its error rates in windows like ours, at ten times the speed of any other; turbo is ahead
of large-v3 by the rate of whole recordings, at a third more speed.
"""


def preferred(spec: EngineSpec, among: Iterable[PublishedModel] = MODELS) -> PublishedModel | None:
    """The first model made for the language and the task of `spec`; None if there is none."""
    return next((model for model in among if model.can(spec.language, spec.task)), None)
