"""Brings a worker to a box: the wheel of this very version, and a script that installs it there."""

from __future__ import annotations

import importlib.util
import io
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import batchscribe
from batchscribe.adapters.host_access.ssh import Reply, Ssh, connection_trouble
from batchscribe.core.run.instances import Instance
from batchscribe.errors import LaunchError, MisconfiguredError

EXTRAS = ("gpu", "cpu", "demo", "parakeet-gpu", "parakeet")
GPU_EXTRAS = {"gpu", "parakeet-gpu"}
EXTRA_OF = {"parakeet": "parakeet-gpu"}
"""What a box with a GPU needs for an engine; for all others it is `gpu`."""
INSTALL_SECONDS = 1800.0
"""CUDA's libraries alone are more than half a gigabyte."""
_UV_WANTED = 41
_UNPACK = (
    "umask 077 && rm -rf ~/.batchscribe/incoming && mkdir -p ~/.batchscribe/incoming "
    "&& cd ~/.batchscribe/incoming && tar -xf - && sh ./install.sh"
)
_EXECUTABLE = {"uv", "install.sh"}


def find_wheel(given: Path | None, folder: Path) -> Path | None:
    """The wheel of this version: the given one, else built from the sources into `folder`.

    None where this is an installed package without sources: the box takes the wheel from its index.
    Raises MisconfiguredError for a wheel of another version, or where building fails.
    """
    if given is None:
        sources = _sources()
        given = _build(sources, folder) if sources else None
    if given is not None and not given.name.startswith(f"batchscribe-{batchscribe.__version__}-"):
        raise MisconfiguredError(
            f"{given.name} is not the wheel of batchscribe {batchscribe.__version__}: "
            "the box needs this version"
        )
    if given is not None and not given.is_file():
        raise MisconfiguredError(f"there is no file {given}")
    return given


def install(ssh: Ssh, instance: Instance, *, wheel: Path | None, extra: str) -> str:
    """Installs the worker in a new environment on the box, and switches to it at the end.

    Returns what the box's Python says of itself. What was installed before stays where it fails.
    Raises LaunchError, MisconfiguredError.
    """
    if extra not in EXTRAS:
        raise MisconfiguredError(f"there is no extra {extra!r}: it is one of {', '.join(EXTRAS)}")
    script = resources.files(__package__).joinpath("installation.sh").read_bytes()
    files = {
        "install.sh": script,
        "extra": f"{extra}\n".encode(),
        "release": f"{batchscribe.__version__}\n".encode(),
    }
    if wheel:
        files[wheel.name] = wheel.read_bytes()
    if pinned := pins(extra):
        files["pins.txt"] = pinned
    reply = run_installer(ssh, instance, files)
    if reply.code == _UV_WANTED:
        reply = run_installer(ssh, instance, files | {"uv": _own_uv(reply.stdout.decode().strip(), instance)})
    trouble = connection_trouble(reply, instance)
    if trouble:
        raise trouble
    if reply.code != 0:
        raise LaunchError(f"the worker could not be installed on {instance.id}: {reply.complaint}")
    return reply.stdout.decode(errors="replace").strip().splitlines()[-1]


def pins(extra: str) -> bytes | None:
    """The exact packages of an extra, with their hashes; None where nobody pinned them.

    They lie in the package, and beside the sources.
    """
    name, sources = f"{extra}.txt", _sources()
    places = [resources.files("batchscribe").joinpath("requirements", name)]
    places += [sources / "requirements" / name] if sources else []
    return next((place.read_bytes() for place in places if place.is_file()), None)


def run_installer(ssh: Ssh, instance: Instance, files: Mapping[str, bytes]) -> Reply:
    """Unpacks the files in a folder of their own on the box, and runs `install.sh` there."""
    return ssh.run(instance, [_UNPACK], _packed(files), timeout=INSTALL_SECONDS)


def _packed(files: Mapping[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = 0o700 if name in _EXECUTABLE else 0o600
            tar.addfile(entry, io.BytesIO(data))
    return archive.getvalue()


def _own_uv(machine: str, instance: Instance) -> bytes:
    """Our uv, for a box of the same kind that has neither a new Python nor a way to get uv."""
    ours = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if ours is None or machine != platform.machine():
        raise MisconfiguredError(
            f"{instance.id} has no Python 3.11 with venv, and no uv to bring one: install one of them there"
            + (", or uv here (`pip install uv`)" if machine == platform.machine() else "")
        )
    return Path(ours).read_bytes()


def _sources() -> Path | None:
    """The source tree that this package runs from, if it does."""
    root = Path(batchscribe.__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "src" / "batchscribe").is_dir() else None


def _build(sources: Path, folder: Path) -> Path:
    if importlib.util.find_spec("hatchling"):
        argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    else:
        argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(sources)]
    done = subprocess.run(argv, cwd=sources, capture_output=True, text=True, check=False)
    built = sorted(folder.glob("batchscribe-*.whl"))
    if done.returncode != 0 or not built:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise MisconfiguredError(
            f"the wheel could not be built from {sources}: {lines[-1] if lines else 'no reason given'}; "
            "build it by hand and name it with --wheel"
        )
    return built[-1]
