"""Machines that runs create: settings that contradict each other, the check before a start, and doctor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchscribe.controller.commands.doctor import check_quota
from batchscribe.controller.commands.fleet_checks import (
    check_template,
    check_zones,
)
from batchscribe.core import keys
from batchscribe.core.decide.offers import Market
from batchscribe.core.run.cloud_account import Caller, MachineTemplate, MachineType, PortAccess, Quota
from batchscribe.core.run.host import Finding, InstanceRecord
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError
from batchscribe.settings import Settings, load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring import engine_choice
from batchscribe.wiring import preflight as start
from batchscribe.wiring.created.machine_checks import MachineChecks
from batchscribe.wiring.doctor import Preconditions
from batchscribe.wiring.engine_choice import EngineChoice
from batchscribe.wiring.preflight import preflight
from support.set_up_hosts import store_with

IMAGE = "ami-0123456789abcdef0"
GOOD = MachineTemplate(
    id="lt-0123456789abcdef0",
    image=IMAGE,
    shutdown="terminate",
    shows_tags=True,
    requires_tokens=True,
    profile="gpu",
)
NAMED = {
    "GPU_PROVIDER": "fleet",
    "GPU_LAUNCH_TEMPLATE": GOOD.id,
    "GPU_INSTANCE_TYPES": "g5.xlarge",
    "GPU_MAX_MACHINES": "3",
    "BATCH_SOURCE": "s3://audio/sessions",
    "BATCH_ENGINE": "pocketsphinx",
    "BATCH_GUARD_ROLE_ARN": "arn:aws:iam::123456789012:role/guard",
    "AWS_REGION": "us-east-2",
}


class FakeTemplates:
    def __init__(self, template: MachineTemplate | None = GOOD) -> None:
        self.template = template
        self.zones = {"us-east-2a": "subnet-1", "us-east-2b": "subnet-2"}
        self.offered = frozenset({"us-east-2b", "us-east-2c"})

    def describe(self, template: str) -> MachineTemplate:
        if self.template is None:
            raise ObjectNotFoundError(f"there is no launch template {template}")
        return self.template

    def choose_subnets(self, subnets: tuple[str, ...]) -> Mapping[str, str]:
        return self.zones

    def zones_with(self, instance_type: str) -> frozenset[str]:
        return self.offered


class FakeAccount:
    def caller(self) -> Caller:
        return Caller(account="123456789012", arn="arn:aws:iam::123456789012:user/batch")

    def machine_type(self, name: str) -> MachineType:
        return MachineType(name=name, vcpus=4, gpus="1 NVIDIA A10G")

    def quota(self, instance_type: str, market: Market = Market.ON_DEMAND) -> Quota:
        return Quota(code=market.value, vcpus=8 if market is Market.SPOT else 0)

    def port_access(self, instance: str, port: int) -> PortAccess:
        raise AssertionError("no port is needed")

    def schedule_group(self) -> str:
        return "ACTIVE"


def settings_of(folder: Path, **otherwise: str) -> Settings:
    return load({name: text for name, text in (NAMED | otherwise).items() if text}, folder=folder)


# Settings.


@pytest.mark.parametrize(
    ("otherwise", "says"),
    [
        ({"GPU_INSTANCE_ID": "i-0123456789abcdef0", "GPU_PROVIDER": "ray"}, "GPU_PROVIDER=ray has"),
        ({"BATCH_LAUNCH": "ssh"}, "BATCH_LAUNCH=ssh cannot start a GPU of GPU_PROVIDER=fleet"),
        ({"GPU_HOURLY_COST": "0.5"}, "BATCH_PRICE_FILE"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, otherwise: dict[str, str], says: str) -> None:
    with pytest.raises(MisconfiguredError, match=says):
        settings_of(tmp_path, **otherwise)


def test_a_fleet_is_guarded_and_has_a_lane(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, BATCH_CPU_LANE="auto")
    assert (settings.cloud_guard, settings.has_lane) == ("eventbridge", True)
    assert settings.markets == (Market.SPOT, Market.ON_DEMAND)


# Before a start.


@pytest.fixture
def templates(monkeypatch: pytest.MonkeyPatch) -> FakeTemplates:
    made = FakeTemplates()
    monkeypatch.setattr(start, "open_templates", lambda _settings: made)
    return made


def test_a_start_with_all_that_machines_need_is_permitted(tmp_path: Path, templates: FakeTemplates) -> None:
    store = store_with(IMAGE)
    preflight(settings_of(tmp_path), store)
    copied = msgspec.json.decode(store.get(keys.instance(GOOD.id)).data, type=InstanceRecord)
    assert copied.instance == IMAGE, "a run copies the template's record for its machines"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shutdown": "stop"}, "would stop when it powers itself off"),
        ({"shows_tags": False}, "does not show its tags"),
        ({"image": ""}, "has no image"),
        ({"profile": ""}, "no instance profile"),
    ],
)
def test_a_template_whose_machines_could_not_work_starts_nothing(
    tmp_path: Path, templates: FakeTemplates, change: dict[str, Any], says: str
) -> None:
    templates.template = _changed(change)
    with pytest.raises(MisconfiguredError, match=says):
        preflight(settings_of(tmp_path), store_with(IMAGE))


def _changed(change: dict[str, Any]) -> MachineTemplate:
    fields = {name: getattr(GOOD, name) for name in MachineTemplate.__slots__}
    return MachineTemplate(**(fields | change))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"release": "0.0.1"}, "this is"),
        ({"boots": False}, "would not begin its work at boot"),
        ({"shows_tags": False}, "would not begin its work at boot"),
        ({"engine": "whisper", "model": "small.en"}, "was prepared for whisper small.en"),
    ],
)
def test_an_image_that_cannot_do_the_work_starts_nothing(
    tmp_path: Path, templates: FakeTemplates, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(MisconfiguredError, match=says) as caught:
        preflight(settings_of(tmp_path), store_with(IMAGE, **change))
    assert "gpu image" in str(caught.value)


@pytest.mark.parametrize(
    ("otherwise", "says"),
    [
        ({"GPU_LAUNCH_TEMPLATE": ""}, "GPU_LAUNCH_TEMPLATE is not set"),
        ({"GPU_INSTANCE_TYPES": ""}, "GPU_INSTANCE_TYPES is not set"),
        ({"BATCH_GUARD_ROLE_ARN": ""}, "BATCH_GUARD_ROLE_ARN is not set"),
    ],
)
def test_missing_settings_start_nothing(
    tmp_path: Path, templates: FakeTemplates, otherwise: dict[str, str], says: str
) -> None:
    with pytest.raises(MisconfiguredError, match=says):
        preflight(settings_of(tmp_path, **otherwise), store_with(IMAGE))


def test_an_image_that_was_not_made_by_us_starts_nothing(tmp_path: Path, templates: FakeTemplates) -> None:
    with pytest.raises(MisconfiguredError, match=f"{IMAGE} was not made by"):
        preflight(settings_of(tmp_path), MemoryStore(FakeClock()))


def test_auto_is_the_engine_of_the_image_at_the_first_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice, "open_templates", lambda _settings: FakeTemplates())
    settings = settings_of(tmp_path, BATCH_ENGINE="whisper")
    chosen = EngineChoice(settings, store_with(IMAGE, engine="whisper", model="tiny.en")).choose("")
    assert (chosen.engine, chosen.model) == ("whisper", "tiny.en")


def test_auto_is_the_engine_of_the_last_start_if_ec2_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice, "open_templates", lambda _settings: FakeTemplates(None))
    settings, store = (
        settings_of(tmp_path, BATCH_ENGINE="whisper"),
        store_with(IMAGE, engine="whisper", model="tiny.en"),
    )
    store.replace(keys.instance(GOOD.id), store.get(keys.instance(IMAGE)).data)
    assert EngineChoice(settings, store).choose("").model == "tiny.en"


# Doctor.


def not_called() -> Instance:
    return Instance(id="none", state=InstanceState.MISSING)


def examine(settings: Settings, templates: FakeTemplates, store: MemoryStore) -> dict[str, list[Finding]]:
    def open_parent(_url: str) -> MemoryStore:
        return store

    made = Preconditions(
        settings=settings,
        clock=FakeClock(),
        source=store,
        output=store,
        open_parent=open_parent,
        account=FakeAccount(),
        describe=not_called,
        machines=MachineChecks(settings, templates),
    )
    found: dict[str, list[Finding]] = {}
    for group, finding in made.check():
        found.setdefault(group, []).append(finding)
    return found


def test_doctor_checks_what_machines_are_created_from(tmp_path: Path) -> None:
    found = examine(settings_of(tmp_path), FakeTemplates(), store_with(IMAGE))
    assert "GPU instance" not in found
    machines = {finding.what: finding for finding in found["machines"]}
    assert [finding.what for finding in found["machines"]].count("quota") == 2
    assert machines["template"].detail == f"{GOOD.id}, version 1, image {IMAGE}"
    assert machines["zones"].detail == "g5.xlarge in us-east-2b"
    assert "g5.xlarge spot $" in machines["price"].detail
    assert "g5.xlarge on-demand $" in machines["price"].detail
    assert {finding.what for finding in found["guard"]} == {"guard", "stop orders", "armed"}


def test_doctor_goes_on_without_the_template(tmp_path: Path) -> None:
    found = examine(settings_of(tmp_path), FakeTemplates(None), store_with(IMAGE))
    failures = [finding for finding in found["machines"] if not finding.ok]
    assert "there is no launch template" in failures[0].detail
    assert any(finding.what == "price" and finding.ok for finding in found["machines"])


@pytest.mark.parametrize(
    ("make", "ok", "says"),
    [
        (lambda: check_zones("g5.xlarge", {"a"}, {"b"}), False, "no subnet is in a zone with g5.xlarge: a"),
        (lambda: check_zones("x1.never", set(), {"b"}), False, "no zone offers it"),
        (lambda: check_zones("g5.xlarge", {"a", "b"}, {"b"}), True, "g5.xlarge in b"),
        (lambda: _quota(12), True, "12 vCPUs may run spot, 3 x g5.xlarge have 12"),
        (lambda: _quota(8), True, "8 vCPUs"),
        (lambda: _quota(3), False, "3 vCPUs"),
    ],
)
def test_each_check_grades_what_it_found(make: Callable[[], Finding], ok: bool, says: str) -> None:
    found = make()
    assert (found.ok, says in found.detail) == (ok, True), found
    assert found.ok or found.fix


def _quota(vcpus: int) -> Finding:
    kind = MachineType(name="g5.xlarge", vcpus=4)
    return check_quota(Quota(code="L-1", vcpus=vcpus), kind, "us-east-2", Market.SPOT, 3)


def test_metadata_without_tokens_is_a_warning() -> None:
    found = list(check_template(_changed({"requires_tokens": False})))
    assert all(finding.ok for finding in found)
    assert "IMDSv2" in found[-1].detail
