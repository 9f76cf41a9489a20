"""Each check passes, warns and fails as it should; an error is a finding, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

import batchscribe.cli.doctor
from batchscribe import __version__
from batchscribe.adapters.machine.files import (
    check_key_file,
    check_model_space,
    check_settings_file,
    check_state_folder,
)
from batchscribe.cli.app import App
from batchscribe.cli.doctor import ON_HOST, doctor
from batchscribe.cli.gpu import TOOLS
from batchscribe.controller.commands import doctor as checks
from batchscribe.controller.commands.doctor import attempt
from batchscribe.controller.commands.rehearsal import Proof
from batchscribe.core import keys
from batchscribe.core.decide.offers import Market
from batchscribe.core.objects import ObjectInfo
from batchscribe.core.run.cloud_account import Caller, MachineType, PortAccess, Quota
from batchscribe.core.run.host import Finding, Grade, InstanceRecord, failed, passed
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    CredentialsError,
    MisconfiguredError,
    MissingCredentialsError,
    MissingRightError,
    ObjectNotFoundError,
    StoreUnavailableError,
)
from batchscribe.protocols import Store
from batchscribe.settings import Settings, load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring import preflight
from batchscribe.wiring.doctor import Preconditions
from batchscribe.wiring.preflight import check_local_engine, check_model
from batchscribe.wiring.scanners import list_audio_beside
from batchscribe.wiring.seams import rate_of
from support.values import INSTANCE, NOW, RATE, instance, moment, run

T = TypeVar("T")
G4DN = MachineType(name="g4dn.xlarge", vcpus=4, gpus="1 NVIDIA T4")
PASS, WARN, FAIL = Grade.PASS, Grade.WARN, Grade.FAIL


def record(**fields: Any) -> InstanceRecord:
    made = InstanceRecord(instance=INSTANCE, release=__version__, at=NOW)
    return msgspec.structs.replace(made, **fields)


def proof(act: str = "box", *, proved: bool = True) -> dict[str, str]:
    made = Proof(act=act, at=NOW, run="r", proved=proved, seconds=60.0, detail="it stopped")
    return {f"rehearsed/{act}": msgspec.json.encode(made).decode()}


def clock_of(seconds: float | None) -> Finding:
    answered = None if seconds is None else NOW + timedelta(seconds=seconds)
    return checks.check_clock(Caller(account="1", arn="a", answered=answered), NOW)


def port_of(*sources: str, needed: bool = True) -> Finding:
    access = PortAccess(groups=("sg-1",), sources=sources)
    return checks.check_port(access, 22, "us-east-2", checks.PUBLIC_ADDRESS, needed=needed)


def test_printed_commands_can_be_pasted_as_they_are() -> None:
    fixes = [
        port_of().fix,
        checks.check_shutdown(INSTANCE, "terminate", "us-east-2").fix,
        checks.check_quota(Quota(code="L-1", vcpus=0), G4DN, "us-east-2").fix,
    ]
    assert [fix.partition(" --region us-east-2 ")[0] for fix in fixes] == ["aws", "aws", "aws"]
    assert "--group-id sg-1" in fixes[0]
    assert fixes[0].endswith('--cidr "$(curl -s https://checkip.amazonaws.com)/32"')
    assert not [fix for fix in fixes if "…" in fix or "<" in fix]


def test_a_path_in_a_printed_command_is_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "my keys"
    folder.mkdir()
    assert check_key_file(private(folder / "a.pem", 0o644)).fix == f"chmod 600 '{folder / 'a.pem'}'"


def first(findings: Iterator[Finding]) -> Finding:
    return next(findings)


@pytest.mark.parametrize(
    ("found", "level", "says"),
    [
        (lambda: clock_of(59), PASS, "59 s"),
        (lambda: clock_of(-61), WARN, "61 s"),
        (lambda: clock_of(301), FAIL, "301 s"),
        (lambda: clock_of(None), WARN, "not checked"),
        (lambda: checks.check_instance(instance(), "gone"), PASS, "is stopped"),
        (lambda: checks.check_instance(instance(InstanceState.TERMINATED), "gone"), FAIL, "terminated"),
        (lambda: checks.check_type(G4DN, needs_gpu=True), PASS, "NVIDIA T4"),
        (lambda: checks.check_type(MachineType(name="t3.nano", vcpus=2), needs_gpu=True), FAIL, "no GPU"),
        (lambda: checks.check_type(MachineType(name="t3.nano", vcpus=2), needs_gpu=False), PASS, "no GPU"),
        (lambda: checks.check_price(("g4dn.xlarge",), lambda _type: RATE, NOW), PASS, "$0.526/h"),
        (lambda: checks.check_shutdown(INSTANCE, "stop", ""), PASS, "stops"),
        (lambda: checks.check_shutdown(INSTANCE, "", ""), WARN, "not checked"),
        (lambda: checks.check_shutdown(INSTANCE, "terminate", ""), FAIL, "terminate"),
        (lambda: checks.check_quota(Quota(code="L-1", vcpus=4), G4DN, ""), PASS, "4 vCPUs"),
        (lambda: checks.check_quota(Quota(code="L-1", vcpus=0), G4DN, ""), FAIL, "0 vCPUs"),
        (lambda: checks.check_schedule_group("ACTIVE"), PASS, "active"),
        (lambda: checks.check_schedule_group("DELETING"), FAIL, "deleting"),
        (lambda: checks.check_schedule_group(""), FAIL, "missing"),
        (lambda: checks.check_last_armed([run(guard="off")]), WARN, "first start"),
        (lambda: checks.check_last_armed([run(guard="eventbridge")]), WARN, "never yet"),
        (lambda: checks.check_last_armed([guarded()]), PASS, "for run"),
        (lambda: port_of("10.0.0.0/8"), PASS, "10.0.0.0/8"),
        (port_of, FAIL, "22"),
        (lambda: port_of(needed=False), PASS, "not needed"),
        (lambda: check_model(record(), EngineSpec(engine="e")), WARN, "older set-up"),
        (lambda: check_model(record(engine="e", model="a"), EngineSpec(engine="e")), FAIL, "e a"),
        (lambda: check_model(record(engine="e"), EngineSpec(engine="e")), PASS, "e, fetched"),
        (lambda: checks.check_schedule("none: `batchscribe install systemd`"), WARN, "no timer runs"),
        (lambda: checks.check_schedule("a line in your crontab; no watchdog: run `x`"), WARN, "no watchdog"),
        (lambda: checks.check_schedule("systemd timer, inactive; watchdog active"), WARN, "inactive"),
        (lambda: checks.check_schedule("systemd timer, active, next 1; watchdog active"), PASS, "active"),
        (lambda: checks.check_receivers(()), WARN, "none"),
        (lambda: checks.check_receivers(("slack",)), PASS, "slack"),
        (lambda: first(checks.check_proofs({})), WARN, "never"),
        (lambda: first(checks.check_proofs(proof())), PASS, "60 s after its work ended"),
        (lambda: first(checks.check_proofs(proof("guard", proved=False))), WARN, "it stopped"),
        (lambda: first(checks.check_open_runs([run(deadline=NOW)], NOW)), FAIL, "after its deadline"),
        (lambda: first(checks.check_open_runs([run()], NOW)), WARN, "in progress"),
    ],
)
def test_a_finding_has_its_level_and_every_failure_a_fix(
    found: Callable[[], Finding], level: Grade, says: str
) -> None:
    finding = found()
    assert (finding.level, says in finding.detail) == (level, True), finding
    assert finding.fix or level is not FAIL
    assert "\n" not in finding.detail


def guarded() -> Any:
    return run(guard="eventbridge", start_requested=moment())


@pytest.mark.parametrize(
    ("error", "optional", "level", "detail", "fix"),
    [
        (MissingRightError("no"), "", FAIL, "no", "iam-policy"),
        (MissingRightError("no"), "ec2:Look", WARN, "not checked: ec2:Look is not allowed", "iam-policy"),
        (ObjectNotFoundError("no quota"), "q:Get", WARN, "not checked: no quota", ""),
        (ObjectNotFoundError("gone"), "", FAIL, "gone", ""),
        (CredentialsError("old"), "q:Get", FAIL, "old", "get-caller-identity"),
        (MissingCredentialsError("none"), "q:Get", FAIL, "none", "get-caller-identity"),
        (ComputeUnavailableError("down"), "q:Get", FAIL, "down", "network"),
        (MisconfiguredError("wrong: fix it"), "", FAIL, "wrong: fix it", ""),
    ],
)
def test_an_error_is_a_finding(
    error: BatchscribeError, optional: str, level: Grade, detail: str, fix: str
) -> None:
    def check() -> Finding:
        raise error

    finding = attempt("it", check, optional=optional)
    assert (finding.level, finding.detail) == (level, detail)
    assert fix in finding.fix


def store(*names: str) -> MemoryStore:
    made = MemoryStore(FakeClock())
    for name in names:
        made.create(name, b"x")
    return made


def not_searched() -> list[str]:
    raise AssertionError("nothing is beside it")


def no_parent(_url: str) -> Store:
    raise AssertionError("not opened")


def at(url: str, made: MemoryStore) -> MemoryStore:
    made.url = url
    return made


def test_audio_is_found_behind_control_objects() -> None:
    found = checks.check_source(store("_batchscribe/a", "a/chunk-001.webm"), not_searched)
    assert (found.level, "a/chunk-001.webm" in found.detail) == (PASS, True)


def check_empty(url: str, open_parent: Callable[[str], Store]) -> Finding:
    empty = at(url, store("_batchscribe/instances/i"))
    return checks.check_source(empty, partial(list_audio_beside, url, open_parent))


@pytest.mark.parametrize("parents", ["s3://bucket", "file:///data"])
def test_an_empty_prefix_names_the_audio_beside_it(parents: str) -> None:
    bucket = store(
        "_batchscribe/runs/1", "audio-sessions/a/1.mp3", "audio-sessions/b/1.mp3", "text/1", "z/1.mp3"
    )
    found = check_empty(f"{parents}/audio-sesions", lambda url: at(url, bucket))
    assert bucket.url == parents
    assert found.level is WARN
    assert found.detail.endswith(f"; audio is under {parents}/audio-sessions, {parents}/z")
    assert "did you mean audio-sessions?" in found.fix


def test_a_whole_bucket_has_nothing_beside_it() -> None:
    assert check_empty("s3://bucket", no_parent).level is WARN


def test_a_bucket_that_may_not_be_listed_is_no_failure() -> None:
    class Closed(MemoryStore):
        def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
            raise MissingRightError("s3:ListBucket")

    found = check_empty("s3://b/p", lambda _url: Closed(FakeClock()))
    assert (found.level, found.detail) == (WARN, "nothing is under s3://b/p")


def test_a_create_only_write_is_tried_and_cleaned_up() -> None:
    made = store()
    assert checks.check_create_only(made, "1").level is PASS
    assert list(made.list()) == []


def test_a_store_that_ignores_the_condition_fails() -> None:
    class Careless(MemoryStore):
        def create(self, key: str, data: bytes) -> bool:
            self.replace(key, data)
            return True

    made = Careless(FakeClock())
    found = checks.check_create_only(made, "1")
    assert (found.level, "could be overwritten" in found.detail) == (FAIL, True)
    assert list(made.list()) == []


def test_a_probe_that_breaks_in_the_middle_is_cleaned_up() -> None:
    class Breaks(MemoryStore):
        def create(self, key: str, data: bytes) -> bool:
            if super().create(key, data):
                return True
            raise StoreUnavailableError("gone")

    made = Breaks(FakeClock())
    found = attempt("create-only", lambda: checks.check_create_only(made, "1"))
    assert (found.level, found.detail) == (FAIL, "gone")
    assert list(made.list()) == []


def private(path: Path, mode: int = 0o600) -> Path:
    path.write_text("x")
    path.chmod(mode)
    return path


def test_a_key_file_is_judged_as_ssh_judges_it(tmp_path: Path) -> None:
    assert check_key_file(None).ok
    assert check_key_file(private(tmp_path / "good")).ok
    assert "No such file" in check_key_file(tmp_path / "none").detail
    assert "not a file" in check_key_file(tmp_path).detail
    for mode in (0o644, 0o640, 0o604):
        found = check_key_file(private(tmp_path / "open", mode))
        assert (found.ok, found.fix) == (False, f"chmod 600 {tmp_path / 'open'}")


def test_a_settings_file_that_others_read_is_a_warning(tmp_path: Path) -> None:
    assert check_settings_file(tmp_path / ".env").level is PASS
    assert check_settings_file(private(tmp_path / ".env")).level is PASS
    assert check_settings_file(private(tmp_path / ".env", 0o644)).level is WARN


def test_a_full_disk_and_a_folder_that_is_a_file_are_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_state_folder(tmp_path / "new" / "state").ok
    assert not (tmp_path / "new").exists()
    assert "not writable" in check_state_folder(private(tmp_path / "file") / "state").detail
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(free=1024**2))
    assert "disk is full" in check_state_folder(tmp_path).detail
    assert check_model_space(tmp_path).level is WARN


class Usage:
    def __init__(self, free: int) -> None:
        self.free = free


class FakeAccount:
    """Answers as an account in order; `error` is raised by every call."""

    def __init__(self, error: BatchscribeError | None = None) -> None:
        self.error = error

    def caller(self) -> Caller:
        return self._given(Caller(account="123456789012", arn="arn:aws:iam::1:user/me", answered=NOW))

    def machine_type(self, name: str) -> MachineType:
        return self._given(MachineType(name=name, vcpus=4, gpus="1 NVIDIA T4"))

    def quota(self, instance_type: str, market: Market = Market.ON_DEMAND) -> Quota:
        return self._given(Quota(code="L-DB2E81BA", vcpus=8))

    def port_access(self, instance: str, port: int) -> PortAccess:
        return self._given(PortAccess(sources=("10.0.0.0/8",)))

    def schedule_group(self) -> str:
        return self._given("ACTIVE")

    def _given(self, answer: T) -> T:
        if self.error:
            raise self.error
        return answer


class Desk:
    """A folder with settings, doubles behind them, and the command."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names = {
            "BATCH_SOURCE": "s3://bucket/audio",
            "GPU_INSTANCE_ID": INSTANCE,
            "AWS_REGION": "us-east-2",
            "BATCH_GUARD_ROLE_ARN": "arn:aws:iam::123456789012:role/guard",
            "BATCH_ENGINE": "pocketsphinx",
        }
        self.folder = folder
        self.account: FakeAccount | None = FakeAccount()
        self.store: MemoryStore = store("a/chunk-001.webm")
        self.seen = instance(public_address="192.0.2.1")
        self.keep(record(boots=True, shows_tags=True, engine="pocketsphinx"))
        self.started: list[str] = []
        monkeypatch.setattr(batchscribe.cli.doctor, "open_preconditions", self.preconditions)

    def keep(self, made: InstanceRecord) -> None:
        self.store.replace(keys.instance(INSTANCE), msgspec.json.encode(made))

    @property
    def settings(self) -> Settings:
        return load(self.names, folder=self.folder, lenient=True)

    def preconditions(self, settings: Settings) -> Preconditions:
        return Preconditions(
            settings=settings,
            clock=FakeClock(),
            source=self.store,
            output=self.store,
            open_parent=no_parent,
            account=self.account,
            describe=self.describe,
            shutdown=lambda: "stop",
        )

    def describe(self) -> Instance:
        return self.seen

    def __call__(self, *words: str) -> Result:
        @click.group()
        @click.pass_context
        def front(ctx: click.Context) -> None:
            ctx.obj = app = App()
            app.__dict__["settings"] = self.settings
            ctx.meta[TOOLS] = self.tools

        front.add_command(doctor)
        return CliRunner().invoke(front, ["doctor", *words], standalone_mode=False)

    def tools(self) -> Any:
        self.started.append("tools")
        raise AssertionError("a GPU was to be started")

    def levels(self) -> dict[str, str]:
        result = self("--json")
        assert result.exception is None, result.exception
        document = json.loads(result.stdout)
        assert document["ok"] == (result.return_value == 0)
        return {row["name"]: row["level"] for row in document["checks"]}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, monkeypatch)


def test_a_sound_desk_passes_with_warnings_about_the_rest(desk: Desk) -> None:
    levels = desk.levels()
    assert {name for name, level in levels.items() if level != "pass"} == {
        "armed",
        "host key",
        "timer",
        "receivers",
        "rehearsal",
    }
    assert "fail" not in levels.values()
    assert {"identity", "clock", "audio", "create-only", "type", "quota", "price", "shutdown"} <= set(levels)
    assert [info.key for info in desk.store.list()] == [keys.instance(INSTANCE), "a/chunk-001.webm"]


def test_the_text_is_one_line_for_each_check_under_its_group(desk: Desk) -> None:
    result = desk()
    assert result.return_value == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "settings"
    assert "  ok    identity           account 123456789012, arn:aws:iam::1:user/me, us-east-2" in lines
    assert any(line.startswith("  warn  timer") and "-> `batchscribe install" in line for line in lines)
    assert lines[-1].startswith("Passed: ")
    assert lines[-1].endswith("warnings: 5, failures: 0")


@pytest.mark.parametrize(
    ("names", "failing"),
    [
        ({"BATCH_TRESHOLD": "5"}, "settings"),
        ({"BATCH_SOURCE": ""}, "BATCH_SOURCE"),
        ({"GPU_INSTANCE_ID": "", "GPU_PROVIDER": "ec2"}, "GPU_INSTANCE_ID"),
        ({"BATCH_ENGINE": "poketsphinx"}, "engine"),
        ({"BATCH_LANGUAGE": "fr"}, "engine"),
        ({"BATCH_GUARD_ROLE_ARN": ""}, "guard"),
        ({"BATCH_LAUNCH": "ssh"}, "host key"),
        ({"BATCH_LAUNCH": "ssh", "GPU_SSH_KEY_PATH": "/nope.pem"}, "key file"),
        ({"GPU_INSTANCE_TYPES": "x9.huge"}, "price"),
        ({"BATCH_STATE_DIR": "/proc/none"}, "state folder"),
    ],
)
def test_a_setting_that_would_refuse_a_start_fails(desk: Desk, names: dict[str, str], failing: str) -> None:
    desk.names |= names
    assert desk.levels()[failing] == "fail"


@pytest.mark.parametrize(
    ("made", "failing"),
    [
        (record(release="0.0.1"), "set-up"),
        (record(credentials=False), "credentials"),
    ],
)
def test_a_host_that_could_not_work_fails(desk: Desk, made: InstanceRecord, failing: str) -> None:
    desk.keep(made)
    assert desk.levels()[failing] == "fail"


def test_all_that_a_start_needs_is_shown(desk: Desk) -> None:
    desk.names |= {"BATCH_LAUNCH": "ssh", "BATCH_ENGINE": "poketsphinx", "BATCH_GUARD_ROLE_ARN": ""}
    needs = [
        found for _, checks in desk.preconditions(desk.settings).needs.list_groups() for found in checks()
    ]
    assert {found.what for found in needs if not found.ok} == {"engine", "guard", "host key"}
    levels = desk.levels()
    assert {found.what: levels[found.what] for found in needs} == {found.what: found.level for found in needs}


def test_no_set_up_is_proposed_for_an_engine_that_cannot_run(desk: Desk) -> None:
    desk.names |= {"BATCH_ENGINE": "poketsphinx"}
    levels = desk.levels()
    assert levels["engine"] == "fail"
    assert "model" not in levels


def test_an_unreadable_vocabulary_is_one_failure_of_several(desk: Desk) -> None:
    desk.names |= {"BATCH_VOCABULARY": "/none.txt"}
    levels = desk.levels()
    assert (levels["engine"], levels["set-up"], levels["timer"]) == ("fail", "pass", "warn")


@pytest.mark.parametrize("there", [False, True])
def test_without_ssh_keygen_the_host_key_is_a_failure(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    if there:
        (desk.folder / "ssh-keygen").write_text("not executable")
    desk.names |= {"BATCH_LAUNCH": "ssh"}
    private(desk.folder / "known_hosts")
    desk.names |= {"BATCH_STATE_DIR": str(desk.folder)}
    monkeypatch.setenv("PATH", str(desk.folder))
    assert desk.levels()["host key"] == "fail"


def test_a_key_that_no_start_needs_is_a_warning(desk: Desk) -> None:
    desk.names |= {"GPU_SSH_KEY_PATH": "/nope.pem"}
    assert desk.levels()["key file"] == "warn"


def test_a_host_that_was_never_set_up_is_one_failure(desk: Desk) -> None:
    desk.store.delete(keys.instance(INSTANCE))
    levels = desk.levels()
    assert levels["set-up"] == "fail"
    assert "credentials" not in levels


def test_a_missing_instance_names_its_region_and_where_that_comes_from(desk: Desk) -> None:
    desk.seen = instance(InstanceState.MISSING)
    result = desk()
    assert result.return_value == 2
    assert f"{INSTANCE} was not found in us-east-2 (AWS_REGION from the environment)" in result.stdout
    assert "price" not in result.stdout


def test_rights_that_only_the_doctor_needs_are_warnings(desk: Desk) -> None:
    desk.account = FakeAccount(MissingRightError("no"))
    levels = desk.levels()
    assert {levels[name] for name in ("type", "stop orders", "ssh port")} == {"warn"}
    assert levels["identity"] == "fail"
    assert "quota" not in levels


def test_without_a_network_each_check_has_its_own_reason(desk: Desk) -> None:
    desk.account = FakeAccount(ComputeUnavailableError("no answer"))

    def describe() -> Instance:
        raise ComputeUnavailableError("no answer from EC2")

    desk.describe = describe  # type: ignore[method-assign]
    levels = desk.levels()
    assert {levels[name] for name in ("identity", "instance", "stop orders", "ssh port")} == {"fail"}
    assert levels["audio"] == "pass"


def test_a_gpu_in_this_machine_has_only_its_own_checks(desk: Desk) -> None:
    desk.names = {"BATCH_SOURCE": str(desk.folder), "GPU_PROVIDER": "local", "BATCH_ENGINE": "pocketsphinx"}
    desk.account = None
    levels = desk.levels()
    assert (levels["model"], levels["decoder"]) == ("pass", "pass")
    assert "no replacements, default subtitles" in desk().stdout
    assert not {"identity", "instance", "guard", "set-up", "rehearsal"} & set(levels)


def test_a_missing_model_has_a_fix_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = "the model m is not on this machine: fetch it with `batchscribe engines --fetch m`"
    monkeypatch.setattr(preflight, "find_problems", lambda _spec: (problem,))
    found = check_local_engine(EngineSpec(engine="played", model="m"))
    assert found.detail == "played cannot run here: the model m is not on this machine"
    assert found.fix == "fetch it with `batchscribe engines --fetch m`"


@pytest.mark.parametrize(("text", "reason"), [(None, "cannot be read"), ("[", "is not readable")])
def test_a_price_file_that_a_tick_would_refuse_fails(desk: Desk, text: str | None, reason: str) -> None:
    file = desk.folder / "prices.json"
    if text is not None:
        file.write_text(text)
    desk.names = {"BATCH_SOURCE": str(desk.folder), "GPU_PROVIDER": "local", "BATCH_PRICE_FILE": str(file)}
    desk.account = None
    with pytest.raises(MisconfiguredError) as refusal:
        rate_of(load(desk.names, folder=desk.folder))("")
    assert f"{file} {reason}" in str(refusal.value)
    assert str(refusal.value).endswith("correct BATCH_PRICE_FILE")
    rows = json.loads(desk("--json").stdout)["checks"]
    assert [(row["level"], row["detail"]) for row in rows if row["name"] == "prices"] == [
        ("fail", str(refusal.value))
    ]


def test_nothing_is_started_after_a_failure(desk: Desk) -> None:
    desk.names |= {"BATCH_ENGINE": "poketsphinx"}
    result = desk("--start")
    assert (result.return_value, desk.started) == (2, [])
    assert "not started: a failure above" in result.stdout


def test_a_start_prints_its_price_and_shows_what_the_host_reports(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(Desk, "tools", lambda self: Tools(order))
    monkeypatch.setattr(batchscribe.cli.doctor, "running_instance", running(order))
    result = desk("--start", "--json")
    assert result.exception is None, result.exception
    rows = [row for row in json.loads(result.stdout)["checks"] if row["group"] == ON_HOST]
    assert [(row["name"], row["level"]) for row in rows] == [("disk", "pass"), ("driver", "fail")]
    assert result.return_value == 2
    assert order == ["start", "check", "stop"]
    assert f"Starting {INSTANCE} at $0.526/h (AWS list, on-demand, us-east-2, as of" in result.stderr
    assert "): at least $0.0088, billed until it is stopped.\n" in result.stderr


class Tools:
    """The part of GpuTools and of its set-up that the command uses."""

    ssh = object()
    instance = INSTANCE

    def __init__(self, order: list[str]) -> None:
        self.order = order
        self.control = self

    def poll(self) -> Instance:
        return instance()

    def open_run(self, _instance: str) -> None:
        return None

    def check(self, _seen: Instance, *, busy: bool) -> Iterator[Finding]:
        assert not busy
        self.order.append("check")
        yield passed("disk", "20 GiB free")
        yield failed("driver", "none", "install it")


def running(order: list[str]) -> Any:
    @contextmanager
    def started(_at: Any, seen: Instance, *, start_it: bool) -> Iterator[Instance]:
        assert start_it
        order.append("start")
        yield seen
        order.append("stop")

    return started
