"""The suite of launchers on the double, on this machine, and on an agent that real sshd or a boot starts."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from batchscribe import __version__
from batchscribe.adapters.host_access.client import SshHost
from batchscribe.adapters.host_access.launcher import AgentLauncher
from batchscribe.adapters.host_access.ssh import Ssh, connection_trouble
from batchscribe.adapters.local.launcher import LocalLauncher
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.adapters.stores.directory import DirectoryStore
from batchscribe.agent.boot import AgentSeams
from batchscribe.agent.host import GpuHost
from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.host import (
    ClaimLaunch,
    EnvironmentRequest,
    HostClaim,
    HostPlace,
    HostReply,
    HostWaits,
    InstanceRecord,
    StartPermit,
    StartRequest,
)
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.manifest import Manifest
from batchscribe.detached import try_lock
from batchscribe.errors import (
    HostTimeoutError,
    LaunchError,
    MisconfiguredError,
    PortClosedError,
    StoreUnavailableError,
)
from batchscribe.protocols import Store
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.launcher import FakeLauncher
from batchscribe.testing.launcher_suite import INSTANCE, LauncherCase, LauncherSuite, make_manifest
from batchscribe.testing.store import MemoryStore
from support.host_agent import Awake
from support.host_python import host_python
from support.sshd import Sshd, sshd
from support.stand_in import StandIns

URL = "file:///bucket/_batchscribe/runs/run-1/workers/0/manifest.json"
QUICK = HostWaits(store=0.0, after_report=0.1)


@dataclass
class FakeHost:
    """A host_access.client.HostClient that records what it is asked."""

    words: list[str] = field(default_factory=list)
    starts: list[StartRequest] = field(default_factory=list)

    def ask(self, instance: Instance, word: str, data: bytes = b"", *, timeout: float) -> HostReply:
        self.words.append(word)
        if word == "start":
            self.starts.append(wire.decode(data, StartRequest))
        return HostReply(release="over ssh")


@dataclass
class OverSsh:
    """A launcher, and a host behind a real sshd with the real agent; stand-ins are its workers."""

    launcher: AgentLauncher
    store: Store
    server: Sshd
    stand_ins: StandIns
    options: Callable[[], Ssh]

    def manifest(self, **changes: object) -> Manifest:
        return msgspec.structs.replace(make_manifest(output=self.store.url), **changes)

    def launch(self, **changes: object) -> None:
        given = self.manifest(**changes)
        self.store.create(keys.manifest(given.run, given.worker), wire.encode(given))
        self.launcher.launch(INSTANCE, given, URL)

    def by(self, program: Path, **settings: float) -> AgentLauncher:
        """A launcher whose remote Python is another program."""
        client = SshHost(self.options(), remote_python=str(program))
        return AgentLauncher(self.store, client, **settings)

    @property
    def environment(self) -> dict[str, str]:
        """What the first worker was started with."""
        found = self.stand_ins.notes()[0]["environment"]
        assert isinstance(found, dict)
        return found

    def keep_environment(self, text: str, mode: int = 0o600) -> None:
        path = self.server.home / ".batchscribe" / "env"
        path.write_text(text)
        path.chmod(mode)


class AwakeHost(Awake):
    """A host that booted with a claim: the real agent in this process, its workers real processes."""

    def __init__(self, folder: Path, stand_ins: StandIns) -> None:
        super().__init__()
        self.stand_ins = stand_ins
        self.launcher = AgentLauncher(self.store, FakeHost())
        self._processes = GpuHost(folder, self.clock, command=stand_ins.command)
        self.claimed()
        self._agent = self.agent()

    def seams(self) -> AgentSeams:
        return replace(super().seams(), workers=self._processes, announced=self._last_hash)

    def look(self, count: int = 4) -> None:
        for _ in range(count):
            self.clock.sleep(self._agent.step() or 0.0)

    def urls(self, count: int) -> list[object]:
        self.look()
        return self.stand_ins.urls(count)

    def ended(self) -> bool:
        self.look()
        return self.stand_ins.gone()

    def _last_hash(self) -> str | None:
        """Hash of the last manifest, as its controller writes it into the tag."""
        found = [info.key for info in self.store.list(keys.RUNS) if info.key.endswith("/manifest.json")]
        return hashlib.sha256(self.store.get(found[-1]).data).hexdigest() if found else None


@pytest.fixture
def stand_ins(tmp_path: Path) -> Iterator[StandIns]:
    stand_ins = StandIns(tmp_path / "stand-ins")
    yield stand_ins
    stand_ins.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with sshd(tmp_path / "sshd") as server:
        yield server


@pytest.fixture
def over_ssh(server: Sshd, stand_ins: StandIns, tmp_path: Path) -> Iterator[OverSsh]:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    store = DirectoryStore(bucket)
    store.create(keys.intent("run-1"), b"{}")
    place = HostPlace(instance=INSTANCE.id, home=store.url, waits=QUICK)
    GpuHost(server.home, SystemClock()).keep_place(place)
    options = server.options(tmp_path / "state" / "known_hosts", trusted=INSTANCE.id)
    python = host_python(tmp_path, stand_ins.command)
    client = SshHost(Ssh(options), remote_python=str(python))
    launcher = AgentLauncher(store, client)
    yield OverSsh(launcher, store, server, stand_ins, lambda: Ssh(options))
    store.create(keys.settlement("run-1"), b"{}")  # the agent ends


@pytest.fixture
def local(stand_ins: StandIns, tmp_path: Path) -> LocalLauncher:
    return LocalLauncher(
        tmp_path / "state", tmp_path / "logs", environment={"GIVEN": "yes"}, command=stand_ins.command
    )


@pytest.fixture
def awake(stand_ins: StandIns, tmp_path: Path) -> AwakeHost:
    return AwakeHost(tmp_path, stand_ins)


@pytest.fixture(params=["double", "local", "ssh", "boot"])
def case(request: pytest.FixtureRequest, stand_ins: StandIns) -> LauncherCase:
    if request.param == "double":
        urls: list[str] = []
        fake = FakeLauncher(on_launch=lambda _instance, _manifest, url: urls.append(url))
        fake.is_alive = lambda asked: (asked.run, asked.worker) not in fake.cancelled
        return LauncherCase(
            launcher=fake,
            started=lambda _count: urls,
            all_end=lambda: len(fake.cancelled) == len(urls),
        )
    if request.param == "boot":
        gpu_host: AwakeHost = request.getfixturevalue("awake")
        return LauncherCase(
            launcher=gpu_host.launcher,
            started=gpu_host.urls,
            all_end=gpu_host.ended,
            store=gpu_host.store,
            has_agent=True,
        )
    if request.param == "ssh":
        remote: OverSsh = request.getfixturevalue("over_ssh")
        return LauncherCase(
            launcher=remote.launcher,
            started=stand_ins.urls,
            all_end=stand_ins.gone,
            store=remote.store,
            has_agent=True,
        )
    local = request.getfixturevalue("local")
    return LauncherCase(launcher=local, started=stand_ins.urls, all_end=stand_ins.gone)


class TestEveryLauncher(LauncherSuite):
    """The suite that ships, on the double and on each of ours."""


@pytest.mark.parametrize("case", ["local", "ssh", "boot"], indirect=True)
def test_a_worker_is_started_with_the_hash_of_its_manifest(case: LauncherCase, stand_ins: StandIns) -> None:
    case.launch()
    case.started(1)
    (note,) = stand_ins.notes()
    assert note["arguments"] == [case.url(), "--sha256", wire.digest(case.manifest())]


def test_a_worker_that_died_or_ended_is_known_by_what_the_store_has(awake: AwakeHost) -> None:
    launcher = awake.launcher
    awake.give()
    awake.urls(1)
    assert launcher.alive(INSTANCE, make_manifest()) is None
    awake.stand_ins.kill()
    assert awake.stand_ins.gone()
    awake.look()
    assert launcher.alive(INSTANCE, make_manifest()) is False
    assert launcher.alive(INSTANCE, make_manifest(worker=1)) is None
    awake.store.create(keys.exit_record("run-1", 1), b"{}")
    assert launcher.alive(INSTANCE, make_manifest(worker=1)) is False
    awake.look()
    assert awake.deadman_files.off_at is not None


@pytest.mark.parametrize(
    ("launch", "run", "words", "borrowed"),
    [
        (ClaimLaunch.BOOT, "run-1", [], None),
        (ClaimLaunch.HELD, "run-1", [], None),
        (ClaimLaunch.SSH, "run-1", ["version", "start"], False),
        (None, "run-1", ["version", "start"], True),
        (ClaimLaunch.BOOT, "run-9", ["start"], True),
    ],
    ids=["boot", "held", "ssh", "no claim", "claim of another run"],
)
def test_the_claim_decides_who_starts_the_agent_and_whether_the_host_may_be_powered_off(
    launch: ClaimLaunch | None, run: str, words: list[str], borrowed: bool | None
) -> None:
    clock = FakeClock()
    store, host, given = MemoryStore(clock), FakeHost(), make_manifest()
    claim = None
    if launch:
        claim = HostClaim(
            run=run, created=clock.now(), deadline=given.deadline, output=store.url, launch=launch
        )
    record = InstanceRecord(instance=INSTANCE.id, release="recorded", at=clock.now(), claim=claim)
    store.create(keys.instance(INSTANCE.id), msgspec.json.encode(record))
    launcher = AgentLauncher(store, host)
    assert launcher.probe(INSTANCE) == ("over ssh" if "version" in words else "recorded")
    launcher.launch(INSTANCE, given, URL)
    launcher.alive(INSTANCE, given)
    launcher.cancel(INSTANCE, given)
    assert host.words == words
    assert [each.borrowed for each in host.starts] == ([] if borrowed is None else [borrowed])


@pytest.mark.parametrize("data", [None, b'{"instance":'], ids=["no record", "torn record"])
def test_without_a_record_that_can_be_read_the_host_is_asked(data: bytes | None) -> None:
    store, host = MemoryStore(FakeClock()), FakeHost()
    if data:
        store.create(keys.instance(INSTANCE.id), data)
    launcher = AgentLauncher(store, host)
    assert launcher.probe(INSTANCE) == "over ssh"
    launcher.launch(INSTANCE, make_manifest(), URL)
    assert [each.borrowed for each in host.starts] == [True]


def test_a_store_that_does_not_answer_is_no_missing_claim(awake: AwakeHost) -> None:
    def refuse(_method: str, _key: str) -> None:
        raise StoreUnavailableError("503")

    awake.store.before = refuse
    host = FakeHost()
    launcher = AgentLauncher(awake.store, host)
    assert launcher.alive(INSTANCE, make_manifest()) is None
    with pytest.raises(StoreUnavailableError):
        launcher.probe(INSTANCE)
    with pytest.raises(StoreUnavailableError):
        launcher.launch(INSTANCE, make_manifest(), URL)
    with pytest.raises(StoreUnavailableError):
        launcher.cancel(INSTANCE, make_manifest())
    assert host.words == []


def test_a_local_worker_gets_the_given_environment_whole_and_leads_its_session(
    local: LocalLauncher, stand_ins: StandIns, tmp_path: Path
) -> None:
    local.launch(INSTANCE, make_manifest(), URL)
    note = stand_ins.notes()[0]
    assert note["leads_session"]
    assert note["stdin"] == "/dev/null"
    assert set(note["environment"]) - {"LC_CTYPE"} == {"GIVEN"}  # type: ignore[call-overload]
    assert (tmp_path / "logs" / "worker-run-1-0.log").read_text() == "started\n"


def test_old_records_of_local_workers_go(stand_ins: StandIns, tmp_path: Path) -> None:
    clock = FakeClock()
    records = tmp_path / "state" / "workers"
    records.mkdir(parents=True)
    limit = (clock.now() - timedelta(days=30)).timestamp()
    for name, age in {"run-0-0.json": 1, "run-0-0.json.lock": 1, "run-9-0.json": 0, "notes.txt": 1}.items():
        (records / name).touch()
        os.utime(records / name, (0, limit - age))
    launcher = LocalLauncher(
        tmp_path / "state", tmp_path / "logs", environment={}, command=stand_ins.command, clock=clock
    )
    launcher.launch(INSTANCE, make_manifest(), URL)
    stand_ins.notes()
    assert sorted(path.name for path in records.iterdir()) == [
        "notes.txt",
        "run-1-0.json",
        "run-1-0.json.lock",
        "run-9-0.json",
    ]


def test_another_process_with_the_same_number_is_left_alone(
    local: LocalLauncher, stand_ins: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[object] = []
    monkeypatch.setattr("signal.pidfd_send_signal", lambda *what: sent.append(what))
    local.launch(INSTANCE, make_manifest(), URL)
    stand_ins.notes()
    record = tmp_path / "state" / "workers" / "run-1-0.json"
    record.write_text(record.read_text().replace('"ticks":', '"ticks":9'))
    local.cancel(INSTANCE, make_manifest())
    assert local.alive(INSTANCE, make_manifest()) is False
    assert sent == []


@pytest.mark.parametrize("run", ["../../escape", "", "a/b", ".hidden", "x\ny"])
def test_a_run_can_name_no_folder_but_its_own(local: LocalLauncher, stand_ins: StandIns, run: str) -> None:
    with pytest.raises(MisconfiguredError, match="name of a run"):
        local.launch(INSTANCE, make_manifest(run=run), URL)
    assert not list(stand_ins.folder.glob("*"))


def test_a_run_can_name_no_folder_of_the_host_but_its_own(over_ssh: OverSsh, stand_ins: StandIns) -> None:
    with pytest.raises(MisconfiguredError, match="not a readable"):
        over_ssh.launcher.launch(INSTANCE, make_manifest(run="../../escape"), URL)
    assert not list(stand_ins.folder.glob("*"))


def test_a_program_that_is_not_there_is_a_launch_that_failed(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path, tmp_path, environment={}, command=("/nonexistent/python",))
    with pytest.raises(LaunchError, match="could not be started"):
        launcher.launch(INSTANCE, make_manifest(), URL)


def test_a_remote_worker_gets_the_host_s_environment_and_nothing_of_the_connection(over_ssh: OverSsh) -> None:
    over_ssh.keep_environment("AWS_REGION=eu-west-1\nQUOTED='a $HOME'\n")
    over_ssh.launch()
    environment = over_ssh.environment
    assert (environment["AWS_REGION"], environment["QUOTED"]) == ("eu-west-1", "a $HOME")
    assert environment["HOME"] == str(over_ssh.server.home)
    assert not [name for name in environment if name.startswith("SSH_")]


def test_a_remote_worker_gets_the_manifest_s_region(over_ssh: OverSsh) -> None:
    over_ssh.launch(region="us-east-2", endpoint="http://127.0.0.1:9000")
    environment = over_ssh.environment
    assert (environment["AWS_REGION"], environment["AWS_ENDPOINT_URL"]) == (
        "us-east-2",
        "http://127.0.0.1:9000",
    )


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("AWS_REGION=\n", ("us-east-2", "http://127.0.0.1:9000")),
        ("AWS_REGION=eu-west-1\n", ("eu-west-1", "http://127.0.0.1:9000")),
        ("AWS_DEFAULT_REGION=eu-west-1\nAWS_ENDPOINT_URL_S3=http://own\n", (None, None)),
    ],
)
def test_a_region_of_the_host_goes_before_the_manifest_s(
    tmp_path: Path, written: str, told: tuple[str | None, str | None]
) -> None:
    gpu_host = GpuHost(tmp_path, SystemClock())
    gpu_host.keep_environment(EnvironmentRequest(text=written))
    environment = gpu_host.build_environment(region="us-east-2", endpoint="http://127.0.0.1:9000")
    assert (environment.get("AWS_REGION"), environment.get("AWS_ENDPOINT_URL")) == told


def test_the_host_forgets_old_runs_and_sets_no_region_of_its_own(over_ssh: OverSsh) -> None:
    runs = over_ssh.server.home / ".batchscribe" / "runs"
    for name in ("old", "young"):
        (runs / name / "0").mkdir(parents=True)
    os.utime(runs / "old", (0, 0))
    over_ssh.launch()
    assert sorted(path.name for path in runs.iterdir()) == ["run-1", "young"]
    assert not [name for name in over_ssh.environment if name.startswith("AWS_")]


def test_an_environment_file_that_others_can_read_is_refused(over_ssh: OverSsh) -> None:
    over_ssh.keep_environment("AWS_SECRET_ACCESS_KEY=canary\n", 0o644)
    with pytest.raises(MisconfiguredError, match="chmod 600") as caught:
        over_ssh.launch()
    assert "canary" not in str(caught.value)
    assert not list(over_ssh.stand_ins.folder.glob("*"))


def test_agent_and_worker_survive_the_end_of_sshd(over_ssh: OverSsh) -> None:
    over_ssh.launch()
    note = over_ssh.stand_ins.notes()[0]
    over_ssh.server.kill()
    assert len(over_ssh.stand_ins.alive()) == 1
    assert note["leads_session"]
    with pytest.raises(PortClosedError, match="connection refused"):
        over_ssh.launcher.probe(INSTANCE)
    over_ssh.launcher.cancel(INSTANCE, over_ssh.manifest())
    assert over_ssh.stand_ins.gone(), "its agent obeys through the store"


def test_an_agent_that_died_is_started_again_and_goes_on_with_the_same_worker(over_ssh: OverSsh) -> None:
    over_ssh.launch()
    over_ssh.stand_ins.notes()
    kill_agent(over_ssh.server.home)
    over_ssh.launch()
    over_ssh.launcher.cancel(INSTANCE, over_ssh.manifest())
    assert over_ssh.stand_ins.gone()
    assert len(over_ssh.stand_ins.notes()) == 1


def kill_agent(home: Path) -> None:
    """Kills the process that holds the agent's lock."""
    lock = home / ".batchscribe" / "agent.lock"
    inode = f":{lock.stat().st_ino} "
    (line,) = [line for line in Path("/proc/locks").read_text().splitlines() if inode in line]
    os.kill(int(line.split()[4]), signal.SIGKILL)
    for _ in range(400):
        with try_lock(lock) as free:
            if free:
                return
        time.sleep(0.05)
    raise AssertionError("the agent did not die")


def test_a_launch_after_a_lost_connection_finds_the_agent_at_work(over_ssh: OverSsh, tmp_path: Path) -> None:
    # The connection breaks after the start, before its reply.
    lossy = tmp_path / "lossy-python"
    lossy.write_text(f'#!/bin/sh\n{tmp_path}/box-python "$@" >/dev/null\nkill -9 $PPID\n')
    lossy.chmod(0o700)
    with pytest.raises(LaunchError):
        over_ssh.by(lossy).launch(INSTANCE, over_ssh.manifest(), URL)
    over_ssh.launch()
    assert len(over_ssh.stand_ins.notes()) == 1


def test_requests_are_data_and_never_shell_words(over_ssh: OverSsh) -> None:
    url = "s3://b/'; touch PWNED; '$(touch PWNED)\nb `touch PWNED`\"$(touch PWNED)"
    over_ssh.launcher.launch(INSTANCE, over_ssh.manifest(output=url), URL)
    home = over_ssh.server.home
    kept = (home / ".batchscribe" / "runs" / "run-1" / "start.json").read_bytes()
    assert wire.decode(kept, StartPermit).output == url
    assert not list(home.rglob("PWNED"))
    assert not Path("PWNED").exists()


def test_a_url_cannot_pose_as_an_option(over_ssh: OverSsh) -> None:
    with pytest.raises(MisconfiguredError, match="not the URL"):
        over_ssh.launcher.launch(INSTANCE, over_ssh.manifest(output="--help"), URL)
    assert not list(over_ssh.stand_ins.folder.glob("*"))


def test_a_frozen_server_blocks_no_caller(over_ssh: OverSsh) -> None:
    over_ssh.server.freeze()
    with pytest.raises(HostTimeoutError, match="timed out"):
        over_ssh.launcher.probe(INSTANCE)
    with pytest.raises(HostTimeoutError, match="timed out"):
        over_ssh.launch()


def test_a_connection_that_freezes_half_way_is_given_up(over_ssh: OverSsh, tmp_path: Path) -> None:
    freezing = tmp_path / "freezing-python"
    freezing.write_text("#!/bin/sh\nkill -STOP $PPID\nsleep 60\n")
    freezing.chmod(0o700)
    with pytest.raises(LaunchError, match=r"ssh to 127\.0\.0\.1"):
        over_ssh.by(freezing).launch(INSTANCE, over_ssh.manifest(), URL)


def test_time_runs_out_for_a_host_that_is_busy_for_ever(over_ssh: OverSsh, tmp_path: Path) -> None:
    slow = tmp_path / "slow-python"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o700)
    with pytest.raises(LaunchError, match="no answer in time"):
        over_ssh.by(slow, timeout=2.0).launch(INSTANCE, over_ssh.manifest(), URL)


def test_a_changed_host_key_is_refused(over_ssh: OverSsh, tmp_path: Path) -> None:
    launcher = over_ssh.launcher
    with sshd(tmp_path / "impostor") as impostor:
        known_hosts = tmp_path / "state" / "known_hosts"
        known_hosts.write_text(f"{INSTANCE.id} {impostor.host_key}\n")
        for call in (launcher.probe, lambda seen: launcher.launch(seen, over_ssh.manifest(), URL)):
            with pytest.raises(MisconfiguredError, match="--repin"):
                call(INSTANCE)
    assert not list(over_ssh.stand_ins.folder.glob("*"))


def test_a_host_key_that_was_never_pinned_is_refused(over_ssh: OverSsh, tmp_path: Path) -> None:
    (tmp_path / "state" / "known_hosts").unlink()
    with pytest.raises(MisconfiguredError, match="gpu setup"):
        over_ssh.launcher.probe(INSTANCE)


def test_the_pin_follows_the_id_and_not_the_address(over_ssh: OverSsh) -> None:
    elsewhere = Instance(id=INSTANCE.id, state=InstanceState.RUNNING, public_address="localhost")
    assert over_ssh.launcher.probe(elsewhere) == __version__


def test_a_key_that_the_host_does_not_accept_is_a_setting_to_fix(over_ssh: OverSsh) -> None:
    (over_ssh.server.folder / "user_key.pub").write_text("")
    with pytest.raises(MisconfiguredError, match="GPU_SSH_KEY_PATH"):
        over_ssh.launcher.probe(INSTANCE)


@pytest.mark.parametrize("found", [True, False])
def test_a_key_file_that_ssh_does_not_use_is_named(over_ssh: OverSsh, tmp_path: Path, found: bool) -> None:
    key = tmp_path / "the.pem"
    if found:
        key.write_bytes((over_ssh.server.folder / "user_key").read_bytes())
        key.chmod(0o644)
    ssh = Ssh(replace(over_ssh.options().options, key=key))
    trouble = connection_trouble(ssh.run(INSTANCE, ["true"], timeout=30.0), INSTANCE)
    assert isinstance(trouble, MisconfiguredError)
    assert (f"chmod 600 {key}" if found else f"no such identity: {key}") in str(trouble)


def test_a_host_without_a_worker_reports_how_to_install_one(over_ssh: OverSsh) -> None:
    with pytest.raises(MisconfiguredError, match="batchscribe gpu setup"):
        over_ssh.by(Path("~/.batchscribe/venv/bin/python")).probe(INSTANCE)


def test_a_manifest_of_another_version_is_refused(over_ssh: OverSsh) -> None:
    with pytest.raises(MisconfiguredError, match=r"its controller 0\.0\.1"):
        over_ssh.launch(release="0.0.1")
    assert not list(over_ssh.stand_ins.folder.glob("*"))


def test_a_login_that_chatters_does_not_confuse_the_answer(over_ssh: OverSsh, tmp_path: Path) -> None:
    chatty = tmp_path / "chatty-python"
    inner = tmp_path / "box-python"
    chatty.write_text(f'#!/bin/sh\necho "Welcome to the GPU"\necho "{{}}"\nexec {inner} "$@"\n')
    chatty.chmod(0o700)
    assert over_ssh.by(chatty).probe(INSTANCE) == __version__


def test_a_host_without_an_address_is_not_reached_yet(over_ssh: OverSsh) -> None:
    nowhere = Instance(id=INSTANCE.id, state=InstanceState.PENDING)
    with pytest.raises(LaunchError, match="no public address"):
        over_ssh.launcher.probe(nowhere)
    with pytest.raises(LaunchError, match="no public address"):
        over_ssh.launcher.launch(nowhere, over_ssh.manifest(), URL)
