"""The wheel of these sources in a clean environment, without the network: its commands do the main job."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import requires
from pathlib import Path

import pytest

from batchscribe import __version__
from batchscribe.adapters.host_access.installation import find_wheel
from support.s3 import missing

pytestmark = pytest.mark.e2e
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = find_wheel(None, tmp_path_factory.mktemp("wheel"))
    assert built is not None
    return built


def check(*argv: str | Path, cwd: Path, **environment: str) -> str:
    """The output of a command that succeeds, with none of our settings and no index of packages."""
    kept = {"PATH": os.environ["PATH"], "HOME": str(cwd), "PIP_NO_INDEX": "1", "UV_OFFLINE": "1"}
    done = subprocess.run(
        argv, cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout


def link_dependencies(environment: Path, folder: Path) -> None:
    """Adds everything that is installed here, except batchscribe, to a clean environment."""
    folder.mkdir()
    for each in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "batchscribe" not in each.name:
            (folder / each.name).symlink_to(each)
    (site,) = environment.glob("lib/python3*/site-packages")
    (site / "dependencies.pth").write_text(f"{folder}\n")


def check_package(command: Path, home: Path) -> Path:
    """The installed command, from a folder of its own, and its package's files; the folder of the audio."""
    assert check(command, "--version", cwd=home).strip() == f"batchscribe, version {__version__}"
    (audio,) = command.resolve().parent.parent.glob("lib/python3*/site-packages/batchscribe/demo/audio")
    assert (audio.parents[1] / "deploy" / "prometheus" / "rules.yml").is_file()
    assert (audio.parents[1] / "deploy" / "grafana" / "batchscribe.json").is_file()
    assert "AWSTemplateFormatVersion" in check(command, "iam-policy", "--template", cwd=home)
    return audio


def check_job(command: Path, home: Path, audio: Path) -> None:
    """The main job and what shows it, with speech from the package."""
    (chunk,) = audio.glob("morning-walk/chunk-001.*")
    session = home / "recordings" / "morning-walk"
    session.mkdir(parents=True)
    shutil.copy(chunk, session)
    printed = check(command, "run", "--source", "recordings", cwd=home, BATCH_ENGINE="pocketsphinx")
    assert re.search(r"^Run \S+: completed, 1 done, 0 failed$", printed, re.MULTILINE), printed
    assert "morning" in check(command, "export", "morning-walk", "--source", "recordings", cwd=home)
    assert "GPU starts" in check(command, "report", "--format", "html", cwd=home)
    assert "\nbatchscribe_runs_total{" in check(command, "metrics", cwd=home)


def test_pip_installs_it_into_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    check(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    link_dependencies(environment, tmp_path / "dependencies")
    check(environment / "bin" / "python", "-m", "pip", "install", "--no-deps", wheel, cwd=tmp_path)
    command = environment / "bin" / "batchscribe"
    check_job(command, tmp_path, check_package(command, tmp_path))


def test_uv_installs_it_as_a_tool(wheel: Path, tmp_path: Path) -> None:
    if UV is None:
        missing("uv")
    names = {re.split(r"[^\w.-]", line)[0] for line in requires("batchscribe") or () if "extra" not in line}
    overrides = tmp_path / "overrides.txt"
    overrides.write_text("".join(f"{name}; sys_platform == 'never'\n" for name in sorted(names)))
    places = {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    words = ("--python", sys.executable, "--overrides", overrides, wheel)
    check(UV, "tool", "install", *words, cwd=tmp_path, **places)
    link_dependencies(tmp_path / "tools" / "batchscribe", tmp_path / "dependencies")
    check_package(tmp_path / "bin" / "batchscribe", tmp_path)
