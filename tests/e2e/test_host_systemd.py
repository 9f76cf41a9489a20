"""A host under real systemd, on its own: what its units do at boot, and what ends its power."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from batchscribe import __version__
from batchscribe.adapters.host_access.client import SshHost
from batchscribe.adapters.host_access.host_keys import pin_key
from batchscribe.adapters.host_access.setup import HostSetup
from batchscribe.adapters.host_access.ssh import Ssh
from batchscribe.adapters.host_access.units import unit_files
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.adapters.stores.directory import DirectoryStore
from batchscribe.controller.scan import Scanner
from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.host import (
    AGENT_UNIT,
    DEADMAN_UNITS,
    BootRecord,
    CheckRequest,
    ClaimLaunch,
    HostClaim,
    HostEnd,
    HostPlace,
    HostWaits,
    InstanceRecord,
)
from batchscribe.core.run.instances import MANIFEST_TAG, Instance, InstanceState
from batchscribe.core.run.manifest import EngineSpec, ExitRecord, Manifest, ManifestChunk, WorkerEnd, decode
from batchscribe.errors import LaunchError, ObjectNotFoundError
from support.cli import put_speech, wait_for
from support.forked import ENGINES
from support.metadata import Metadata, metadata_service
from support.nspawn import UNITS, Container, container
from support.sshd import SSHD, Sshd, configure, make_home

pytestmark = pytest.mark.e2e
INSTANCE = "i-0123456789abcdef0"
RUN = "run-1"
HOME = "/root/.batchscribe"
DEADMAN, DEADMAN_TIMER, DEADMAN_PATH = DEADMAN_UNITS
QUICK = HostWaits(first=60.0, linger=2.0, silence=120.0, after_report=1.0, grace=5.0, overtime=0.0)
"""Seconds that a test can wait; what they are in earnest, other tests know."""
SLOW = """\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/sleep 1800
TimeoutStopSec=1800
[Install]
WantedBy=multi-user.target
"""
"""A unit that stops in its own good time, as Ubuntu's unattended upgrades do."""


class SetUp:
    """A host as `gpu setup` leaves it, its bucket, and one run in it."""

    def __init__(self, machine: Container, bucket: Path, metadata: Metadata) -> None:
        self.machine = machine
        self.metadata = metadata
        self.bucket = bucket
        self.store = DirectoryStore(bucket)
        self.clock = SystemClock()

    def install(
        self,
        *,
        waits: HostWaits = QUICK,
        silence: int | None = None,
        timer: bool = True,
        created: bool = False,
    ) -> None:
        """The units, and where this host is. `silence` is the dead-man's patience in seconds; without its
        `timer` it comes only where it is asked to.
        """
        files = unit_files("root")
        self.machine.write("/usr/local/lib/batchscribe/deadman", files["deadman"].decode(), mode=0o755)
        for unit in (AGENT_UNIT, *DEADMAN_UNITS):
            self.machine.write(f"{UNITS}/{unit}", files[unit].decode())
        self.machine.enable(AGENT_UNIT)
        if timer:
            self.machine.enable(DEADMAN_TIMER, "timers.target")
        else:
            self.machine.write(
                f"{UNITS}/{DEADMAN_TIMER}.d/never.conf", "[Timer]\nOnBootSec=\nOnActiveSec=1h\n"
            )
        self.machine.enable(DEADMAN_PATH, "paths.target")
        if silence is not None:
            quick = f"[Service]\nEnvironment=SILENCE_SECONDS={silence}\n"
            self.machine.write(f"{UNITS}/{DEADMAN}.d/quick.conf", quick)
            quick = "[Timer]\nOnBootSec=\nOnUnitInactiveSec=\nOnActiveSec=1s\nOnUnitInactiveSec=1s\n"
            self.machine.write(f"{UNITS}/{DEADMAN_TIMER}.d/quick.conf", quick)
        # What will not end is given as long by systemd as by default, in earnest.
        self.machine.write("/etc/systemd/system.conf.d/quick.conf", "[Manager]\nDefaultTimeoutStopSec=2s\n")
        self.machine.link(f"{HOME}/venv", sys.prefix)
        place = HostPlace(instance=INSTANCE, home=self.bucket.as_uri(), waits=waits, created=created)
        self.machine.write(f"{HOME}/box.json", msgspec.json.encode(place).decode())
        self.machine.write(
            f"{HOME}/env",
            f"PYTHONPATH={ENGINES}\nAWS_EC2_METADATA_SERVICE_ENDPOINT={self.metadata.url}\n",
            mode=0o600,
        )

    def claim(self, launch: ClaimLaunch | None, *, minutes: float = 60.0) -> None:
        """What a controller leaves before the start; the clocks of a container are this machine's."""
        created = self.clock.booted()
        deadline = self.clock.now() + timedelta(minutes=minutes)
        claim = None
        if launch:
            claim = HostClaim(
                run=RUN, created=created, deadline=deadline, output=self.bucket.as_uri(), launch=launch
            )
            self.store.create(keys.intent(RUN), b"{}")
        record = InstanceRecord(
            instance=INSTANCE, release=__version__, at=created, boots=True, shows_tags=True, claim=claim
        )
        self.store.replace(keys.instance(INSTANCE), msgspec.json.encode(record))

    def give(self) -> int:
        """All that is there becomes manifest 0; how many chunks."""
        scanner = Scanner(
            self.store,
            self.store,
            clock=self.clock,
            min_age=timedelta(0),
            live_lock=lambda: None,
            decoder=None,
        )
        chunks = tuple(
            ManifestChunk(
                key=each.key,
                etag=each.etag,
                size=each.size,
                session=each.session,
                transcript=each.transcript,
            )
            for each in scanner.backlog().candidates
        )
        manifest = Manifest(
            run=RUN,
            worker=0,
            release=__version__,
            source=self.bucket.as_uri(),
            output=self.bucket.as_uri(),
            deadline=self.clock.now() + timedelta(hours=1),
            engine=EngineSpec(engine="scripted"),
            settings_hash="",
            chunks=chunks,
        )
        self.store.create(keys.manifest(RUN, 0), wire.encode(manifest))
        self.metadata.tags = {MANIFEST_TAG: wire.digest(manifest)}
        return len(chunks)

    def much_work(self) -> None:
        for copy in range(3):
            put_speech(self.bucket / f"copy{copy}", "team-meeting", "morning-walk", "notes")
        self.give()

    def frozen_worker(self) -> None:
        """A worker that was at work stands still from now on."""
        wait_for(self.there(keys.progress(RUN, 0)) for _ in range(9999))
        record = self.machine.run("cat", f"{HOME}/runs/{RUN}/0/process.json").stdout
        self.machine.run("kill", "-STOP", re.search(r'"pid":(\d+)', record)[1])  # type: ignore[index]

    def there(self, key: str) -> bool:
        try:
            self.store.get(key)
        except ObjectNotFoundError:
            return False
        return True

    def end(self) -> HostEnd:
        return decode(self.store.get(keys.host_end(RUN)).data, HostEnd)

    def word(self) -> ExitRecord:
        return wire.decode(self.store.get(keys.exit_record(RUN, 0)).data, ExitRecord)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SetUp]:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    with metadata_service() as metadata, container(tmp_path / "machine", bucket) as machine:
        yield SetUp(machine, bucket, metadata)


def test_a_host_that_boots_with_a_claim_works_and_powers_itself_off_alone(host: SetUp) -> None:
    put_speech(host.bucket, "notes")
    host.install()
    host.claim(ClaimLaunch.BOOT)
    chunks = host.give()
    host.machine.boot()
    host.machine.wait_off(180)
    assert (host.word().end, host.word().tally.done) == (WorkerEnd.FINISHED, chunks)
    assert (host.end().why, host.end().worker) == ("work ended", None)
    assert decode(host.store.get(keys.boot(RUN)).data, BootRecord).release == __version__
    assert "powering off: the host requested it" in host.machine.journal(DEADMAN)
    # The same claim at the next boot, by whomever: it was taken up once.
    host.machine.boot()
    wait_for(host.machine.shows(AGENT_UNIT, "ActiveState")["ActiveState"] == "inactive" for _ in range(9999))
    host.machine.run("systemctl", "start", DEADMAN)
    assert "another boot took it up" in host.machine.journal(AGENT_UNIT)
    assert host.machine.up


def test_a_worker_that_stands_still_is_ended_and_the_host_with_it(host: SetUp) -> None:
    host.install(waits=msgspec.structs.replace(QUICK, silence=10.0))
    host.much_work()
    host.claim(ClaimLaunch.BOOT)
    host.machine.boot()
    host.frozen_worker()
    host.machine.wait_off(120)
    assert host.end().worker == 0
    assert "no progress" in host.end().why
    assert not host.there(keys.exit_record(RUN, 0))


def test_the_dead_man_comes_where_the_host_s_own_process_does_not(host: SetUp) -> None:
    host.install(silence=8)
    host.much_work()
    host.claim(ClaimLaunch.BOOT)
    host.machine.boot()
    host.frozen_worker()
    host.machine.run("systemctl", "stop", AGENT_UNIT)
    host.machine.wait_off(120)
    assert re.search(r"powering off: no progress for \d+ s", host.machine.journal(DEADMAN))
    assert not host.there(keys.host_end(RUN))


def test_no_unit_that_is_slow_to_stop_holds_the_power_on(host: SetUp) -> None:
    host.install(waits=msgspec.structs.replace(QUICK, first=1.0))
    host.machine.write(f"{UNITS}/{DEADMAN}.d/force.conf", "[Service]\nEnvironment=FORCE_SECONDS=5\n")
    host.machine.write(f"{UNITS}/slow.service", SLOW)
    host.machine.enable("slow.service")
    host.claim(ClaimLaunch.BOOT)
    host.machine.boot()
    host.machine.wait_off(60)
    assert host.end().why == "no work came"


def test_an_agent_that_is_killed_is_followed_by_one_that_goes_on_with_the_same_worker(host: SetUp) -> None:
    host.install()
    for copy in range(3):
        put_speech(host.bucket / f"copy{copy}", "notes")
    chunks = host.give()
    host.claim(ClaimLaunch.BOOT)
    host.machine.boot()
    wait_for(host.there(keys.progress(RUN, 0)) for _ in range(9999))
    host.machine.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", AGENT_UNIT)
    host.machine.wait_off(180)
    assert (host.word().end, host.word().tally.done) == (WorkerEnd.FINISHED, chunks)
    assert host.end().why == "work ended"
    journal = host.machine.journal(AGENT_UNIT)
    assert journal.count("host.claim_taken") == 2
    assert journal.count("worker.started") == 1


def test_a_host_that_loses_its_power_and_boots_again_under_its_run_ends_what_is_left(host: SetUp) -> None:
    host.install()
    host.much_work()
    host.claim(ClaimLaunch.BOOT)
    host.machine.boot()
    wait_for(host.there(keys.progress(RUN, 0)) for _ in range(9999))
    host.machine.kill()
    host.machine.boot()
    host.machine.wait_off(60)
    assert (host.end().why, host.end().worker) == ("the GPU host was rebooted during the run", 0)
    (later,) = host.store.list(keys.later_boot(RUN, "").removesuffix(".json"))
    boots = [decode(host.store.get(key).data, BootRecord).boot for key in (keys.boot(RUN), later.key)]
    assert len({*boots}) == 2
    assert not host.there(keys.exit_record(RUN, 0))
    assert host.machine.journal(AGENT_UNIT).count("worker.started") == 1


def test_at_the_deadline_the_power_goes(host: SetUp) -> None:
    host.install()
    host.claim(ClaimLaunch.BOOT, minutes=0.06)
    host.machine.boot()
    host.machine.wait_off(120)
    assert host.end().why == "the deadline passed"


def test_over_ssh_too_a_host_without_work_powers_itself_off(host: SetUp) -> None:
    host.install(waits=msgspec.structs.replace(QUICK, first=3.0), timer=False)
    put_speech(host.bucket, "notes")
    host.claim(ClaimLaunch.SSH)
    host.machine.boot()
    host.machine.wait_off(120)
    assert host.end().why == "no work came"


def test_a_claim_that_is_taken_back_before_any_work_leaves_the_host_on(host: SetUp) -> None:
    host.install(waits=msgspec.structs.replace(QUICK, first=5.0), timer=False)
    host.claim(ClaimLaunch.BOOT)
    host.machine.boot()
    wait_for(host.there(keys.boot(RUN)) for _ in range(9999))
    host.claim(None)
    wait_for(host.machine.shows(AGENT_UNIT, "ActiveState")["ActiveState"] == "inactive" for _ in range(9999))
    host.machine.run("systemctl", "start", DEADMAN)
    assert "host.claim_released" in host.machine.journal(AGENT_UNIT)
    assert host.machine.run("find", "/run/batchscribe", "-type", "f").stdout == ""
    assert host.machine.up
    assert not host.there(keys.host_end(RUN))


@pytest.mark.parametrize("launch", [None, ClaimLaunch.HELD], ids=["started by a person", "held back"])
def test_a_host_without_a_claim_of_its_own_is_left_alone(host: SetUp, launch: ClaimLaunch | None) -> None:
    put_speech(host.bucket, "notes")
    host.install(silence=1, waits=HostWaits(first=0.0, linger=0.0, silence=0.0))
    host.claim(launch)
    host.give()
    host.machine.boot()
    wait_for(host.machine.shows(AGENT_UNIT, "ActiveState")["ActiveState"] == "inactive" for _ in range(9999))
    host.machine.run("systemctl", "start", DEADMAN)
    host.machine.run("systemctl", "start", DEADMAN)
    assert host.machine.shows(AGENT_UNIT, "Result", "NRestarts") == {"Result": "success", "NRestarts": "0"}
    assert host.machine.shows(DEADMAN, "Result") == {"Result": "success"}
    assert host.machine.run("find", "/run/batchscribe", "-type", "f").stdout == ""
    assert host.machine.up
    assert not host.there(keys.boot(RUN))


def test_a_created_machine_without_a_name_powers_itself_off(host: SetUp) -> None:
    """Its launch template does not let it show its tags: nothing but its image is known to it."""
    host.install(waits=msgspec.structs.replace(QUICK, store=3.0), timer=False, created=True)
    host.machine.boot()
    host.machine.wait_off(120)
    assert "powering off: the host requested it" in host.machine.journal(DEADMAN)


@pytest.fixture
def reached(tmp_path: Path) -> Iterator[tuple[Container, Sshd]]:
    """A machine that is up and bare, and a sshd in it; `gpu setup` comes as root."""
    folder = tmp_path / "sshd"
    home = make_home(folder)
    (folder / "programs" / "systemctl").unlink()  # here it may be the real one
    (home / ".batchscribe").mkdir()
    (home / ".batchscribe" / "venv").symlink_to(sys.prefix)
    with container(tmp_path / "machine", folder) as machine:
        machine.boot()
        config, port = configure(folder, home, path="/usr/sbin:/usr/bin:/sbin:/bin")
        machine.run("mkdir", "-p", "/run/sshd")
        machine.run("systemd-run", "--unit=its-sshd", str(SSHD), "-D", "-e", "-f", str(config))
        assert machine.process is not None
        yield machine, Sshd(folder, port, home, machine.process)


def test_the_set_up_brings_the_units_to_a_real_systemd(
    reached: tuple[Container, Sshd], tmp_path: Path
) -> None:
    machine, server = reached
    seen = Instance(id=INSTANCE, state=InstanceState.RUNNING, public_address="127.0.0.1")
    ssh = Ssh(server.options(tmp_path / "known_hosts"))
    bucket = DirectoryStore(server.folder, expected=True)
    wait_for(_pinned(ssh, seen))
    setup = HostSetup(
        client=SshHost(ssh),
        clock=SystemClock(),
        request=CheckRequest(
            now=SystemClock().now(),
            engine=EngineSpec(engine="scripted"),
            gpu=False,
            source=bucket.url,
            output=bucket.url,
        ),
        output=bucket,
        published=lambda _id: frozenset(),
        ssh=ssh,
    )
    bare = {each.what: each for each in setup.check(seen, boots=True)}
    assert not bare["units"].ok
    for _ in range(2):  # it can be repeated
        (finding,) = setup._install_units(seen)
        assert "powers itself off" in finding.detail
    files = unit_files("root")
    for unit in (AGENT_UNIT, *DEADMAN_UNITS):
        assert machine.run("cat", f"{UNITS}/{unit}").stdout.encode() == files[unit]
    there = machine.run("stat", "--format=%U %a", "/usr/local/lib/batchscribe/deadman").stdout
    assert there == "root 755\n"
    ready = {each.what: each for each in setup.check(seen, boots=True)}
    assert ready["units"].ok, ready["units"].detail
    assert machine.shows(AGENT_UNIT, "ActiveState") == {"ActiveState": "inactive"}
    # As the next boot would: it knows which instance it is, and finds no claim.
    machine.run("ln", "-s", str(server.home / ".batchscribe"), HOME)
    machine.run("systemctl", "start", AGENT_UNIT, DEADMAN)
    wait_for(machine.shows(AGENT_UNIT, "ActiveState")["ActiveState"] == "inactive" for _ in range(9999))
    assert "record.missing" in machine.journal(AGENT_UNIT)
    assert machine.shows(AGENT_UNIT, "Result") == {"Result": "success"}
    assert machine.up


def _pinned(ssh: Ssh, seen: Instance) -> Iterator[bool]:
    """As soon as its sshd answers."""
    while True:
        try:
            pin_key(ssh, seen)
        except LaunchError:
            yield False
        else:
            yield True
