"""The CPU lane: its configuration, self-test and process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files

import structlog
from msgspec import structs

from batchscribe import __version__
from batchscribe.adapters.existing_instances import ExistingInstances
from batchscribe.adapters.local.compute import LocalCompute
from batchscribe.adapters.local.lane import UNFINISHED, LaneFiles, LaneLauncher, LaneTest
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.adapters.machine.installed import has_lane_unit
from batchscribe.control_place import find_control_url
from batchscribe.controller.context import RunConfig, Waits
from batchscribe.core.decide.money import FREE
from batchscribe.core.decide.offers import CPU, LOCAL, Market, Offer
from batchscribe.core.decide.policy import LONGEST_PAUSE
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.speech import MAX_WINDOW_SECONDS, SAMPLE_RATE, Window
from batchscribe.errors import BatchscribeError, EngineError, InterruptedRunError, MisconfiguredError
from batchscribe.protocols import Capacity, Clock, Store
from batchscribe.settings import Settings
from batchscribe.wiring.engine_choice import EngineChoice
from batchscribe.wiring.engines import engine_factory
from batchscribe.wiring.seams import open_ledger, open_stores

log = structlog.get_logger("batchscribe")
SPEECH = ("demo", "audio", "morning-walk")
LANE_WAITS = Waits(describe=2.0, reach=60.0)


@dataclass(frozen=True, slots=True)
class Lane:
    """The lane of these settings."""

    settings: Settings
    choice: EngineChoice
    clock: Clock

    def configure(self, config: RunConfig) -> RunConfig:
        """Adds the configuration of runs on this machine's processor."""
        if self.settings.provider == LOCAL:
            return config
        test = self._files.read_test()
        policy = config.policy
        own = replace(
            config,
            provider=LOCAL,
            instances=(LOCAL,),
            guard="off",
            access="",
            shared_machine=True,
            policy=replace(policy, max_runtime=min(policy.max_runtime, policy.check_interval)),
            choose_engine=lambda language: make_lane_spec(self.choice, language),
            priors=test.priors if test else config.priors,
            waits=LANE_WAITS,
        )
        if not self.settings.has_lane:
            return replace(config, lane=own)  # a run of before is still finished
        return replace(config, lane=own, find_lane_problem=self.find_problem)

    def find_problem(self) -> str:
        """Reason, with fix, why the lane takes no work; empty without one."""
        if self.choice.depends_on_language:
            return (
                "sessions of different languages have different engines, and one lane has one: set "
                "BATCH_LANGUAGE or WHISPER_MODEL"
            )
        test = self._find_current_test()
        if test is None:
            return "its self-test has not run yet: the next tick starts it, or `batchscribe lane --test`"
        if test.error:
            return f"{test.error}; tested {test.at:%Y-%m-%d %H:%M} UTC, again with `batchscribe lane --test`"
        return ""

    def prepare(self) -> None:
        """Starts a self-test if needed, after a failed one a day later."""
        if not self.settings.has_lane:
            return
        try:
            test = self._find_current_test()
            valid = test and (not test.error or self.clock.now() < test.at + LONGEST_PAUSE)
            if not valid and not self.choice.depends_on_language:
                open_lane_launcher(self.settings).request_test()
        except InterruptedRunError:
            raise
        except BatchscribeError as error:
            log.warning("lane.not_tested", error=str(error))

    def describe(self) -> str:
        """The last self-test, for users."""
        test = self._find_current_test()
        if test is None or test.error:
            return self.find_problem()
        model = f"{test.spec.engine} {test.spec.model}".strip()
        return f"{model} transcribes {test.speed:.1f} x real time, tested {test.at:%Y-%m-%d %H:%M} UTC"

    def _find_current_test(self) -> LaneTest | None:
        test = self._files.read_test()
        spec = make_lane_spec(self.choice)
        return test if test and (test.spec, test.release) == (spec, __version__) else None

    @property
    def _files(self) -> LaneFiles:
        return LaneFiles(self.settings.state_dir)


def make_lane_spec(choice: EngineChoice, language: str = "") -> EngineSpec:
    """The GPU's engine and model, on the processor."""
    return structs.replace(choice.choose(language), device="cpu")


def open_lane_capacity(settings: Settings, clock: Clock) -> Capacity:
    return ExistingInstances(
        compute=LocalCompute(settings.state_dir, clock, instance_type=CPU),
        provider=LOCAL,
        rate_of=lambda _type: FREE,
        own_type=CPU,
        market=Market.LANE,
    )


def open_lane_launcher(settings: Settings, output: Store | None = None, *, control: str = "") -> LaneLauncher:
    return LaneLauncher(
        settings.state_dir,
        settings.log_dir,
        environment=settings.child_environment(),
        has_unit=has_lane_unit(settings.folder),
        control=find_control_url(output) if output else control,
    )


def read_lane_offer(settings: Settings) -> Offer | None:
    """This machine's processor as runs or the self-test measured it, if any."""
    test = LaneFiles(settings.state_dir).read_test() if settings.has_lane else None
    if test is None or test.error:
        return None
    with open_ledger(settings, remember=False) as ledger:
        spec = test.spec
        priors = ledger.priors(engine=spec.engine, model=spec.model, instance_type=CPU, default=test.priors)
    return Offer(provider=LOCAL, instance_type=CPU, market=Market.LANE, rate=FREE, priors=priors)


def open_lane(settings: Settings) -> Lane:
    """Opens the lane. Raises MisconfiguredError without a lane or usable store."""
    if settings.provider == LOCAL:
        raise MisconfiguredError("the GPU is in this machine, so there is no CPU lane: nothing was done")
    return Lane(settings, EngineChoice(settings, open_stores(settings)[1]), SystemClock())


def process_requests(lane: Lane) -> Iterator[str]:
    """Carries out the requests that ticks left; yields a line about each."""
    for name, request in LaneFiles(lane.settings.state_dir).take_requests():
        if not request.url:
            yield describe_test(run_self_test(lane))
            continue
        launcher = open_lane_launcher(lane.settings, control=request.control)
        launcher.run_requested(name, request, lane.clock)
        yield f"worker {name} ended"


def describe_test(test: LaneTest) -> str:
    if test.error:
        return test.error
    return f"self-test passed: {test.speed:.1f} x real time, loaded in {test.setup_seconds:.1f} s"


def run_self_test(lane: Lane) -> LaneTest:
    """Tests the GPU's engine on this machine's processor, and records the result."""
    lane_files, spec = LaneFiles(lane.settings.state_dir), make_lane_spec(lane.choice)
    record = partial(LaneTest, spec=spec, release=__version__, at=lane.clock.now())
    lane_files.write_test(record(error=UNFINISHED))
    try:
        setup_seconds, speed = measure_engine(spec, lane.clock)
        test = record(setup_seconds=setup_seconds, speed=speed)
    except Exception as error:  # noqa: BLE001  an engine's packages may raise anything
        known = isinstance(error, BatchscribeError)
        test = record(error=str(error) if known else f"the self-test failed: {type(error).__name__}")
    lane_files.write_test(test)
    return test


def measure_engine(spec: EngineSpec, clock: Clock) -> tuple[float, float]:
    """(seconds to load, audio seconds per second of work) of an engine.

    It transcribes bundled speech. Raises EngineError if it finds no words, and what the engine raises.
    """
    import numpy as np

    from batchscribe.adapters.engines.speaker_model import open_speaker_model
    from batchscribe.adapters.engines.voice_detectors import find_voice_detector
    from batchscribe.audio.audio_decoder import AudioDecoder

    begin = clock.monotonic()
    factory = engine_factory(spec.engine)
    factory.check(spec)
    find_voice_detector()
    if spec.speakers:
        open_speaker_model()
    engine = factory.load(spec)
    loaded = clock.monotonic()
    chunks = sorted(files("batchscribe").joinpath(*SPEECH).iterdir(), key=lambda file: file.name)
    with AudioDecoder() as decoder:
        decoded = [decoder.decode_all(chunk.read_bytes(), max_seconds=60).samples for chunk in chunks]
    audio = np.concatenate(decoded)[: int(MAX_WINDOW_SECONDS * SAMPLE_RATE)]
    window = Window(id=0, start=0.0, audio=audio, language=spec.language, session="self-test")
    ready = clock.monotonic()
    results = list(engine.transcribe([window]))
    if not any(segment.text.strip() for result in results for segment in result.segments):
        raise EngineError(f"{spec.engine} found no words in the bundled speech: run `batchscribe engines`")
    return loaded - begin, window.seconds / max(1e-3, clock.monotonic() - ready)
