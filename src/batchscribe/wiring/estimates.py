"""Estimated work and cost of audio objects under the present settings."""

from __future__ import annotations

from collections.abc import Iterable

from batchscribe.core.decide.packing import Estimate, Priors, estimate
from batchscribe.core.scan.chunks import Chunk
from batchscribe.core.scan.folders import AudioObject
from batchscribe.settings import Settings
from batchscribe.wiring.preflight import engine_spec
from batchscribe.wiring.scheduler import LOCAL_PRIORS
from batchscribe.wiring.seams import LOCAL, open_ledger, rate_of


def estimate_audio(settings: Settings, found: Iterable[AudioObject]) -> Estimate:
    """Estimates one run over these objects. Raises MisconfiguredError if the instance's price is unknown."""
    spec = engine_spec(settings)
    with open_ledger(settings, remember=False) as ledger:
        priors = ledger.priors(
            engine=spec.engine,
            model=spec.model,
            instance_type=settings.instance_type,
            default=LOCAL_PRIORS if settings.provider == LOCAL else Priors(),
        )
    return estimate([_chunk(audio) for audio in found], priors, rate_of(settings)(settings.instance_type))


def _chunk(audio: AudioObject) -> Chunk:
    return Chunk(
        key=audio.info.key,
        size=audio.info.size,
        modified=audio.info.modified,
        etag=audio.info.etag,
        session=audio.name.session,
        number=audio.name.number,
        transcript=audio.planned,
    )
