"""Installs a worker on a GPU host: wheel and install script."""

from __future__ import annotations

import importlib.util
import io
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.metadata import metadata
from pathlib import Path

import batchscribe
from batchscribe.adapters.host_access.ssh import Reply, Ssh, connection_trouble
from batchscribe.core.run.instances import Instance
from batchscribe.errors import LaunchError, MisconfiguredError

EXTRAS = tuple(metadata("batchscribe").get_all("Provides-Extra") or ())
INSTALL_SECONDS = 1800.0
"""CUDA's libraries alone are more than half a gigabyte."""
_UV_WANTED = 41
_UNPACK = (
    "umask 077 && rm -rf ~/.batchscribe/incoming && mkdir -p ~/.batchscribe/incoming "
    "&& cd ~/.batchscribe/incoming && tar -xf - && sh ./install.sh"
)
_EXECUTABLE = {"uv", "install.sh"}


def find_wheel(given: Path | None, folder: Path) -> Path | None:
    """Returns the given wheel of this version, or builds one into `folder`.

    None if this is an installed package without sources: the host gets the wheel from its index. Raises
    MisconfiguredError for a wheel of another version, or if the build fails.
    """
    if given is None:
        sources = _find_sources()
        given = _build_wheel(sources, folder) if sources else None
    if given is not None and not given.name.startswith(f"batchscribe-{batchscribe.__version__}-"):
        raise MisconfiguredError(
            f"{given.name} is not the wheel of batchscribe {batchscribe.__version__}: "
            "the GPU host needs this version"
        )
    if given is not None and not given.is_file():
        raise MisconfiguredError(f"there is no file {given}")
    return given


def install_worker(
    ssh: Ssh,
    instance: Instance,
    *,
    wheel: Path | None,
    extra: str,
    packages: Sequence[str] = (),
    beside: bool = False,
    kept: Sequence[str] = (),
) -> str:
    """Installs the worker in a new environment, then switches to it.

    `packages`: further requirements, from the host's index. `beside`: the environment is the extra's own,
    beside the host's first one, whose installation removes those with extras that are not in `kept`. Returns
    the version of the host's Python. If the installation fails, the previous one stays. Raises LaunchError,
    MisconfiguredError.
    """
    if extra not in EXTRAS:
        raise MisconfiguredError(f"there is no extra {extra!r}: use one of {', '.join(EXTRAS)}")
    script = resources.files(__package__).joinpath("installation.sh").read_bytes()
    files = {
        "install.sh": script,
        "extra": f"{extra}\n".encode(),
        "release": f"{batchscribe.__version__}\n".encode(),
        "name": f"venv-{extra}\n".encode() if beside else b"venv\n",
    }
    if not beside:
        files["kept"] = "".join(f"venv-{each}\n" for each in kept).encode()
    if wheel:
        files[wheel.name] = wheel.read_bytes()
    if pinned := read_pins(extra):
        files["pins.txt"] = pinned
    if packages:
        files["packages.txt"] = "".join(f"{package}\n" for package in packages).encode()
    reply = run_installer(ssh, instance, files)
    if reply.code == _UV_WANTED:
        reply = run_installer(
            ssh, instance, files | {"uv": _read_uv(reply.stdout.decode().strip(), instance)}
        )
    if failure := connection_trouble(reply, instance):
        raise failure
    if reply.code != 0:
        raise LaunchError(f"the worker could not be installed on {instance.id}: {reply.complaint}")
    return reply.stdout.decode(errors="replace").strip().splitlines()[-1]


def read_pins(extra: str) -> bytes | None:
    """The pinned packages of an extra, with hashes; None if not pinned.

    They are in the package, or in the sources.
    """
    name, sources = f"{extra}.txt", _find_sources()
    places = [resources.files("batchscribe").joinpath("requirements", name)]
    places += [sources / "requirements" / name] if sources else []
    return next((place.read_bytes() for place in places if place.is_file()), None)


def run_installer(ssh: Ssh, instance: Instance, files: Mapping[str, bytes]) -> Reply:
    """Unpacks the files on the host, and runs `install.sh` there."""
    return ssh.run(instance, [_UNPACK], _pack_files(files), timeout=INSTALL_SECONDS)


def _pack_files(files: Mapping[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = 0o700 if name in _EXECUTABLE else 0o600
            tar.addfile(entry, io.BytesIO(data))
    return archive.getvalue()


def _read_uv(machine: str, instance: Instance) -> bytes:
    """Reads this machine's uv for a host without Python and uv."""
    ours = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if ours is None or machine != platform.machine():
        raise MisconfiguredError(
            f"{instance.id} has no Python 3.11 with venv, and no uv to install it: install one of them there"
            + (", or uv here (`pip install uv`)" if machine == platform.machine() else "")
        )
    return Path(ours).read_bytes()


def _find_sources() -> Path | None:
    """The source tree of this package; None if installed without it."""
    root = Path(batchscribe.__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "src" / "batchscribe").is_dir() else None


def _build_wheel(sources: Path, folder: Path) -> Path:
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
            "build it manually and pass it with --wheel"
        )
    return built[-1]
