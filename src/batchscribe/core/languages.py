"""What a model understands, by its name alone: whoever pays for its GPU may have no speech model at hand.

The engines look again, at the model itself. What is refused here has cost nothing yet.
"""

from __future__ import annotations

from batchscribe.core.manifest import EngineSpec
from batchscribe.errors import MisconfiguredError

ENGLISH = "en"
TRANSLATE = "translate"
ENGLISH_ENGINES = frozenset({"pocketsphinx"})
"""They have one model, whatever WHISPER_MODEL says."""
ENGLISH_MODELS = ("parakeet-tdt-0.6b-v2",)
"""Names that say it without `.en`; what stands behind them is a number format."""


def refuse_unfit(spec: EngineSpec) -> None:
    """Raises MisconfiguredError, with the mend, where the model cannot do what the settings ask of it."""
    if unfit := _unfit(spec):
        raise MisconfiguredError(f"{unfit} (nothing was started)")


def _unfit(spec: EngineSpec) -> str:
    who = spec.engine if spec.engine in ENGLISH_ENGINES else f"the model {spec.model}"
    if _english_only(spec):
        if spec.language not in {None, ENGLISH}:
            return f"{who} knows English only, and BATCH_LANGUAGE is {spec.language}: {_mend(spec)}"
        if spec.task == TRANSLATE:
            return f"{who} knows English only, and BATCH_TASK is {TRANSLATE}: {_mend(spec)}"
    if spec.task == TRANSLATE and _never_translates(spec):
        return f"{who} does not translate, and BATCH_TASK is {TRANSLATE}: {_mend(spec)}"
    return ""


def _english_only(spec: EngineSpec) -> bool:
    name = _name(spec)
    return spec.engine in ENGLISH_ENGINES or name.endswith(".en") or name.startswith(ENGLISH_MODELS)


def _never_translates(spec: EngineSpec) -> bool:
    """Whether it writes down what it hears in the language in which it is said, whatever it is asked."""
    name = _name(spec)
    return name.startswith("parakeet-") or "turbo" in name.split("-")


def _mend(spec: EngineSpec) -> str:
    if spec.engine in ENGLISH_ENGINES:
        return "take BATCH_ENGINE=faster-whisper and a model for several languages, WHISPER_MODEL=small"
    if spec.task == TRANSLATE or not _name(spec).startswith(ENGLISH_MODELS):
        return "take a Whisper model for several languages, without .en or turbo, such as WHISPER_MODEL=small"
    return "take a model for several languages, such as WHISPER_MODEL=parakeet-tdt-0.6b-v3"


def _name(spec: EngineSpec) -> str:
    """The model's own name, of a folder or of somebody's collection the last part."""
    return spec.model.rstrip("/").rpartition("/")[2].lower()
