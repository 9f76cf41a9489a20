"""Published speech models with figures, and the choice of `auto`.

Word error rates and speeds: Open ASR Leaderboard (huggingface/open_asr_leaderboard, commit d1e99b2, files
`en_shortform.csv` and `en_longform.csv`). Languages, licences and sizes: the models' own pages.
"""

from __future__ import annotations

from dataclasses import dataclass

AUTO = "auto"
"""The value of BATCH_ENGINE and WHISPER_MODEL that leaves the choice to this table."""
AS_OF = "2026-11"
SOURCE = "Open ASR Leaderboard, A100"
SPEAKER_MODEL = "wespeaker_en_voxceleb_CAM++"
"""The model of BATCH_SPEAKERS."""
WHISPER, PARAKEET = "faster-whisper", "parakeet"
ENGLISH = frozenset({"en"})
_EUROPEAN = "bg cs da de el en es et fi fr hr hu it lt lv mt nl pl pt ro ru sk sl sv uk"
EUROPEAN = frozenset(_EUROPEAN.split())
"""The 25 languages of Parakeet v3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedModel:
    """A model with its published figures; None for an unpublished one."""

    engine: str
    name: str
    languages: frozenset[str] | None = None
    """None: about 100, and it detects the language itself."""
    translates: bool = False
    wer: float | None = None
    """Word error rate in percent: English, utterances of up to 30 s, as our windows are."""
    long_wer: float | None = None
    """The same for whole recordings."""
    speed: int | None = None
    """Audio seconds per second, in large batches."""
    megabytes: int
    """Size of the files to fetch."""
    licence: str

    def can(self, language: str | None, task: str) -> bool:
        """True if it supports task and language; None: unknown before the run."""
        known = self.languages is None or language in self.languages
        return known and (self.translates or task == "transcribe")


MODELS = (
    PublishedModel(
        engine=PARAKEET, name="nemo-parakeet-tdt-0.6b-v2", languages=ENGLISH,
        wer=6.05, long_wer=11.18, speed=3386, megabytes=2500, licence="CC-BY-4.0",
    ),
    PublishedModel(
        engine=PARAKEET, name="nemo-parakeet-tdt-0.6b-v3", languages=EUROPEAN,
        wer=6.32, long_wer=10.72, speed=3333, megabytes=2550, licence="CC-BY-4.0",
    ),
    PublishedModel(
        engine=WHISPER, name="large-v3-turbo",
        wer=7.83, long_wer=11.01, speed=200, megabytes=1620, licence="MIT",
    ),
    PublishedModel(
        engine=WHISPER, name="large-v3", translates=True,
        wer=7.44, long_wer=11.23, speed=146, megabytes=3090, licence="MIT",
    ),
    PublishedModel(
        engine=WHISPER, name="distil-large-v3.5", languages=ENGLISH,
        wer=7.21, long_wer=11.69, speed=202, megabytes=1510, licence="MIT",
    ),
    PublishedModel(
        engine=WHISPER, name="medium.en", languages=ENGLISH,
        wer=8.09, speed=182, megabytes=1530, licence="MIT",
    ),
    PublishedModel(
        engine=WHISPER, name="small.en", languages=ENGLISH,
        wer=8.59, speed=269, megabytes=484, licence="MIT",
    ),
    PublishedModel(engine=WHISPER, name="small", translates=True, megabytes=484, licence="MIT"),
)  # fmt: skip
"""In the order in which `auto` prefers them.

Parakeet leads by the error rate in windows like ours, at more than ten times the speed of any other; turbo
leads large-v3 by the error rate of whole recordings, at a third more speed. No model weaker than small.en,
the default of version 0.1, is listed.
"""


def list_candidates(engine: str, language: str | None, task: str) -> list[PublishedModel]:
    """Models of an engine, or `auto`, for language and task; best first."""
    return [model for model in MODELS if engine in {AUTO, model.engine} and model.can(language, task)]


def find_publisher(model: str) -> str:
    """The engine of a published model; faster-whisper for other names and folders."""
    return next((known.engine for known in MODELS if known.name == model), WHISPER)


def choose_small_whisper(language: str | None, task: str) -> str:
    """The model of `auto` on a machine without one: half a gigabyte.

    It is fit for a CPU. English unless the settings require more, as in version 0.1.
    """
    return "small.en" if language in {None, "en"} and task == "transcribe" else "small"
