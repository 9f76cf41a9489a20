"""docs/seams.md is right: its examples run and pass the suites, and its tables name what there is."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from batchscribe import errors, protocols

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "seams.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
SUITES, STORE, *SCRIPTS = EXAMPLES
SECTIONS = {part.partition("\n")[0]: part for part in GUIDE.split("\n## ")[1:]}
SEAMS = re.findall(r"^\| \[(\w+)\]", GUIDE, re.MULTILINE)


def run_example(text: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(text, "docs/seams.md", "exec"), names)
    return names


def suites_of_the_guide() -> dict[str, Any]:
    module = ModuleType("my_package.prefix_store")
    run_example(STORE, module.__dict__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        return run_example(SUITES, {"__name__": __name__})


MADE = suites_of_the_guide()
store, guard, case = MADE["store"], MADE["guard"], MADE["case"]
TestPrefixStore, TestGuard, TestLauncher = MADE["TestPrefixStore"], MADE["TestGuard"], MADE["TestLauncher"]


@pytest.mark.parametrize("script", SCRIPTS, ids=["guard", "clock", "lock"])
def test_a_script_of_the_guide_runs(script: str) -> None:
    run_example(script, {})


@pytest.mark.parametrize("seam", [seam for seam in SEAMS if seam != "Engine"])
def test_the_table_of_a_seam_has_each_of_its_methods(seam: str) -> None:
    members = vars(getattr(protocols, seam))
    methods = [name for name, value in members.items() if callable(value) and not name.startswith("_")]
    assert re.findall(r"^\| `(\w+)` \|", SECTIONS[seam], re.MULTILINE) == methods


def test_every_error_in_the_guide_exists() -> None:
    named = set(re.findall(r"`(\w+Error)`", GUIDE))
    assert named
    assert [name for name in named if not hasattr(errors, name)] == []


def test_every_module_and_file_in_the_guide_exists() -> None:
    for module, name in re.findall(r"`(?:batchscribe\.)?(testing\.\w+)\.(\w+)`", GUIDE):
        assert hasattr(import_module(f"batchscribe.{module}"), name)
    for path in re.findall(r"`((?:tests|batchscribe)/[\w/]+\.py)`", GUIDE):
        assert (ROOT / path).exists() or (ROOT / "src" / path).exists(), path
