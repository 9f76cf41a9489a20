"""Setting up a host for real: a sshd on loopback, a Python, and the wheel of these sources."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from batchscribe import __version__
from batchscribe.adapters.host_access import installation
from batchscribe.adapters.host_access.client import SshHost
from batchscribe.adapters.host_access.host_keys import find_pin, pin_key
from batchscribe.adapters.host_access.installation import EXTRAS, find_wheel, install_worker
from batchscribe.adapters.host_access.setup import HostSetup, SetupOptions, read_environment
from batchscribe.adapters.host_access.ssh import Ssh
from batchscribe.adapters.host_access.units import install_units
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.core import keys
from batchscribe.core.run.host import (
    AGENT_UNIT,
    DEADMAN_UNITS,
    CheckRequest,
    ClaimLaunch,
    HostClaim,
    HostPlace,
    InstanceRecord,
)
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.manifest import EngineSpec, decode
from batchscribe.errors import LaunchError, MisconfiguredError
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring.engines import engine_factory
from batchscribe.wiring.host_access import check_local
from support.sshd import Sshd, program, sshd
from support.stores import NOW

INSTANCE = Instance(id="i-0box", state=InstanceState.RUNNING, public_address="127.0.0.1")
OFFLINE_PYTHON = """\
#!/bin/sh
# A Python of the host: in the environments that it makes, the dependencies (pip too) are there already.
[ "$1 $2" = "-m venv" ] || exec {python} "$@"
{python} -m venv --without-pip "$3" || exit
for site in "$3"/lib/python3*/site-packages; do echo {site} > "$site/there.pth"; done
"""


def dependencies(folder: Path) -> Path:
    """A folder with all that is installed here, but batchscribe."""
    folder.mkdir()
    for each in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "batchscribe" not in each.name:
            (folder / each.name).symlink_to(each)
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    programs = tmp_path / "programs"
    programs.mkdir()
    python = programs / "python3.11"
    site = dependencies(tmp_path / "site")
    python.write_text(OFFLINE_PYTHON.format(python=sys.executable, site=site))
    python.chmod(0o700)
    with sshd(tmp_path / "sshd", path=f"{programs}:/usr/bin:/bin") as server:
        settings = server.home / ".config" / "pip"
        settings.mkdir(parents=True)
        (settings / "pip.conf").write_text("[global]\nno-index = true\n[install]\nno-compile = no\n")
        yield server


@pytest.fixture
def ssh(server: Sshd, tmp_path: Path) -> Ssh:
    return Ssh(server.options(tmp_path / "state" / "known_hosts"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = find_wheel(None, tmp_path_factory.mktemp("wheel"))
    assert built is not None
    return built


@pytest.fixture
def setup(ssh: Ssh, tmp_path: Path) -> HostSetup:
    clock = SystemClock()
    store = MemoryStore(clock)
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    url = bucket.as_uri()
    engine = EngineSpec(engine="pocketsphinx")
    request = CheckRequest(now=clock.now(), engine=engine, gpu=False, source=url, output=url)
    return HostSetup(
        client=SshHost(ssh),
        clock=clock,
        request=request,
        output=store,
        published=lambda _instance: frozenset(),
        ssh=ssh,
    )


@pytest.fixture
def equipped(setup: HostSetup, ssh: Ssh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostSetup:
    """A set-up of a host whose worker needs no installation, and whose engine is at work."""
    monkeypatch.setattr("batchscribe.adapters.host_access.setup.install_worker", lambda *_a, **_k: "Python 3")
    python = tmp_path / "box-python"
    program(python, f'exec {sys.executable} "$@"')
    busy = structs.replace(setup.request, busy=True)
    return replace(setup, client=SshHost(ssh, remote_python=str(python)), request=busy)


def test_an_empty_host_becomes_one_that_transcribes(
    setup: HostSetup, server: Sshd, wheel: Path, tmp_path: Path
) -> None:
    secrets = tmp_path / "worker.env"
    secrets.write_text("AWS_SECRET_ACCESS_KEY=canary\n")
    options = SetupOptions(extra="demo", wheel=wheel, env_file=secrets)
    findings = list(setup.set_up(INSTANCE, options))
    assert [finding for finding in findings if not finding.ok] == []
    assert "canary" not in repr(findings)
    seen = {finding.what: finding.detail for finding in findings}
    assert server.fingerprint in seen["host key"]
    assert __version__ in seen["installed"]
    assert {"clock", "disk", "environment file", "engine pocketsphinx", "store"} <= set(seen)
    kept = server.home / ".batchscribe" / "env"
    assert (kept.read_text(), kept.stat().st_mode & 0o777) == (secrets.read_text(), 0o600)
    record = decode(setup.output.get(keys.instance(INSTANCE.id)).data, InstanceRecord)
    assert (record.release, record.fingerprint) == (__version__, server.fingerprint)
    assert not record.boots
    assert "no systemd runs there" in seen["launch at boot"]
    assert "the host cannot power itself off" in seen["launch at boot"]
    again = next(setup.set_up(INSTANCE, options))
    assert "as pinned before" in again.detail


def test_the_disk_of_an_image_knows_that_it_is_one(
    equipped: HostSetup, server: Sshd, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SetupOptions(extra="demo", wheel=wheel, image=True)
    ending = replace(equipped, shutdown=lambda _instance: "terminate", shows_tags=lambda _instance: False)
    monkeypatch.setattr("batchscribe.adapters.host_access.setup.install_units", lambda *_: "")
    findings = {finding.what: finding for finding in ending.set_up(INSTANCE, options)}
    assert [each.what for each in findings.values() if not each.ok] == ["units"], "this host has no systemd"
    assert "recorded" not in findings
    place = decode((server.home / ".batchscribe" / "box.json").read_bytes(), HostPlace)
    assert (place.instance, place.created) == (INSTANCE.id, True)
    assert list(equipped.output.list()) == []
    assert equipped.record_image("ami-0123").ok
    record = decode(equipped.output.get(keys.instance("ami-0123")).data, InstanceRecord)
    assert (record.instance, record.release, record.engine) == ("ami-0123", __version__, "pocketsphinx")
    assert record.launch(ClaimLaunch.BOOT) is ClaimLaunch.BOOT


def test_an_installation_that_fails_leaves_the_old_one(
    ssh: Ssh, server: Sshd, wheel: Path, tmp_path: Path
) -> None:
    pin_key(ssh, INSTANCE)
    broken = tmp_path / wheel.name
    broken.write_bytes(b"no wheel")
    folder = server.home / ".batchscribe"
    folder.mkdir()
    (folder / "venv.old").mkdir()
    (folder / "venv").symlink_to("venv.old")
    with pytest.raises(LaunchError, match="could not be installed"):
        install_worker(ssh, INSTANCE, wheel=broken, extra="cpu")
    assert (folder / "venv").readlink() == Path("venv.old")
    assert [path.name for path in folder.glob("venv.*")] == ["venv.old"]


def test_packages_that_are_pinned_or_of_an_engine_are_installed_and_nothing_else_is(
    ssh: Ssh, server: Sshd, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin_key(ssh, INSTANCE)
    there = f"click=={version('click')} --hash=sha256:{'0' * 64}\n".encode()
    monkeypatch.setattr(installation, "read_pins", lambda _extra: there)
    engine = ("jiwer", "msgspec")
    assert install_worker(ssh, INSTANCE, wheel=wheel, extra="gpu", packages=engine).startswith("Python 3.")
    with pytest.raises(LaunchError, match="engine-of-another"):
        install_worker(ssh, INSTANCE, wheel=wheel, extra="gpu", packages=("jiwer", "engine-of-another==1"))
    # Without the pins the extra's own packages are asked for, and the host has no cuBLAS and no index.
    monkeypatch.setattr(installation, "read_pins", lambda _extra: None)
    with pytest.raises(LaunchError, match="could not be installed"):
        install_worker(ssh, INSTANCE, wheel=wheel, extra="gpu")
    missing = f"nvidia-cublas-cu12==12.9.9.9 --hash=sha256:{'0' * 64}\n".encode()
    monkeypatch.setattr(installation, "read_pins", lambda _extra: missing)
    with pytest.raises(LaunchError, match="could not be installed"):
        install_worker(ssh, INSTANCE, wheel=wheel, extra="gpu")
    assert len(list((server.home / ".batchscribe").glob("venv.*"))) == 1


def test_an_environment_beside_the_first_one_stays_as_long_as_it_is_wanted(
    ssh: Ssh, server: Sshd, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin_key(ssh, INSTANCE)
    there = f"click=={version('click')} --hash=sha256:{'0' * 64}\n".encode()
    monkeypatch.setattr(installation, "read_pins", lambda _extra: there)
    folder = server.home / ".batchscribe"
    assert install_worker(ssh, INSTANCE, wheel=wheel, extra="parakeet-gpu", beside=True)
    assert not (folder / "venv").exists()
    assert install_worker(ssh, INSTANCE, wheel=wheel, extra="gpu", kept=("parakeet-gpu",))
    beside = folder / "venv-parakeet-gpu"
    assert beside.resolve() != (folder / "venv").resolve()
    assert (beside / "bin" / "batchscribe").is_file()
    assert (folder / "venv" / "bin" / "batchscribe").is_file()
    assert install_worker(ssh, INSTANCE, wheel=wheel, extra="gpu")
    assert len(list(folder.glob("venv.*"))) == 1
    assert list(folder.glob("venv-*")) == []
    assert (folder / "venv" / "bin" / "batchscribe").is_file()


@pytest.mark.parametrize(
    ("extra", "pinned"),
    [
        ("gpu", (b"ctranslate2==", b"nvidia-cublas-cu12==")),
        ("parakeet-gpu", (b"onnx-asr==", b"onnxruntime-gpu==")),
        ("parakeet", (b"onnx-asr==", b"onnxruntime==")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_pins_of_a_host_travel_in_the_wheel(wheel: Path, extra: str, pinned: tuple[bytes, ...]) -> None:
    ours = installation.read_pins(extra)
    assert ours is not None
    assert all(package in ours for package in pinned)
    assert zipfile.ZipFile(wheel).read(f"batchscribe/requirements/{extra}.txt") == ours


def test_what_nobody_pinned_has_no_pins() -> None:
    assert installation.read_pins("cpu") is None


def test_the_wheel_is_of_this_version_or_refused(tmp_path: Path) -> None:
    other = tmp_path / "batchscribe-0.0.1-py3-none-any.whl"
    other.write_bytes(b"")
    with pytest.raises(MisconfiguredError, match=__version__):
        find_wheel(other, tmp_path)
    with pytest.raises(MisconfiguredError, match="no file"):
        find_wheel(tmp_path / f"batchscribe-{__version__}-py3-none-any.whl", tmp_path)


def test_a_host_with_no_new_python_gets_one_by_uv(
    ssh: Ssh, server: Sshd, wheel: Path, tmp_path: Path
) -> None:
    """What uv is asked to do; it needs the network for the rest."""
    pin_key(ssh, INSTANCE)
    old = tmp_path / "programs"
    (old / "python3.11").unlink()
    asked = tmp_path / "asked"
    uv = old / "uv"
    uv.write_text(f'#!/bin/sh\necho "$@" >> {asked}\nexit 9\n')
    uv.chmod(0o700)
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        stale = old / name
        stale.write_text("#!/bin/sh\nexit 1\n")
        stale.chmod(0o700)
    with pytest.raises(LaunchError):
        install_worker(ssh, INSTANCE, wheel=wheel, extra="gpu")
    assert asked.read_text().startswith("venv --quiet --allow-existing --python >=3.11 ")
    assert list((server.home / ".batchscribe").glob("venv*")) == []


def test_our_uv_is_sent_to_a_host_that_has_none(
    ssh: Ssh, server: Sshd, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin_key(ssh, INSTANCE)
    programs = tmp_path / "programs"
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        stale = programs / name
        stale.unlink(missing_ok=True)
        stale.write_text("#!/bin/sh\nexit 1\n")
        stale.chmod(0o700)
    ours = tmp_path / "ours"
    ours.write_text(f"#!/bin/sh\necho sent >> {tmp_path}/asked\nexit 9\n")
    monkeypatch.setattr(shutil, "which", lambda *_args, **_more: str(ours))
    with pytest.raises(LaunchError):
        install_worker(ssh, INSTANCE, wheel=wheel, extra="gpu")
    assert (tmp_path / "asked").read_text() == "sent\n"
    monkeypatch.setattr("platform.machine", lambda: "vax")
    with pytest.raises(MisconfiguredError, match=r"no Python 3\.11"):
        install_worker(ssh, INSTANCE, wheel=wheel, extra="gpu")


def test_a_key_is_pinned_once_and_a_changed_one_needs_a_person(
    ssh: Ssh, server: Sshd, tmp_path: Path
) -> None:
    first = pin_key(ssh, INSTANCE)
    assert (first.fingerprint, first.new, first.compared) == (server.fingerprint, True, False)
    assert not pin_key(ssh, INSTANCE).new
    with sshd(tmp_path / "other") as other:
        elsewhere = Ssh(replace(ssh.options, port=other.port, key=other.folder / "user_key"))
        with pytest.raises(MisconfiguredError, match="--repin"):
            pin_key(elsewhere, INSTANCE)
        assert find_pin(ssh.options.known_hosts, INSTANCE.id) == server.fingerprint
        assert pin_key(elsewhere, INSTANCE, repin=True).fingerprint == other.fingerprint
        assert len(ssh.options.known_hosts.read_text().splitlines()) == 1


def test_a_published_fingerprint_decides(ssh: Ssh, server: Sshd) -> None:
    with pytest.raises(MisconfiguredError, match="nothing was pinned"):
        pin_key(ssh, INSTANCE, trusted=frozenset({"SHA256:" + "x" * 43}))
    assert find_pin(ssh.options.known_hosts, INSTANCE.id) is None
    assert pin_key(ssh, INSTANCE, trusted=frozenset({server.fingerprint})).compared


def test_a_console_that_may_not_be_read_is_said_and_no_obstacle(setup: HostSetup, server: Sshd) -> None:
    def denied(_instance: str) -> frozenset[str]:
        raise MisconfiguredError("the right ec2:GetConsoleOutput is missing")

    first = next(iter(replace(setup, published=denied).set_up(INSTANCE, SetupOptions())))
    assert server.fingerprint in first.detail
    assert "ec2:GetConsoleOutput" in first.detail


def test_other_pins_survive_a_new_one(ssh: Ssh, server: Sshd) -> None:
    neighbour = f"i-0neighbour {server.host_key}"
    ssh.options.known_hosts.parent.mkdir(parents=True)
    ssh.options.known_hosts.write_text(f"{neighbour}\n")
    pin_key(ssh, INSTANCE)
    assert neighbour in ssh.options.known_hosts.read_text().splitlines()


PLAYED_SYSTEMCTL = """
echo "systemctl $*" >> {log}
case "$1" in is-system-running) echo degraded; exit 1 ;; esac
"""
ROOT_BY_SUDO = """
[ "$1" = -n ] || exit 9
shift
echo "sudo $*" >> {log}
case "$1" in install) ;; *) "$@" ;; esac
"""
"""What would write into this machine's own folders is only noted."""


@pytest.fixture
def played_systemd(server: Sshd, tmp_path: Path) -> Path:
    """On the host a systemd runs, and a user who may become root; what they were asked, in this file."""
    log = tmp_path / "asked"
    program(server.programs / "systemctl", PLAYED_SYSTEMCTL.format(log=log))
    program(server.programs / "sudo", ROOT_BY_SUDO.format(log=log))
    program(server.programs / "id", "echo 1000")
    program(server.programs / "systemd-analyze", f'echo "verify $*" >> {log}')
    return log


def test_units_are_verified_installed_and_enabled(ssh: Ssh, played_systemd: Path, server: Sshd) -> None:
    pin_key(ssh, INSTANCE)
    assert install_units(ssh, INSTANCE) == ""
    asked = played_systemd.read_text()
    for unit in (AGENT_UNIT, *DEADMAN_UNITS):
        assert f"./{unit}" in asked.partition("sudo install")[0]
        assert f"sudo install -o root -g root -m 0644 {unit} /etc/systemd/system/{unit}" in asked
    assert "0755 deadman /usr/local/lib/batchscribe/deadman" in asked
    order = [line for line in asked.splitlines() if line.startswith("systemctl ") and "is-system" not in line]
    assert order == [
        "systemctl daemon-reload",
        f"systemctl enable {AGENT_UNIT}",
        "systemctl enable batchscribe-deadman.timer batchscribe-deadman.path",
        "systemctl restart batchscribe-deadman.timer batchscribe-deadman.path",
    ]
    unit = (server.home / ".batchscribe" / "incoming" / AGENT_UNIT).read_text()
    assert f"User={ssh.options.user}\n" in unit
    assert "$" not in unit


@pytest.mark.parametrize(
    ("played", "why"),
    [
        (("systemctl", "echo offline; exit 1"), "no systemd runs there"),
        (("sudo", "echo 'a password is required' >&2; exit 1"), "may not become root by `sudo -n`"),
        (("systemd-analyze", "echo 'no good' >&2; exit 1"), "rejects the units (no good)"),
        (("systemd-analyze", "echo './batchscribe-box.service:19: Unknown key' >&2"), "rejects the units"),
    ],
)
def test_a_host_that_cannot_have_the_units_is_told_so_and_left_as_it_was(
    ssh: Ssh, played_systemd: Path, server: Sshd, played: tuple[str, str], why: str
) -> None:
    pin_key(ssh, INSTANCE)
    program(server.programs / played[0], played[1])
    assert why in install_units(ssh, INSTANCE)
    asked = played_systemd.read_text() if played_systemd.exists() else ""
    assert "sudo install" not in asked
    assert "enable" not in asked


def test_an_installation_of_units_that_fails_is_an_error(
    ssh: Ssh, played_systemd: Path, server: Sshd
) -> None:
    pin_key(ssh, INSTANCE)
    program(server.programs / "sudo", 'case "$2" in install) echo "disk full" >&2; exit 1 ;; esac')
    with pytest.raises(LaunchError, match="disk full"):
        install_units(ssh, INSTANCE)


def test_a_host_with_units_is_recorded_so_and_keeps_its_claim(
    equipped: HostSetup, server: Sshd, wheel: Path, played_systemd: Path
) -> None:
    claim = HostClaim(
        run="run-1", created=NOW, deadline=NOW, output=equipped.request.output, launch=ClaimLaunch.BOOT
    )
    before = InstanceRecord(instance=INSTANCE.id, release="0", at=NOW, claim=claim)
    equipped.output.replace(keys.instance(INSTANCE.id), msgspec.json.encode(before))
    placed = replace(
        equipped, request=structs.replace(equipped.request, region="us-east-2"), shutdown=lambda _id: "stop"
    )
    findings = {each.what: each for each in placed.set_up(INSTANCE, SetupOptions(extra="demo", wheel=wheel))}
    assert [each for each in findings.values() if not each.ok] == []
    assert "powers itself off" in findings["launch at boot"].detail
    assert findings["when it powers off"].detail == "the instance will stop"
    assert "dead-man active" in findings["units"].detail
    record = decode(equipped.output.get(keys.instance(INSTANCE.id)).data, InstanceRecord)
    assert (record.boots, record.claim) == (True, claim)
    place = decode((server.home / ".batchscribe" / "box.json").read_bytes(), HostPlace)
    assert place == HostPlace(
        instance=INSTANCE.id, home=equipped.request.output, source=equipped.request.source, region="us-east-2"
    )
    # A later check misses what its record promises.
    program(server.programs / "systemctl", "exit 1")
    (units,) = [each for each in placed.check(INSTANCE) if each.what == "units"]
    assert not units.ok
    assert AGENT_UNIT in units.detail


def test_an_instance_that_would_not_survive_its_own_power_off_gets_no_units(
    equipped: HostSetup, wheel: Path, played_systemd: Path
) -> None:
    doomed = replace(equipped, shutdown=lambda _id: "terminate")
    findings = {each.what: each for each in doomed.set_up(INSTANCE, SetupOptions(extra="demo", wheel=wheel))}
    assert "launch at boot" not in findings
    assert "recorded" not in findings
    failed = findings["when it powers off"]
    assert not failed.ok
    assert "--instance-initiated-shutdown-behavior stop" in failed.fix
    assert not played_systemd.exists()


def test_a_right_that_is_missing_to_look_is_no_obstacle(setup: HostSetup) -> None:
    def denied(_instance: str) -> str:
        raise MisconfiguredError("the right ec2:DescribeInstanceAttribute is missing")

    finding = replace(setup, shutdown=denied)._check_shutdown(INSTANCE)
    assert finding.ok
    assert "ec2:DescribeInstanceAttribute" in finding.detail


def test_a_check_of_a_bare_host_names_the_mend(setup: HostSetup, ssh: Ssh) -> None:
    pin_key(ssh, INSTANCE)
    findings = list(setup.check(INSTANCE))
    assert [(finding.what, finding.ok) for finding in findings] == [
        ("address", True),
        ("ssh", True),
        ("worker", False),
    ]
    assert findings[-1].fix == "batchscribe gpu setup"


def test_a_check_without_a_way_in_ends_there(setup: HostSetup, server: Sshd) -> None:
    server.kill()
    findings = list(setup.check(INSTANCE))
    assert findings[-1].what == "ssh"
    assert not findings[-1].ok


@pytest.mark.parametrize("text", ["export\n= broken", "no assignment", "A='unclosed"])
def test_an_environment_file_is_names_and_values(tmp_path: Path, text: str) -> None:
    path = tmp_path / "worker.env"
    path.write_text(f"GOOD=1\n{text}\n")
    with pytest.raises(MisconfiguredError, match="line") as caught:
        read_environment(path)
    assert "broken" not in str(caught.value)
    path.write_text("# a comment\nGOOD=1\nEMPTY=\nexport ALSO='fine'\n")
    assert "ALSO" in read_environment(path)


def test_this_machine_is_looked_at_in_the_workers_own_environment(setup: HostSetup, tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    findings = {finding.what: finding.ok for finding in check_local(setup.request, environment)}
    assert findings == {"worker": True, "engine pocketsphinx": True, "store": True}


def test_a_finding_says_what_is_wrong(equipped: HostSetup, ssh: Ssh, tmp_path: Path) -> None:
    """An engine that cannot run and a store that is not there are findings, not crashes."""
    pin_key(ssh, INSTANCE)
    request = structs.replace(
        equipped.request,
        busy=False,
        engine=EngineSpec(engine="no-such-engine"),
        output=(tmp_path / "gone").as_uri(),
        gpu=True,
    )
    checking = replace(equipped, request=request)
    failed = {finding.what: finding for finding in checking.check(INSTANCE) if not finding.ok}
    assert {"engine no-such-engine", "store"} <= set(failed)
    assert all(finding.fix for finding in failed.values())
    if shutil.which("nvidia-smi") is None:
        assert failed["GPU driver"].detail == "nvidia-smi does not run"


def test_whatever_a_host_may_be_given_can_be_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) == set(project["optional-dependencies"])
    engines = project["entry-points"]["batchscribe.engines"]
    assert {engine_factory(engine).extra for engine in engines} <= set(EXTRAS)
