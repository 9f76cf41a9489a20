"""Measurements of a run for the next estimate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from batchscribe.controller.context import RunConfig, World, log
from batchscribe.core.decide.packing import Priors
from batchscribe.core.run.manifest import EngineSpec, ExitRecord
from batchscribe.core.run.runs import Run


def learn(
    world: World, config: RunConfig, run: Run, work: Sequence[tuple[EngineSpec, ExitRecord | None]]
) -> None:
    """Records speed, set-up time and bitrate if any work was done.

    `work`: for each worker its engine and exit record.
    """
    types = [run.machine(worker.machine).type for worker in run.workers]
    worked = [
        (engine, record)
        for engine, record in work
        if record
        and record.timings.busy
        and record.tally.done
        # Of machines of several types, those of the last offer.
        and types[record.worker : record.worker + 1] in ([], [""], [run.instance_type])
    ]
    if not worked:
        return
    engine, _ = worked[0]
    # A run is one measurement: that of its first engine.
    seen = [record for used, record in worked if used == engine]
    elapsed = sum(record.timings.elapsed - (record.timings.first_window or 0.0) for record in seen)
    audio = sum(record.tally.audio_seconds for record in seen)
    begun = run.start_requested.at if run.start_requested else run.created
    release = config.priors.release_seconds
    if run.stopped and run.work_ended:
        release = (run.stopped.at - run.work_ended).total_seconds()
    measured = Priors(
        speed=audio / elapsed if elapsed > 0 else config.priors.speed,
        setup_seconds=(run.first_window - begun).total_seconds() if run.first_window else 0.0,
        release_seconds=release,
        bytes_per_second=measure_bitrates(seen),
    )
    speed, setup = round(measured.speed, 2), round(measured.setup_seconds, 1)
    log.info("run.measured", run=run.id, speed=speed, setup=setup)
    world.ledger.learn(
        run=run.id,
        engine=engine.engine,
        model=engine.model,
        instance_type=run.instance_type,
        at=world.clock.now(),
        measured=measured,
    )


def measure_bitrates(records: Iterable[ExitRecord]) -> dict[str, float]:
    """Bytes per audio second by file extension."""
    seconds: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for record in records:
        for kind, value in record.seconds_by_type.items():
            seconds[kind] = seconds.get(kind, 0.0) + value
            sizes[kind] = sizes.get(kind, 0) + record.bytes_by_type.get(kind, 0)
    return {kind: sizes[kind] / seconds[kind] for kind in seconds if seconds[kind] > 0}
