"""What every Launcher does: one suite on the double, on this machine, over a real sshd, and by a box's own
boot.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from batchscribe import __version__
from batchscribe.adapters.launch_boot import BootLauncher, LaunchEither
from batchscribe.adapters.launch_local import LocalLauncher
from batchscribe.adapters.launch_ssh import SshBox, SshLauncher
from batchscribe.adapters.ssh import Ssh
from batchscribe.core import keys
from batchscribe.core import manifest as wire
from batchscribe.core.box import BoxClaim, BoxPlace, ClaimLaunch, InstanceRecord, read
from batchscribe.core.instances import Instance, InstanceState
from batchscribe.core.manifest import EngineSpec, Manifest
from batchscribe.errors import LaunchError, MisconfiguredError, StoreUnavailableError
from batchscribe.protocols import Launcher
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.launcher import FakeLauncher
from batchscribe.testing.store import MemoryStore
from batchscribe.worker.boot import Boot, BoxAgent, BoxSeams
from batchscribe.worker.box import Box
from batchscribe.worker.markers import MarkerFiles
from support.box_python import box_python
from support.sshd import Sshd, sshd
from support.stand_in import StandIns

INSTANCE = Instance(id="i-0box", state=InstanceState.RUNNING, public_address="127.0.0.1")
URL = "file:///bucket/_batchscribe/runs/run-1/workers/0/manifest.json"


def manifest(run: str = "run-1", worker: int = 0) -> Manifest:
    return Manifest(
        run=run,
        worker=worker,
        release=__version__,
        source="file:///bucket",
        output="file:///bucket",
        deadline=datetime(2030, 1, 1, tzinfo=UTC),
        engine=EngineSpec(engine="pocketsphinx"),
        settings_hash="0",
        chunks=(),
    )


@dataclass
class Case:
    launcher: Launcher
    urls: Callable[[int], list[object]]
    """The manifests of the workers that were started, as soon as there are so many."""
    ended: Callable[[], bool]
    give: Callable[[Manifest], object] = lambda _manifest: None
    """Puts a manifest to where its URL says."""

    def launch(self, given: Manifest) -> None:
        self.give(given)
        self.launcher.launch(INSTANCE, given, URL)


@dataclass
class AwakeBox:
    """A box whose own agent goes by the store: the real one, with real processes for its workers."""

    store: MemoryStore
    clock: FakeClock
    agent: BoxAgent
    markers: Path
    stand_ins: StandIns

    def give(self, manifest: Manifest) -> None:
        self.store.create(keys.manifest(manifest.run, manifest.worker), wire.encode(manifest))

    def look(self, count: int = 4) -> None:
        for _ in range(count):
            self.clock.sleep(self.agent.step() or 0.0)

    def urls(self, count: int) -> list[object]:
        self.look()
        return [note["url"] for note in self.stand_ins.notes(count)]

    def ended(self) -> bool:
        self.look()
        return self.stand_ins.gone()

    @property
    def off(self) -> bool:
        return (self.markers / "off").exists()


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
def over_ssh(server: Sshd, stand_ins: StandIns, tmp_path: Path) -> SshLauncher:
    options = server.options(tmp_path / "state" / "known_hosts", trusted=INSTANCE.id)
    python = box_python(tmp_path, stand_ins)
    return SshLauncher(SshBox(Ssh(options), remote_python=str(python)))


@pytest.fixture
def local(stand_ins: StandIns, tmp_path: Path) -> LocalLauncher:
    return LocalLauncher(
        tmp_path / "state", tmp_path / "logs", environment={"GIVEN": "yes"}, command=stand_ins.command
    )


@pytest.fixture
def awake(stand_ins: StandIns, tmp_path: Path) -> AwakeBox:
    """It booted with a claim of run-1, and waits for work."""
    clock = FakeClock()
    store = MemoryStore(clock, url="file:///bucket")
    claim = BoxClaim(
        run="run-1",
        created=clock.now(),
        deadline=manifest().deadline,
        output=store.url,
        launch=ClaimLaunch.BOOT,
    )
    record = InstanceRecord(
        instance=INSTANCE.id, release=__version__, at=clock.now(), boots=True, claim=claim
    )
    store.create(keys.instance(INSTANCE.id), msgspec.json.encode(record))
    store.create(keys.intent("run-1"), b"{}")
    seams = BoxSeams(
        clock=clock,
        workers=Box(tmp_path, clock, command=stand_ins.command),
        marks=MarkerFiles(tmp_path / "markers"),
        home=lambda: store,
        runs=lambda _claim: store,
    )
    agent = BoxAgent(BoxPlace(instance=INSTANCE.id, home=store.url), Boot(id="b", at=clock.now()), seams)
    return AwakeBox(store, clock, agent, tmp_path / "markers", stand_ins)


@pytest.fixture(params=["double", "local", "ssh", "boot"])
def case(request: pytest.FixtureRequest, stand_ins: StandIns) -> Case:
    if request.param == "double":
        fake = FakeLauncher()
        fake.is_alive = lambda asked: (asked.run, asked.worker) not in fake.cancelled
        return Case(
            fake,
            lambda _count: list(fake.launched.values()),
            lambda: len(fake.cancelled) == len(fake.launched),
        )
    if request.param == "boot":
        box: AwakeBox = request.getfixturevalue("awake")
        return Case(BootLauncher(box.store, box.store), box.urls, box.ended, box.give)
    launcher = request.getfixturevalue("local" if request.param == "local" else "over_ssh")
    return Case(launcher, lambda count: [note["url"] for note in stand_ins.notes(count)], stand_ins.gone)


def test_the_probe_tells_the_version_of_the_worker(case: Case) -> None:
    assert case.launcher.probe(INSTANCE) == __version__


def test_a_worker_is_started_on_its_manifest(case: Case) -> None:
    case.launch(manifest())
    assert case.urls(1) == [URL]


def test_a_second_launch_of_the_same_worker_changes_nothing(case: Case) -> None:
    case.launch(manifest())
    case.launch(manifest())
    assert case.urls(1) == [URL]


@pytest.mark.parametrize("case", ["double", "local", "ssh"], indirect=True)
def test_workers_may_stand_side_by_side(case: Case) -> None:
    case.launch(manifest())
    case.launch(manifest())
    case.launch(manifest(worker=1))
    assert case.urls(2) == [URL, URL]


def test_an_ended_worker_is_not_started_again(case: Case) -> None:
    case.launch(manifest())
    case.urls(1)
    case.launcher.cancel(INSTANCE, manifest())
    assert case.ended()
    case.launch(manifest())
    assert case.urls(1) == [URL]


def test_a_cancelled_worker_ends_and_repeating_it_is_harmless(case: Case) -> None:
    case.launch(manifest())
    case.urls(1)
    case.launcher.cancel(INSTANCE, manifest())
    assert case.ended()
    case.launcher.cancel(INSTANCE, manifest())


@pytest.mark.parametrize("case", ["double", "local", "ssh"], indirect=True)
def test_a_worker_is_alive_from_its_launch_to_its_end(case: Case) -> None:
    assert case.launcher.alive(INSTANCE, manifest()) is False
    case.launch(manifest())
    case.urls(1)
    assert case.launcher.alive(INSTANCE, manifest()) is True
    assert case.launcher.alive(INSTANCE, manifest(worker=1)) is False
    case.launcher.cancel(INSTANCE, manifest())
    assert case.ended()
    assert case.launcher.alive(INSTANCE, manifest()) is False


def test_cancelling_what_never_ran_is_harmless(case: Case) -> None:
    case.launcher.cancel(INSTANCE, manifest("run-never"))
    assert case.launcher.probe(INSTANCE) == __version__


def test_only_the_box_itself_knows_that_its_worker_died(awake: AwakeBox) -> None:
    launcher = BootLauncher(awake.store, awake.store)
    awake.give(manifest())
    awake.urls(1)
    assert launcher.alive(INSTANCE, manifest()) is None
    awake.stand_ins.kill()
    assert awake.stand_ins.gone()
    awake.look()
    assert launcher.alive(INSTANCE, manifest()) is False
    assert launcher.alive(INSTANCE, manifest(worker=1)) is None
    awake.look()
    assert awake.off


def test_a_box_that_was_never_set_up_cannot_launch_by_itself(awake: AwakeBox) -> None:
    with pytest.raises(MisconfiguredError, match="gpu setup"):
        BootLauncher(awake.store, awake.store).probe(replace(INSTANCE, id="i-0other"))


@pytest.mark.parametrize(
    ("launch", "chosen"),
    [(ClaimLaunch.BOOT, "boot"), (ClaimLaunch.SSH, "ssh"), (ClaimLaunch.HELD, "boot"), (None, "ssh")],
)
def test_the_claim_says_who_starts_the_worker(
    awake: AwakeBox, launch: ClaimLaunch | None, chosen: str
) -> None:
    key = keys.instance(INSTANCE.id)
    record = read(awake.store.get(key).data, InstanceRecord)
    claim = msgspec.structs.replace(record.claim, launch=launch) if record.claim and launch else None
    awake.store.replace(key, msgspec.json.encode(msgspec.structs.replace(record, claim=claim)))
    ways = {"boot": FakeLauncher(version="by boot"), "ssh": FakeLauncher(version="over ssh")}
    either = LaunchEither(awake.store, boot=ways["boot"], other=ways["ssh"])
    assert either.probe(INSTANCE) == ways[chosen].version
    either.launch(INSTANCE, manifest(), URL)
    assert either.alive(INSTANCE, manifest())
    either.cancel(INSTANCE, manifest())
    assert [len(each.launched) + len(each.cancelled) for each in ways.values()] == [
        2 * (name == chosen) for name in ways
    ]


def test_whether_it_lives_cannot_be_told_while_its_record_cannot_be_read(awake: AwakeBox) -> None:
    def refuse(_method: str, _key: str) -> None:
        raise StoreUnavailableError("503")

    boot = BootLauncher(awake.store, awake.store)
    awake.store.before = refuse
    for launcher in (boot, LaunchEither(awake.store, boot=boot, other=boot)):
        assert launcher.alive(INSTANCE, manifest()) is None
        with pytest.raises(StoreUnavailableError):
            launcher.probe(INSTANCE)
        with pytest.raises(StoreUnavailableError):
            launcher.cancel(INSTANCE, manifest())


def test_a_local_worker_gets_the_given_environment_whole_and_leads_its_session(
    local: LocalLauncher, stand_ins: StandIns, tmp_path: Path
) -> None:
    local.launch(INSTANCE, manifest(), URL)
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
    launcher.launch(INSTANCE, manifest(), URL)
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
    local.launch(INSTANCE, manifest(), URL)
    stand_ins.notes()
    record = tmp_path / "state" / "workers" / "run-1-0.json"
    record.write_text(record.read_text().replace('"ticks":', '"ticks":9'))
    local.cancel(INSTANCE, manifest())
    assert local.alive(INSTANCE, manifest()) is False
    assert sent == []


@pytest.mark.parametrize("run", ["../../escape", "", "a/b", ".hidden", "x\ny"])
def test_a_run_can_name_no_folder_but_its_own(
    local: LocalLauncher, over_ssh: SshLauncher, stand_ins: StandIns, run: str
) -> None:
    for launcher in (local, over_ssh):
        with pytest.raises(MisconfiguredError, match="name of a run"):
            launcher.launch(INSTANCE, manifest(run), URL)
    assert not list(stand_ins.folder.glob("*"))


def test_a_program_that_is_not_there_is_a_launch_that_failed(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path, tmp_path, environment={}, command=("/nonexistent/python",))
    with pytest.raises(LaunchError, match="could not be started"):
        launcher.launch(INSTANCE, manifest(), URL)


def test_a_remote_worker_gets_the_box_s_environment_and_nothing_of_the_connection(
    over_ssh: SshLauncher, server: Sshd, stand_ins: StandIns
) -> None:
    folder = server.home / ".batchscribe"
    folder.mkdir()
    (folder / "env").write_text("AWS_REGION=eu-west-1\nQUOTED='a $HOME'\n")
    (folder / "env").chmod(0o600)
    over_ssh.launch(INSTANCE, manifest(), URL)
    environment = stand_ins.notes()[0]["environment"]
    assert isinstance(environment, dict)
    assert (environment["AWS_REGION"], environment["QUOTED"]) == ("eu-west-1", "a $HOME")
    assert environment["HOME"] == str(server.home)
    assert not [name for name in environment if name.startswith("SSH_")]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (None, ("us-east-2", "http://127.0.0.1:9000")),
        ("AWS_REGION=\n", ("us-east-2", "http://127.0.0.1:9000")),
        ("AWS_REGION=eu-west-1\n", ("eu-west-1", "http://127.0.0.1:9000")),
        ("AWS_DEFAULT_REGION=eu-west-1\nAWS_ENDPOINT_URL_S3=http://own\n", (None, None)),
    ],
)
def test_a_remote_worker_is_told_where_aws_is_unless_its_box_knows(
    over_ssh: SshLauncher,
    server: Sshd,
    stand_ins: StandIns,
    written: str | None,
    told: tuple[str | None, str | None],
) -> None:
    if written is not None:
        folder = server.home / ".batchscribe"
        folder.mkdir()
        (folder / "env").write_text(written)
        (folder / "env").chmod(0o600)
    placed = SshLauncher(over_ssh._asks, region="us-east-2", endpoint="http://127.0.0.1:9000")
    placed.launch(INSTANCE, manifest(), URL)
    environment = stand_ins.notes()[0]["environment"]
    assert isinstance(environment, dict)
    assert (environment.get("AWS_REGION"), environment.get("AWS_ENDPOINT_URL")) == told


def test_a_remote_worker_is_told_nothing_that_nobody_knows(
    over_ssh: SshLauncher, stand_ins: StandIns
) -> None:
    over_ssh.launch(INSTANCE, manifest(), URL)
    environment = stand_ins.notes()[0]["environment"]
    assert isinstance(environment, dict)
    assert not [name for name in environment if name.startswith("AWS_")]


def test_the_box_forgets_old_runs_and_keeps_young_ones(over_ssh: SshLauncher, server: Sshd) -> None:
    runs = server.home / ".batchscribe" / "runs"
    for name in ("old", "young"):
        (runs / name / "0").mkdir(parents=True)
    os.utime(runs / "old", (0, 0))
    over_ssh.launch(INSTANCE, manifest(), URL)
    assert sorted(path.name for path in runs.iterdir()) == ["run-1", "young"]


def test_an_environment_file_that_others_can_read_is_refused(
    over_ssh: SshLauncher, server: Sshd, stand_ins: StandIns
) -> None:
    folder = server.home / ".batchscribe"
    folder.mkdir()
    (folder / "env").write_text("AWS_SECRET_ACCESS_KEY=canary\n")
    (folder / "env").chmod(0o644)
    with pytest.raises(MisconfiguredError, match="chmod 600") as caught:
        over_ssh.launch(INSTANCE, manifest(), URL)
    assert "canary" not in str(caught.value)
    assert not list(stand_ins.folder.glob("*"))


def test_a_worker_survives_the_end_of_sshd(over_ssh: SshLauncher, server: Sshd, stand_ins: StandIns) -> None:
    over_ssh.launch(INSTANCE, manifest(), URL)
    note = stand_ins.notes()[0]
    server.kill()
    assert len(stand_ins.alive()) == 1
    assert note["leads_session"]
    assert over_ssh.probe(INSTANCE) is None
    assert over_ssh.alive(INSTANCE, manifest()) is None


def test_a_launch_after_a_lost_connection_finds_the_worker_running(
    over_ssh: SshLauncher, server: Sshd, stand_ins: StandIns, tmp_path: Path
) -> None:
    # The connection breaks after the start, before its reply.
    lossy = tmp_path / "lossy-python"
    lossy.write_text(f'#!/bin/sh\n{box_python(tmp_path, stand_ins)} "$@" >/dev/null\nkill -9 $PPID\n')
    lossy.chmod(0o700)
    options = server.options(tmp_path / "state" / "known_hosts", trusted=INSTANCE.id)
    with pytest.raises(LaunchError):
        SshLauncher(SshBox(Ssh(options), remote_python=str(lossy))).launch(INSTANCE, manifest(), URL)
    over_ssh.launch(INSTANCE, manifest(), URL)
    assert len(stand_ins.notes()) == 1


@pytest.mark.parametrize(
    "url", ["s3://bucket/'; touch PWNED; '/m.json", "s3://b/$(touch PWNED)", "s3://b/a\nb `touch PWNED`"]
)
def test_keys_are_data_and_never_shell_words(
    over_ssh: SshLauncher, server: Sshd, stand_ins: StandIns, url: str
) -> None:
    over_ssh.launch(INSTANCE, manifest(), url)
    assert stand_ins.notes()[0]["arguments"] == [url]
    assert not list(server.home.rglob("PWNED"))
    assert not Path("PWNED").exists()


def test_a_url_cannot_pose_as_an_option(over_ssh: SshLauncher, stand_ins: StandIns) -> None:
    with pytest.raises(MisconfiguredError, match="not the URL"):
        over_ssh.launch(INSTANCE, manifest(), "--help")
    assert not list(stand_ins.folder.glob("*"))


def test_a_frozen_server_holds_nobody_up(over_ssh: SshLauncher, server: Sshd) -> None:
    server.freeze()
    assert over_ssh.probe(INSTANCE) is None
    with pytest.raises(LaunchError, match="cannot be reached"):
        over_ssh.launch(INSTANCE, manifest(), URL)


def test_a_connection_that_freezes_half_way_is_given_up(
    server: Sshd, stand_ins: StandIns, tmp_path: Path
) -> None:
    freezing = tmp_path / "freezing-python"
    freezing.write_text("#!/bin/sh\nkill -STOP $PPID\nsleep 60\n")
    freezing.chmod(0o700)
    options = server.options(tmp_path / "known_hosts", trusted=INSTANCE.id)
    launcher = SshLauncher(SshBox(Ssh(options), remote_python=str(freezing)))
    with pytest.raises(LaunchError, match="cannot be reached"):
        launcher.launch(INSTANCE, manifest(), URL)


def test_time_runs_out_for_a_box_that_is_busy_for_ever(server: Sshd, tmp_path: Path) -> None:
    slow = tmp_path / "slow-python"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o700)
    options = server.options(tmp_path / "known_hosts", trusted=INSTANCE.id)
    launcher = SshLauncher(SshBox(Ssh(options), remote_python=str(slow)), timeout=2.0)
    with pytest.raises(LaunchError, match="no answer in time"):
        launcher.launch(INSTANCE, manifest(), URL)


def test_a_changed_host_key_is_refused(
    over_ssh: SshLauncher, server: Sshd, stand_ins: StandIns, tmp_path: Path
) -> None:
    with sshd(tmp_path / "impostor") as impostor:
        known_hosts = tmp_path / "state" / "known_hosts"
        known_hosts.write_text(f"{INSTANCE.id} {impostor.host_key}\n")
        for call in (over_ssh.probe, lambda seen: over_ssh.launch(seen, manifest(), URL)):
            with pytest.raises(MisconfiguredError, match="--repin"):
                call(INSTANCE)
    assert not list(stand_ins.folder.glob("*"))


def test_a_host_key_that_was_never_pinned_is_refused(over_ssh: SshLauncher, tmp_path: Path) -> None:
    (tmp_path / "state" / "known_hosts").unlink()
    with pytest.raises(MisconfiguredError, match="gpu setup"):
        over_ssh.probe(INSTANCE)


def test_the_pin_follows_the_id_and_not_the_address(over_ssh: SshLauncher) -> None:
    elsewhere = Instance(id=INSTANCE.id, state=InstanceState.RUNNING, public_address="localhost")
    assert over_ssh.probe(elsewhere) == __version__


def test_a_key_that_the_box_does_not_know_is_a_setting_to_mend(
    server: Sshd, stand_ins: StandIns, tmp_path: Path
) -> None:
    options = server.options(tmp_path / "known_hosts", trusted=INSTANCE.id)
    (server.folder / "user_key.pub").write_text("")
    launcher = SshLauncher(SshBox(Ssh(options), remote_python=str(box_python(tmp_path, stand_ins))))
    with pytest.raises(MisconfiguredError, match="GPU_SSH_KEY_PATH"):
        launcher.probe(INSTANCE)


def test_a_box_without_a_worker_says_how_to_get_one(server: Sshd, tmp_path: Path) -> None:
    launcher = SshLauncher(SshBox(Ssh(server.options(tmp_path / "known_hosts", trusted=INSTANCE.id))))
    with pytest.raises(MisconfiguredError, match="batchscribe gpu setup"):
        launcher.probe(INSTANCE)


def test_a_manifest_of_another_version_is_refused(over_ssh: SshLauncher, stand_ins: StandIns) -> None:
    old = msgspec.structs.replace(manifest(), release="0.0.1")
    with pytest.raises(MisconfiguredError, match="the manifest wants"):
        over_ssh.launch(INSTANCE, old, URL)
    assert not list(stand_ins.folder.glob("*"))


def test_a_login_that_chatters_does_not_confuse_the_answer(
    server: Sshd, stand_ins: StandIns, tmp_path: Path
) -> None:
    chatty = tmp_path / "chatty-python"
    inner = box_python(tmp_path, stand_ins)
    chatty.write_text(f'#!/bin/sh\necho "Welcome to the GPU"\necho "{{}}"\nexec {inner} "$@"\n')
    chatty.chmod(0o700)
    options = server.options(tmp_path / "known_hosts", trusted=INSTANCE.id)
    assert SshLauncher(SshBox(Ssh(options), remote_python=str(chatty))).probe(INSTANCE) == __version__


def test_a_box_without_an_address_is_not_reached_yet(over_ssh: SshLauncher) -> None:
    nowhere = Instance(id=INSTANCE.id, state=InstanceState.PENDING)
    assert over_ssh.probe(nowhere) is None
    with pytest.raises(LaunchError, match="no public address"):
        over_ssh.launch(nowhere, manifest(), URL)
