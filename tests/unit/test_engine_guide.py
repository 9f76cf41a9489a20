"""The example in docs/engines.md is complete: it runs, it is found, and it passes the suite."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from batchscribe.core.run.manifest import EngineSpec
from batchscribe.protocols import Engine, EngineFactory
from batchscribe.testing.engine_suite import EngineSuite
from batchscribe.wiring import engines

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
    monkeypatch.setattr(engines, "_entries", lambda: {"loudness": entry})
    (report,) = engines.engine_reports(EngineSpec(engine="loudness", device="cuda"))
    assert report.problems == ("loudness runs on the CPU only: choose the device auto",)
    assert report.models == {}
    assert not engines.can_fetch("loudness")
    assert engines.unable(EngineSpec(engine="loudness")) == ()
    assert engines.model_name("loudness", "small.en") == "small.en"
    assert not engines.gpu_missing(EngineSpec(engine="loudness", device="cuda"))


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
