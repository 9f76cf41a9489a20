"""What is known before a start is refused by dry run and tick alike, and nothing is started.

Real command lines in front of an emulated cloud, which records every call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from batchscribe.core import keys
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.manifest import decode
from batchscribe.core.text.transcripts import encode
from support.emulated import Case

pytestmark = pytest.mark.e2e
MISCONFIGURED = 2
ELSEWHERE = "i-0fedcba9876543210"


def recorded(**fields: Any) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        key = keys.instance(case.instance)
        record = case.aws.s3.get_object(Bucket=case.bucket, Key=key)["Body"].read()
        case.put(key, encode(msgspec.structs.replace(decode(record, InstanceRecord), **fields)))

    return change


def forget_set_up(case: Case) -> None:
    case.aws.s3.delete_object(Bucket=case.bucket, Key=keys.instance(case.instance))


def open_key(case: Case) -> None:
    (case.home / "open.pem").write_text("a private key")
    (case.home / "open.pem").chmod(0o644)


def unchanged(_case: Case) -> None:
    pass


REFUSALS: dict[str, tuple[dict[str, str], Callable[[Case], None], str]] = {
    "engine": ({"BATCH_ENGINE": "poketsphinx"}, unchanged, "did you mean pocketsphinx?"),
    "model": ({"BATCH_ENGINE": "auto", "WHISPER_MODEL": "smal.en"}, unchanged, "did you mean small.en?"),
    "no key file": ({"GPU_SSH_KEY_PATH": "/nope.pem"}, unchanged, "correct GPU_SSH_KEY_PATH"),
    "open key file": ({"GPU_SSH_KEY_PATH": "open.pem"}, open_key, "chmod 600"),
    "no guard role": ({"BATCH_GUARD_ROLE_ARN": ""}, unchanged, "BATCH_GUARD_ROLE_ARN is not set"),
    "no set-up": ({}, forget_set_up, "is not set up: run `batchscribe gpu setup`"),
    "other version": ({}, recorded(release="0.0.1"), "has batchscribe 0.0.1"),
    "other model": (
        {},
        recorded(engine="faster-whisper", model="tiny.en"),
        "was prepared for faster-whisper tiny.en, not for",
    ),
    "no credentials": ({}, recorded(credentials=False), "attach an instance profile"),
    "no boot": ({"BATCH_LAUNCH": "boot"}, recorded(boots=False), "no units that start at boot"),
    "state folder": ({"BATCH_STATE_DIR": "/dev/null/state"}, unchanged, "/dev/null/state"),
    "setting": ({"BATCH_TRESHOLD": "5"}, unchanged, "did you mean BATCH_THRESHOLD?"),
    "instance": ({"GPU_INSTANCE_ID": ELSEWHERE}, unchanged, f"{ELSEWHERE} was not found in us-east-1"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_dry_run_and_a_tick_refuse_it_and_start_nothing(case: Case, name: str) -> None:
    names, change, says = REFUSALS[name]
    change(case)
    for words in (("tick", "--dry-run"), ("tick",)):
        ended = case.command(*words, crash="", lands=None, host="", **names)
        assert ended.code == MISCONFIGURED, (words, ended)
        assert says in ended.output + ended.errors, (words, ended)
    assert "StartInstances" not in case.aws.proxy.calls
    assert "CreateSchedule" not in case.aws.proxy.calls
    assert case.described()["State"]["Name"] == "stopped"
    assert case.intents == []


def test_a_desk_that_a_dry_run_calls_fine_starts(case: Case) -> None:
    assert case.command("tick", "--dry-run").code == 0
    case.tick()
    assert "StartInstances" in case.aws.proxy.calls


@pytest.mark.parametrize("words", [("gpu", "status"), ("tick", "--dry-run"), ("doctor",)])
def test_an_instance_that_is_not_there_is_named_with_the_region(case: Case, words: tuple[str, ...]) -> None:
    ended = case.command(*words, GPU_INSTANCE_ID=ELSEWHERE, GPU_HOURLY_COST="0.5")
    assert ended.code == MISCONFIGURED
    says = f"{ELSEWHERE} was not found in us-east-1 (AWS_REGION from the environment)"
    assert says in ended.output + ended.errors


def levels(document: Any) -> dict[str, str]:
    return {row["name"]: row["level"] for row in document["checks"]}


def test_the_doctor_finds_a_sound_desk_sound(case: Case) -> None:
    ended = case.command("doctor", BATCH_LAUNCH="auto")
    assert (ended.code, ended.document["ok"]) == (0, True), ended
    found = levels(ended.document)
    assert {name for name, level in found.items() if level != "pass"} == {
        "model",
        "quota",
        "armed",
        "timer",
        "receivers",
        "rehearsal",
    }
    assert {row["name"]: row for row in ended.document["checks"]}["quota"]["detail"].startswith("not checked")
    # Its probe is deleted again, and it changes nothing of the instance.
    assert [key for key in case.objects() if "doctor" in key] == []
    assert not {"StartInstances", "CreateTags", "CreateSchedule"} & set(case.aws.proxy.calls)


def test_the_doctor_names_all_that_is_wrong_at_once(case: Case) -> None:
    ended = case.command("doctor", BATCH_ENGINE="poketsphinx", BATCH_SOURCE=f"s3://{case.bucket}/sesions")
    assert ended.code == MISCONFIGURED
    found = levels(ended.document)
    assert {name for name, level in found.items() if level == "fail"} == {
        "engine",
        "set-up",
        "ssh port",
    }
    details = {row["name"]: row for row in ended.document["checks"]}
    assert f"; audio is under s3://{case.bucket}/s" in details["audio"]["detail"]
    assert details["engine"]["fix"].startswith("did you mean pocketsphinx?")
