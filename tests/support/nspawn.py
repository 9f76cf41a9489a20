"""Real systemd as process 1, in a container that a test makes of the machine it runs on.

The container's disk is an overlay: below it this machine's `/`, read only, above it a tmpfs that ends with
the container. So it has every program that we have, and the repository and its virtual environment at their
own paths; what it writes elsewhere than in shared folders is gone afterwards. `systemd-nspawn --boot
--register=no` needs no systemd outside. Everything happens in namespaces of mounts and of processes that end
with nspawn, which the kernel kills when the test process dies. A boot takes well under a second.

Known of it: the network is that of the machine (a server on 127.0.0.1 is there on both sides);
`/proc/sys/kernel/random/boot_id` is new at every boot, but clocks and uptime are the machine's; units run as
root, for an interpreter below /root can be read by nobody else; the control groups are version 2 at
/sys/fs/cgroup, as on any host of today; `/tmp` is the container's own, but for the shared folders in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psutil

from support.s3 import missing

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
"""Bounds for what hangs, in seconds; not a measure of anything."""
UNITS = "/etc/systemd/system"
_SCRIPT = Path(__file__).with_name("boot_overlay.sh")
_PROGRAMS = ("systemd-nspawn", "nsenter", "unshare", "setpriv", "journalctl")
_NO_UNITS = (
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-udev-settle.service",
    "systemd-hwdb-update.service",
    "systemd-tmpfiles-clean.timer",
    "getty.target",
    "console-getty.service",
)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Container:
    """One machine of systemd's own. `shared` has the same path, and is written, on both sides."""

    folder: Path
    name: str = field(default_factory=lambda: f"batchscribe-{uuid.uuid4().hex[:12]}")
    shared: list[Path] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    leader: int = 0

    def __post_init__(self) -> None:
        for name in ("layer", "root", "journal", "seed"):
            (self.folder / name).mkdir(parents=True)
        self.write("/etc/fstab", "")
        self.write("/etc/machine-id", f"{uuid.uuid4().hex}\n")
        for unit in _NO_UNITS:
            self.link(f"{UNITS}/{unit}", "/dev/null")
        self.link(f"{UNITS}/default.target", "/usr/lib/systemd/system/multi-user.target")
        self.link("/etc/systemd/system-generators/systemd-sysv-generator", "/dev/null")
        # Debian's rule empties /tmp at boot, and shared folders may lie below it.
        self.link("/etc/tmpfiles.d/tmp.conf", "/dev/null")

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """Puts a file on the disk that the next boot finds; `path` as the container sees it."""
        file = self._seeded(path)
        file.write_text(text)
        file.chmod(mode)

    def link(self, path: str, target: str) -> None:
        """The same for a symbolic link, such as what `systemctl enable` leaves."""
        self._seeded(path).symlink_to(target)

    def enable(self, unit: str, target: str = "multi-user.target") -> None:
        """A unit that the next boot starts."""
        self.link(f"{UNITS}/{target}.wants/{unit}", f"{UNITS}/{unit}")

    def boot(self) -> None:
        """Starts it, and waits until systemd says that it is up. Again after a power-off: a new boot of
        the same machine, whose disk is what was written here, and whose journal goes on."""
        assert self.process is None or self.process.poll() is not None, "it is up"
        with self.console.open("ab") as console:
            self.process = subprocess.Popen(
                self._argv(),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={"PATH": _PATH, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )
        self.leader = self._found()
        for _ in self._looks("systemd did not come up"):
            # Also `degraded` is up: a unit that fails by design must not fail the boot.
            if self.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip() in {
                "running",
                "degraded",
            }:
                return

    def run(
        self,
        *argv: str,
        check: bool = True,
        cwd: str | Path = "/",
        given: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program in the container, as root, outside of any unit; `given` is its standard input."""
        entered = f"--target={self.leader} --mount --uts --ipc --net --pid --cgroup --root --wd".split()
        done = subprocess.run(
            ["nsenter", *entered, "--", "env", f"--chdir={cwd}", *argv],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            env={"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", **(environment or {})},
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.journal()}")
        return done

    def shows(self, unit: str, *properties: str) -> dict[str, str]:
        """What `systemctl show` says of a unit."""
        shown = self.run("systemctl", "show", f"--property={','.join(properties)}", unit).stdout
        return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)

    def journal(self, *units: str) -> str:
        """What was logged, of these units or of all; also after the power-off."""
        if self.up:
            self.run("journalctl", "--sync", check=False)
        chosen = [f"--unit={unit}" for unit in units]
        argv = ["journalctl", "--no-pager", "--quiet", f"--directory={self.folder / 'journal'}", *chosen]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout

    def wait_off(self, patience: float = PATIENCE) -> None:
        """Waits until the machine has switched itself off, and fails where it was not by itself."""
        assert self.process is not None
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it is still up:\n{self.journal()}") from None
        self._sweep()
        assert code == 0, f"it did not end by itself ({code}):\n{self.console.read_text()}"

    @property
    def up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def console(self) -> Path:
        return self.folder / "console.log"

    def kill(self) -> None:
        """Pulls the plug: the kernel ends every process of a namespace with its process 1."""
        if self.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for nspawn in psutil.Process(self.process.pid).children():
                nspawn.kill()  # first, so that its parent is there to bury it
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        self.process.kill()
        self.process.wait(PATIENCE)
        self._sweep()

    def _seeded(self, path: str) -> Path:
        file = self.folder / "seed" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        return file

    def _argv(self) -> list[str]:
        alone = not Path("/run/systemd/system").exists()
        return [
            # Process 1 of a namespace takes all within with it; systemd does not care for its parent's death.
            *("setpriv", "--pdeathsig=KILL", "unshare", "--pid", "--fork", "--kill-child=KILL"),
            *("--mount", "--mount-proc", "--propagation=private"),
            *("sh", str(_SCRIPT), str(self.folder), self.name if alone else ""),
            *("systemd-nspawn", "--quiet", "--boot", "--register=no", *(["--keep-unit"] if alone else [])),
            *(f"--directory={self.folder / 'root'}", f"--machine={self.name}", "--console=pipe"),
            *("--link-journal=no", "--resolv-conf=off", "--timezone=off"),
            *(f"--bind-ro={path}" for path in _program()),
            f"--bind={self.folder / 'journal'}:/var/log/journal",
            *(f"--bind={path}" for path in self.shared),
        ]

    def _found(self) -> int:
        """The container's process 1, by its number outside."""
        assert self.process is not None
        for _ in self._looks("nspawn did not start"):
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                for below in psutil.Process(self.process.pid).children(recursive=True):
                    if _numbers_within(below.pid)[1:] == ["1"]:
                        return below.pid
        raise AssertionError

    def _looks(self, failure: str) -> Iterator[None]:
        for _ in range(int(PATIENCE / 0.1)):
            if not self.up:
                break
            yield
            time.sleep(0.1)
        self.kill()
        raise AssertionError(f"{failure}:\n{self.console.read_text()}")

    def _sweep(self) -> None:
        """Control groups outlive their last process by nature."""
        for tree in ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
            top = Path(tree, self.name)
            for folder in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
                _remove_when_empty(folder)
            _remove_when_empty(top)


@contextmanager
def container(folder: Path, *shared: Path) -> Iterator[Container]:
    """A machine that is not booted yet, and is certainly gone afterwards.

    `folder` is made here. `shared` folders are seen, and written, at the same path on both sides.
    """
    require()
    made = Container(folder, shared=list(shared))
    try:
        yield made
    finally:
        made.kill()


def require() -> None:
    """Fails in CI, and skips elsewhere, where no container can be had."""
    lacking = _lacking()
    if lacking:
        missing(lacking)


@cache
def _lacking() -> str:
    for program in _PROGRAMS:
        if shutil.which(program, path=_PATH) is None:
            return program
    if os.geteuid() != 0:
        return "systemd-nspawn for root"
    tried = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "sh", "-ec", _OVERLAY],
        capture_output=True,
        check=False,
        env={"PATH": _PATH},
    )
    return "overlay mounts of /" if tried.returncode else ""


_OVERLAY = """\
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
"""


def _program() -> Sequence[Path]:
    """What batchscribe is run from, wherever it is mounted here."""
    found = {REPOSITORY, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    return sorted(path for path in found if path != Path("/usr"))


def _numbers_within(pid: int) -> list[str]:
    """The numbers that a process has in the namespaces below ours: nspawn's own, then the container's."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name == "NSpid":
            return numbers.split()[1:]
    return []


def _remove_when_empty(group: Path) -> None:
    for _ in range(250):
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)  # the kernel takes a moment to let go of killed processes
        else:
            return
