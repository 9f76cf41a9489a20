"""The example in docs/engines.md is complete: it runs, it is found, and it passes the suite."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from batchscribe.adapters.host_access.setup import HostSetup
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.engine import Engine, EngineFactory
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.compute import FakeCompute
from batchscribe.testing.engine_suite import EngineSuite
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring import engines
from batchscribe.wiring.engine_choice import engine_spec
from batchscribe.wiring.host_access import open_host_setup

GUIDE = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
CODE, SUITE = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
(PLACE,) = re.findall(r'^loudness = "(.*)"$', GUIDE, re.MULTILINE)


@pytest.fixture(scope="module")
def factory() -> EngineFactory:
    module = ModuleType("my_package.loudness")
    exec(compile(CODE, "docs/engines.md", "exec"), module.__dict__)
    found: EngineFactory = module.__dict__["FACTORY"]
    return found


@pytest.fixture(scope="module")
def engine(factory: EngineFactory) -> Engine:
    return factory.load(EngineSpec(engine="loudness"))


class TestExample(EngineSuite):
    pass


def test_the_example_is_found_by_its_entry_point(
    factory: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = ModuleType(PLACE.partition(":")[0])
    module.FACTORY = factory
    monkeypatch.setitem(sys.modules, "my_package", ModuleType("my_package"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entry = EntryPoint(name="loudness", value=PLACE, group=engines.GROUP)
    monkeypatch.setattr(engines, "_list_entries", lambda: {"loudness": entry})
    (report,) = engines.engine_reports(lambda name: EngineSpec(engine=name, device="cuda"))
    assert report.problems == ("loudness runs on the CPU only: choose the device auto",)
    assert report.models == {}
    assert engines.list_limits(EngineSpec(engine="loudness")) == ()
    with pytest.raises(MisconfiguredError, match="loudness has no model to fetch"):
        engines.fetch_model(EngineSpec(engine="loudness"))
    assert factory.model_name("small.en") == "small.en"
    assert not factory.gpu_missing(EngineSpec(engine="loudness", device="cuda"))


class DuckTyped:
    """Has the methods of a factory, and is none."""

    name = "duck"

    def problems(self, spec: EngineSpec) -> tuple[str, ...]:
        return ()

    def load(self, spec: EngineSpec) -> None:
        return None


def test_what_is_not_derived_from_the_base_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("duck_package")
    module.FACTORY = DuckTyped()
    monkeypatch.setitem(sys.modules, "duck_package", module)
    entry = EntryPoint(name="duck", value="duck_package:FACTORY", group=engines.GROUP)
    monkeypatch.setattr(engines, "_list_entries", lambda: {"duck": entry})
    with pytest.raises(MisconfiguredError, match="duck_package:FACTORY is not an EngineFactory"):
        engines.engine_factory("duck")
    (report,) = engines.engine_reports(lambda name: EngineSpec(engine=name))
    assert "is not an EngineFactory" in report.problems[0]
    assert engines.known_factory("duck").needs_gpu


@pytest.mark.parametrize(
    ("engine", "extra", "device"),
    [
        ("auto", "gpu", "cuda"),
        ("parakeet", "parakeet-gpu", "cuda"),
        ("pocketsphinx", "demo", "auto"),
        ("only-on-the-host", "gpu", "cuda"),
    ],
)
def test_a_set_up_installs_what_the_engine_declares(
    engine: str, extra: str, device: str, tmp_path: Path
) -> None:
    setup = set_up_of(engine, tmp_path)
    assert (setup.extra, setup.packages, setup.request.engine.device) == (extra, (), device)


def test_a_set_up_installs_the_package_of_a_third_partys_engine(
    factory: EngineFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engines, "engine_factory", lambda _name: factory)
    setup = set_up_of("loudness", tmp_path)
    assert (setup.extra, setup.packages, setup.request.engine.device) == ("gpu", ("my-package==1.0",), "auto")


def set_up_of(engine: str, folder: Path) -> HostSetup:
    environ = {"GPU_INSTANCE_ID": "i-0123456789abcdef0", "BATCH_ENGINE": engine}
    settings, clock = load(environ, folder=folder), FakeClock()
    return open_host_setup(settings, clock, FakeCompute(clock), MemoryStore(clock), engine_spec(settings))


def test_the_suite_in_the_guide_is_the_one_that_ships(
    factory: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = ModuleType("my_package.loudness")
    module.FACTORY = factory
    monkeypatch.setitem(sys.modules, "my_package.loudness", module)
    names: dict[str, Any] = {}
    exec(compile(SUITE, "docs/engines.md", "exec"), names)
    assert issubclass(names["TestLoudness"], EngineSuite)


def test_the_example_stays_short() -> None:
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 40
