"""Created machines on "AWS": moto for S3, EC2 and the guard, a real agent and real workers for each machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cli import finish_by_timer
from support.created import created_cloud
from support.s3 import CREDENTIALS

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


def test_three_machines_share_a_run_and_are_terminated(tmp_path: Path, endpoint: str) -> None:
    with created_cloud(tmp_path, endpoint) as cloud:
        cloud.add_speech(6)
        print(cloud.desk.run("doctor").stdout)
        print(cloud.desk.run("tick", "--no-wait"))
        print(cloud.states)
        report = finish_by_timer(cloud.desk)
        print(report)
        print(cloud.states, cloud.orders)
        for words in (["status"], ["report", "--last", "24h"], ["why", "talk-0.wav"], ["why"], ["report", report["run"]], ["gpu", "status"]):
            done = cloud.desk.run(*words)
            print(words, done.stdout, done.stderr)
        assert False
