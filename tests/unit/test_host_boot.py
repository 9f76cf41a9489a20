"""The agent's process: its machine, its environment, its lock, and how it is started and ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
import structlog

from batchscribe import __version__
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.adapters.stores.directory import DirectoryStore
from batchscribe.agent import host as gpu_hosts
from batchscribe.agent.host import GpuHost
from batchscribe.core import keys
from batchscribe.core.run.host import (
    BOOT_MODULE,
    CheckRequest,
    ClaimLaunch,
    HostClaim,
    HostPlace,
    InstanceRecord,
    StartRequest,
)
from batchscribe.core.run.instances import MANIFEST_TAG
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.detached import try_lock
from batchscribe.errors import LaunchError, MisconfiguredError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring import host_boot
from support.cli import wait_for
from support.metadata import metadata_service
from support.stores import NOW

PLACE = HostPlace(instance="i-0123456789abcdef0", home="s3://home", region="us-east-2", endpoint="http://own")


def boot(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-I", "-m", BOOT_MODULE, *words]
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "LEFT_OVER": "canary"}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)


def request(**changes: object) -> StartRequest:
    asked = StartRequest(run="r", release=__version__, output="s3://home", deadline=NOW)
    return msgspec.structs.replace(asked, **changes)


def placed(folder: Path, *, launch: ClaimLaunch | None = None) -> None:
    """A host that was set up; its bucket is a folder."""
    bucket = folder / "bucket"
    bucket.mkdir()
    place = HostPlace(instance=PLACE.instance, home=bucket.as_uri())
    GpuHost(folder, SystemClock()).keep_place(place)
    claim = None
    if launch:
        claim = HostClaim(run="run-1", created=NOW, deadline=NOW, output=place.home, launch=launch)
    record = InstanceRecord(instance=place.instance, release="0", at=NOW, claim=claim)
    DirectoryStore(bucket).replace(keys.instance(place.instance), msgspec.json.encode(record))


def test_a_host_that_was_never_set_up_says_so_and_is_not_started_again(tmp_path: Path) -> None:
    done = boot(tmp_path)
    assert done.returncode == 2
    assert "gpu setup" in done.stderr
    assert (
        "RestartPreventExitStatus=2"
        in (Path(host_boot.__file__).parents[1] / "deploy" / "box" / "batchscribe-box.service").read_text()
    )


def test_a_host_that_a_person_started_is_done_at_once(tmp_path: Path) -> None:
    placed(tmp_path)
    done = boot(tmp_path)
    assert (done.returncode, "claim.missing" in done.stderr) == (0, True)


def test_a_claim_that_is_over_is_left_alone(tmp_path: Path) -> None:
    placed(tmp_path, launch=ClaimLaunch.BOOT)
    done = boot(tmp_path)
    assert (done.returncode, "host.claim_not_taken" in done.stderr) == (0, True)


def test_an_environment_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    placed(tmp_path)
    path = tmp_path / ".batchscribe" / "env"
    path.write_text("AWS_SECRET_ACCESS_KEY=canary\n")
    path.chmod(0o644)
    done = boot(tmp_path)
    assert (done.returncode, "chmod 600" in done.stderr) == (2, True)
    assert "canary" not in done.stderr + done.stdout


def test_it_lives_in_the_workers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, str] = {}

    def run(*_seams: object) -> None:
        seen.update(os.environ)
        structlog.get_logger().error("the vendor shows canary-5e12")

    placed(tmp_path)
    kept = tmp_path / ".batchscribe" / "env"
    kept.write_text("AWS_ACCESS_KEY_ID=its-own\nAWS_SECRET_ACCESS_KEY=canary-5e12\n")
    kept.chmod(0o600)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(host_boot, "_run_agent", run)
    before = os.umask(0o077)
    try:
        with patch.dict(os.environ, {"HOME": str(tmp_path), "LEFT_OVER": "of the unit"}):
            assert host_boot.main([]) == 0
    finally:
        os.umask(before)
    assert seen["AWS_ACCESS_KEY_ID"] == "its-own"
    assert "LEFT_OVER" not in seen
    shown = capsys.readouterr().err
    assert ("the vendor shows" in shown, "canary-5e12" in shown) == (True, False)


def test_the_recorded_model_is_read_ahead_before_the_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[object] = []
    clock = SystemClock()
    gpu_host = GpuHost(tmp_path, clock)
    monkeypatch.setattr(host_boot, "read_ahead", order.append)
    monkeypatch.setattr(host_boot, "run_agent", lambda *_: order.append("claim"))
    host_boot._run_agent(PLACE, gpu_host, clock)
    gpu_host.keep_model_files([tmp_path / "model.bin"])
    host_boot._run_agent(PLACE, gpu_host, clock)
    assert order == [(), "claim", (tmp_path / "model.bin",), "claim"]


def test_the_unit_does_not_wait_for_the_network() -> None:
    unit = (Path(host_boot.__file__).parents[1] / "deploy" / "box" / "batchscribe-box.service").read_text()
    assert "network" not in "".join(line for line in unit.splitlines() if not line.startswith("#"))
    assert "After=time-sync.target" in unit


@pytest.mark.parametrize(
    ("tag", "another"),
    [
        (PLACE.instance, ""),
        ("i-0fedcba9876543210", "i-0fedcba9876543210"),
        ("Not Specified", ""),
        (None, ""),
    ],
)
def test_a_copy_of_a_disk_is_another_machine(tmp_path: Path, tag: str | None, another: str) -> None:
    path = tmp_path / "board_asset_tag"
    if tag is not None:
        path.write_text(f"{tag}\n")
    assert host_boot.find_copied_id(PLACE, path) == another


def test_a_store_is_opened_once_and_where_it_was_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    opened: list[tuple[str, str | None, str | None]] = []

    def open_store(url: str, *, region: str | None, endpoint: str | None) -> MemoryStore:
        opened.append((url, region, endpoint))
        return MemoryStore(FakeClock(), url=url)

    monkeypatch.setattr(host_boot, "open_store", open_store)
    clock = SystemClock()
    seams = host_boot.open_seams(PLACE, GpuHost(tmp_path, clock), clock, tmp_path)
    claim = HostClaim(run="r", created=NOW, deadline=NOW, output=PLACE.home, launch=ClaimLaunch.BOOT)
    assert seams.home() is seams.home() is seams.runs(claim)
    seams.runs(msgspec.structs.replace(claim, output="s3://other", region="eu-west-1"))
    assert opened == [("s3://home", "us-east-2", "http://own"), ("s3://other", "eu-west-1", "http://own")]


def test_the_hash_of_its_manifest_comes_from_the_instance_s_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SystemClock()
    seams = host_boot.open_seams(PLACE, GpuHost(tmp_path, clock), clock, tmp_path)
    with metadata_service({MANIFEST_TAG: "abc"}) as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
        assert seams.announced() == "abc"
        service.tags = None
        assert seams.announced() is None


def test_an_environment_file_that_is_no_text_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / ".batchscribe" / "env"
    path.parent.mkdir()
    path.write_bytes(b"# cl\xe9\nA=b\n")
    path.chmod(0o600)
    with pytest.raises(MisconfiguredError, match="UTF-8"):
        GpuHost(tmp_path, SystemClock()).build_environment()


def test_a_start_request_becomes_a_permit_and_one_agent_for_the_run(tmp_path: Path) -> None:
    program = tmp_path / "agent"
    program.write_text('#!/bin/sh\necho "$@" "$AWS_REGION"\n')
    program.chmod(0o700)
    made = GpuHost(tmp_path, SystemClock(), agent=(str(program),))
    assert made.read_permit("r") is None
    assert made.start(request(region="eu-west-1", borrowed=True)).done
    log = tmp_path / ".batchscribe" / "runs" / "r" / "agent.log"
    wait_for(log.read_text() == "live r eu-west-1\n" for _ in range(9999))
    permit = made.read_permit("r")
    assert permit is not None
    claim = permit.claim()
    assert (claim.run, claim.output, claim.launch, claim.borrowed) == ("r", "s3://home", "ssh", True)


def test_a_permit_of_an_earlier_boot_counts_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = GpuHost(tmp_path, SystemClock(), agent=("/bin/true",))
    made.start(request())
    monkeypatch.setattr(gpu_hosts, "boot_id", lambda: "another boot")
    assert made.read_permit("r") is None


def test_while_an_agent_lives_no_other_is_started(tmp_path: Path) -> None:
    made = GpuHost(tmp_path, SystemClock(), agent=("/nonexistent/agent",))
    with try_lock(made.agent_lock) as alone:
        assert alone
        assert not made.start(request()).done
        assert made.read_permit("r") is not None
        done = boot(tmp_path, "live", "r")
    assert (done.returncode, "agent.already_alive" in done.stderr) == (0, True)
    with pytest.raises(LaunchError, match="agent could not be started"):
        made.start(request())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"release": "0.0.1"}, "gpu setup"),
        ({"output": "--help"}, "not the URL"),
        ({"output": "/etc"}, "not the URL"),
        ({"run": "../../escape"}, "name of a run"),
    ],
)
def test_a_start_request_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, str], why: str
) -> None:
    made = GpuHost(tmp_path, SystemClock(), agent=("/nonexistent/agent",))
    with pytest.raises(MisconfiguredError, match=why):
        made.start(request(**changes))
    assert not [*tmp_path.rglob("start.json")]


def test_an_agent_over_ssh_needs_neither_place_nor_record(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    GpuHost(tmp_path, SystemClock(), agent=("/bin/true",)).start(request(output=bucket.as_uri()))
    done = boot(tmp_path, "live", "r")
    assert (done.returncode, "its run has no intent" in done.stderr) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("launch", "borrowed", "units", "powers_off"),
    [
        (ClaimLaunch.BOOT, False, True, True),
        (ClaimLaunch.SSH, False, True, True),
        (ClaimLaunch.SSH, False, False, False),
        (ClaimLaunch.SSH, True, True, False),
        (ClaimLaunch.BOOT, True, True, False),
    ],
)
def test_only_a_host_with_units_that_is_not_borrowed_is_powered_off(
    tmp_path: Path, launch: ClaimLaunch, borrowed: bool, units: bool, powers_off: bool
) -> None:
    claim = HostClaim(run="r", created=NOW, deadline=NOW, output="s3://h", launch=launch, borrowed=borrowed)
    marks = host_boot.open_state_files(claim, tmp_path if units else tmp_path / "missing")
    assert marks.powers_off is powers_off


def test_what_cannot_be_tidied_up_fails_no_start(tmp_path: Path) -> None:
    left = tmp_path / ".batchscribe" / "runs" / "core"
    left.parent.mkdir(parents=True)
    left.write_text("no folder")
    os.utime(left, (1e9, 1e9))
    made = GpuHost(tmp_path, SystemClock(), agent=("/bin/true",))
    assert made.start(request()).done


def test_a_host_looks_for_its_claim_where_the_control_objects_are(tmp_path: Path) -> None:
    placed(tmp_path, launch=ClaimLaunch.BOOT)
    gpu_host = GpuHost(tmp_path, SystemClock())
    control = tmp_path / "control"
    gpu_host.keep_place(msgspec.structs.replace(gpu_host.read_place(), control=control.as_uri()))
    control.mkdir()
    assert "record.missing" in boot(tmp_path).stderr, "a claim below the output is another writer's"
    (tmp_path / "bucket" / "_batchscribe" / "instances").rename(control / "instances")
    assert "host.claim_not_taken" in boot(tmp_path).stderr


@pytest.mark.parametrize(
    ("home", "control", "fits"),
    [
        ("s3://home", "", True),
        ("s3://home/", "", True),
        ("", "", True),
        ("s3://other", "", False),
        ("s3://home", "s3://other", False),
    ],
)
def test_a_host_that_looks_for_its_claims_elsewhere_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str, control: str, fits: bool
) -> None:
    monkeypatch.setattr(gpu_hosts, "_query_systemd", lambda _question, _unit: True)
    made = GpuHost(tmp_path, SystemClock(), aside=("/bin/false",))
    made.keep_place(PLACE)
    request = CheckRequest(
        now=NOW, engine=EngineSpec(engine="pocketsphinx"), gpu=False, boots=True, home=home, control=control
    )
    (units,) = [each for each in made.check_host(request).findings if each.what == "units"]
    assert units.ok is fits
    assert units.fix == "batchscribe gpu setup"
    assert fits or ("s3://home" in units.detail and "s3://other" in units.detail)
