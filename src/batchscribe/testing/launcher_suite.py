"""Pytest suite for launchers; our own launchers and the double pass it.

    @pytest.fixture
    def case(tmp_path):
        return LauncherCase(launcher=MyLauncher(...), started=..., all_end=...)

    class TestMyLauncher(LauncherSuite):
        pass

The launcher must start stand-ins: workers that run until they are asked to end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from batchscribe import __version__
from batchscribe.core import keys
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.manifest import EngineSpec, Manifest, encode
from batchscribe.protocols import Launcher, Store

INSTANCE = Instance(id="i-0123456789abcdef0", state=InstanceState.RUNNING, public_address="127.0.0.1")


def make_manifest(*, run: str = "run-1", worker: int = 0, output: str = "file:///bucket") -> Manifest:
    """Manifest without chunks."""
    return Manifest(
        run=run,
        worker=worker,
        release=__version__,
        source=output,
        output=output,
        deadline=datetime(2030, 1, 1, tzinfo=UTC),
        engine=EngineSpec(engine="none"),
        settings_hash="0",
        chunks=(),
    )


@dataclass(frozen=True, kw_only=True)
class LauncherCase:
    """A launcher, and functions that observe the workers that it starts."""

    launcher: Launcher
    started: Callable[[int], Sequence[object]]
    """Manifest URLs of all started workers; waits until there are at least so many."""
    all_end: Callable[[], bool]
    """Waits for the end of all workers, within a limit; True if they ended."""
    instance: Instance = INSTANCE
    store: Store | None = None
    """Store from which the host reads manifests; None if the launcher passes only their URLs on."""
    has_agent: bool = False
    """An agent runs one worker after another, and `alive` may be unknown while a worker runs."""

    def manifest(self, worker: int = 0, *, run: str = "run-1") -> Manifest:
        output = self.store.url if self.store else "file:///bucket"
        return make_manifest(run=run, worker=worker, output=output)

    def url(self, worker: int = 0) -> str:
        given = self.manifest(worker)
        return f"{given.output.rstrip('/')}/{keys.manifest(given.run, worker)}"

    def launch(self, worker: int = 0) -> None:
        given = self.manifest(worker)
        if self.store:
            self.store.create(keys.manifest(given.run, worker), encode(given))
        self.launcher.launch(self.instance, given, self.url(worker))

    def cancel(self, *, run: str = "run-1") -> None:
        self.launcher.cancel(self.instance, self.manifest(run=run))

    def is_alive(self, worker: int = 0) -> bool | None:
        return self.launcher.alive(self.instance, self.manifest(worker))


class LauncherSuite:
    """Tests to inherit; the fixture `case` is a LauncherCase without workers."""

    def test_the_probe_returns_the_version_of_the_worker(self, case: LauncherCase) -> None:
        assert case.launcher.probe(case.instance) == __version__

    def test_a_worker_is_started_on_its_manifest(self, case: LauncherCase) -> None:
        case.launch()
        assert case.started(1) == [case.url()]

    def test_a_repeated_launch_starts_no_second_worker(self, case: LauncherCase) -> None:
        case.launch()
        case.launch()
        assert case.started(1) == [case.url()]

    def test_workers_run_side_by_side_without_an_agent(self, case: LauncherCase) -> None:
        if case.has_agent:
            return
        case.launch()
        case.launch()
        case.launch(1)
        assert sorted(map(str, case.started(2))) == [case.url(), case.url(1)]

    def test_a_worker_that_ended_is_not_started_again(self, case: LauncherCase) -> None:
        case.launch()
        case.started(1)
        case.cancel()
        assert case.all_end()
        case.launch()
        assert case.started(1) == [case.url()]

    def test_a_cancelled_worker_ends_and_cancel_can_be_repeated(self, case: LauncherCase) -> None:
        case.launch()
        case.started(1)
        case.cancel()
        assert case.all_end()
        case.cancel()

    def test_cancel_without_a_worker_does_nothing(self, case: LauncherCase) -> None:
        case.cancel(run="run-never")
        assert case.launcher.probe(case.instance) == __version__

    def test_a_worker_is_alive_from_its_launch_to_its_end(self, case: LauncherCase) -> None:
        unknown = {None} if case.has_agent else set[bool | None]()
        assert case.is_alive() in {False} | unknown
        case.launch()
        case.started(1)
        assert case.is_alive() in {True} | unknown
        assert case.is_alive(1) in {False} | unknown
        case.cancel()
        assert case.all_end()
        assert case.is_alive() in {False} | unknown
