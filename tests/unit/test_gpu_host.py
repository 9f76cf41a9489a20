"""The host's own look at itself, and where it looks for its stores."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner

from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.agent.host import GpuHost
from batchscribe.cli import worker as command
from batchscribe.core import keys
from batchscribe.core.run.host import CREDENTIALS, CREDENTIALS_FIX, CheckRequest
from batchscribe.core.run.manifest import EngineSpec, Manifest
from batchscribe.errors import MisconfiguredError, MissingCredentialsError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring import host, worker
from batchscribe.wiring.host import fetch, inspect
from support.http_server import LoopbackServer, serving
from support.stores import NOW

NOTHING = b'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>'


class Recorder(LoopbackServer):
    """An S3 with nothing in it that notes the region each request was signed for."""

    def __init__(self) -> None:
        super().__init__(_Reply)
        self.regions: list[str] = []


class _Reply(BaseHTTPRequestHandler):
    server: Recorder

    def do_GET(self) -> None:
        signed = re.search(r"Credential=[^/]+/\d+/([^/]+)/s3/", self.headers.get("Authorization", ""))
        self.server.regions.append(signed[1] if signed else "")
        self.send_response(200)
        self.send_header("Content-Length", str(len(NOTHING)))
        self.end_headers()
        self.wfile.write(NOTHING)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def s3() -> Iterator[Recorder]:
    server = Recorder()
    with serving(server):
        yield server


@pytest.fixture(autouse=True)
def credentials_and_no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-5e12")


def manifest(endpoint: str) -> Manifest:
    return Manifest(
        run="r1",
        worker=0,
        release="x",
        source="s3://audio",
        output="s3://results",
        deadline=datetime(2030, 1, 1, tzinfo=UTC),
        engine=EngineSpec(engine="pocketsphinx"),
        settings_hash="",
        region="us-east-2",
        endpoint=endpoint,
        chunks=(),
    )


def check(**fields: object) -> CheckRequest:
    return CheckRequest(now=NOW, engine=EngineSpec(engine="no-such-engine"), gpu=False, **fields)  # type: ignore[arg-type]


def test_a_worker_without_a_region_takes_that_of_its_manifest(s3: Recorder) -> None:
    for store in worker._open_stores(manifest(s3.url), MemoryStore(FakeClock())):
        assert list(store.list()) == []
    assert s3.regions == ["us-east-2"] * 2


def test_a_worker_s_own_environment_wins(s3: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    source, output = worker._open_stores(manifest("http://127.0.0.1:9"), MemoryStore(FakeClock()))
    assert [*source.list(), *output.list()] == []
    assert s3.regions == ["eu-west-1"] * 2


def test_a_manifest_is_looked_for_where_the_environment_says(
    s3: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    with pytest.raises(MisconfiguredError, match="not a readable Manifest"):
        worker.read_manifest(f"s3://results/{keys.manifest('r1', 0)}")
    assert s3.regions == ["us-east-2"]


def test_a_check_looks_where_the_workers_will(s3: Recorder) -> None:
    findings = inspect(check(source="s3://audio", region="us-east-2", endpoint=s3.url)).findings
    assert [(each.what, each.ok) for each in findings] == [("engine no-such-engine", False), ("store", True)]
    assert s3.regions == ["us-east-2"]


def test_a_host_without_credentials_is_no_host_without_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_url: str, **_options: object) -> MemoryStore:
        raise MissingCredentialsError("no credentials for s3://audio")

    monkeypatch.setattr(host, "open_store", refuse)
    _engine, found = inspect(check(source="s3://audio")).findings
    assert (found.what, found.ok, found.fix) == (CREDENTIALS, False, CREDENTIALS_FIX)
    assert "instance profile" in found.fix


def test_beside_a_run_no_second_model_is_loaded() -> None:
    (engine,) = inspect(check(busy=True)).findings
    assert engine.ok
    assert "not tested" in engine.detail


@pytest.mark.parametrize("made", [True, False])
def test_the_control_store_is_checked_as_well(tmp_path: Path, made: bool) -> None:
    control = tmp_path / "control"
    if made:
        control.write_text("no folder")
    found = inspect(check(source=tmp_path.as_uri(), control=control.as_uri())).findings
    (checked,) = [each for each in found if control.as_uri() in each.detail or str(control) in each.detail]
    assert checked.ok is not made, "one that is missing is made by the first write"


def test_a_worker_s_log_holds_no_secret_of_its_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leaking(_location: str, **_options: str) -> None:
        structlog.get_logger().error("the vendor says canary-5e12")
        raise SystemExit(1)

    monkeypatch.setattr(worker, "process_manifest", leaking)
    shown = CliRunner().invoke(command.worker, ["any"]).output + capsys.readouterr().err
    assert "the vendor says" in shown
    assert "canary-5e12" not in shown


def test_an_engine_fetches_its_own_model_or_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    places: list[str] = []

    def download(place: str, **_more: object) -> str:
        places.append(place)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    gpu_host = GpuHost(tmp_path, SystemClock())
    assert not fetch(gpu_host, EngineSpec(engine="pocketsphinx")).done
    assert fetch(gpu_host, EngineSpec(engine="parakeet", model="nemo-parakeet-tdt-0.6b-v3")).done
    assert {"tdt-0.6b-v3" in place for place in places} == {True}


def test_a_set_up_records_the_files_that_each_boot_reads_ahead(tmp_path: Path) -> None:
    gpu_host = GpuHost(tmp_path / "home", SystemClock())
    for name in ("tokenizer.json", "model.bin", "config.json", "readme.txt"):
        (tmp_path / name).touch()
    fetch(gpu_host, EngineSpec(engine="faster-whisper", model=str(tmp_path)))
    assert [file.name for file in gpu_host.read_model_files()] == [
        "config.json",
        "model.bin",
        "tokenizer.json",
    ]
    for damaged in (b"{", b'["\xff"]'):
        (tmp_path / "home" / ".batchscribe" / "model-files.json").write_bytes(damaged)
        assert gpu_host.read_model_files() == ()
