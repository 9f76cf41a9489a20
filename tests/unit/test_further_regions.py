"""Further regions of a fleet: the setting, and what is read, checked, priced and permitted in each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from batchscribe.adapters.aws.fleet import FleetCapacity
from batchscribe.adapters.regional import RegionalCapacity, RegionalGuard
from batchscribe.cli.main import cli
from batchscribe.core import keys
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.offers import Market
from batchscribe.core.run.cloud_account import FurtherRegion, MachineTemplate
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.instances import RUN_TAG, Instance, InstanceState
from batchscribe.errors import ComputeUnavailableError, DamagedLedgerError, MisconfiguredError
from batchscribe.ledger import Ledger
from batchscribe.ledger.ledger import FILE_NAME
from batchscribe.settings import Settings, load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.compute import Fault
from batchscribe.testing.fleet import FakeFleet
from batchscribe.testing.prices import FakePriceSource
from batchscribe.wiring import preflight as start
from batchscribe.wiring import prices
from batchscribe.wiring.doctor import open_preconditions
from batchscribe.wiring.gpu import GpuTools, open_gpu_tools
from batchscribe.wiring.preflight import preflight
from batchscribe.wiring.rights import make_documents, make_place
from batchscribe.wiring.seams import open_capacity, open_guard, settings_of_run
from support.s3 import CREDENTIALS
from support.set_up_hosts import store_with
from support.values import run

ROLE = "arn:aws:iam::123456789012:role"
WEST = FurtherRegion(
    name="us-west-2", template="lt-west", role=f"{ROLE}/west", subnets=("subnet-1", "subnet-2")
)
NAMED = {
    "GPU_PROVIDER": "fleet",
    "GPU_LAUNCH_TEMPLATE": "lt-home",
    "GPU_INSTANCE_TYPES": "g5.xlarge",
    "GPU_FURTHER_REGIONS": str(WEST),
    "GPU_SUBNETS": "subnet-0",
    "BATCH_SOURCE": "s3://audio/sessions",
    "BATCH_ENGINE": "pocketsphinx",
    "BATCH_GUARD_ROLE_ARN": f"{ROLE}/home",
    "AWS_REGION": "us-east-2",
}


def settings_of(folder: Path, **otherwise: str) -> Settings:
    return load({name: text for name, text in (NAMED | otherwise).items() if text}, folder=folder)


# The setting.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (str(WEST), (WEST,)),
        ("eu-west-1 gpu", (FurtherRegion(name="eu-west-1", template="gpu"),)),
        (
            f"us-gov-west-1,subnet-1,{ROLE}/a,lt-1 ap-southeast-2 lt-2",
            (
                FurtherRegion(name="us-gov-west-1", template="lt-1", role=f"{ROLE}/a", subnets=("subnet-1",)),
                FurtherRegion(name="ap-southeast-2", template="lt-2"),
            ),
        ),
    ],
)
def test_each_region_is_followed_by_what_it_has(
    tmp_path: Path, text: str, expected: tuple[FurtherRegion, ...]
) -> None:
    settings = settings_of(tmp_path, GPU_FURTHER_REGIONS=text)
    assert settings.further_regions == expected
    (shown,) = (row.value for row in settings.list_effective() if row.name == "GPU_FURTHER_REGIONS")
    assert settings_of(tmp_path, GPU_FURTHER_REGIONS=str(shown)).further_regions == expected


@pytest.mark.parametrize(
    ("otherwise", "says"),
    [
        ({"GPU_FURTHER_REGIONS": "lt-1"}, "must be regions, each with its launch template"),
        ({"GPU_FURTHER_REGIONS": "us-west-2"}, "must be regions"),
        ({"GPU_FURTHER_REGIONS": "lt-1 us-west-2"}, "must be regions"),
        ({"GPU_FURTHER_REGIONS": "us-west-2 lt-1 lt-2"}, "must be regions"),
        ({"GPU_FURTHER_REGIONS": "us-west-2 subnet-1"}, "must be regions"),
        ({"GPU_FURTHER_REGIONS": f"us-west-2 lt-1 {ROLE}/a {ROLE}/b"}, "must be regions"),
        ({"GPU_FURTHER_REGIONS": "us-west-2 lt-1 arn:aws:iam::1:user/x"}, "must be regions"),
        ({"GPU_FURTHER_REGIONS": "us-west-2 lt-1 us-west-2 lt-2"}, "list each region once"),
        ({"GPU_FURTHER_REGIONS": "us-east-2 lt-1"}, "list each region once"),
        ({"AWS_REGION": ""}, "GPU_FURTHER_REGIONS is set without AWS_REGION"),
    ],
)
def test_a_region_that_is_incomplete_or_repeated_is_refused(
    tmp_path: Path, otherwise: dict[str, str], says: str
) -> None:
    with pytest.raises(MisconfiguredError, match=says):
        settings_of(tmp_path, **otherwise)


@pytest.mark.parametrize("provider", ["ec2", "ray", "local"])
def test_further_regions_are_refused_if_no_run_creates_machines(tmp_path: Path, provider: str) -> None:
    with pytest.raises(MisconfiguredError, match=f"GPU_FURTHER_REGIONS .*GPU_PROVIDER={provider}"):
        settings_of(tmp_path, GPU_PROVIDER=provider, BATCH_GUARD_ROLE_ARN="", BATCH_CLOUD_GUARD="off")


def test_the_settings_of_each_region_are_its_own(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    home, west = settings.by_region()
    assert home == replace(settings, further_regions=())
    assert (west.region, west.launch_template, west.subnets) == ("us-west-2", "lt-west", WEST.subnets)
    assert (west.guard_role_arn, west.instance_types) == (WEST.role, settings.instance_types)
    ec2 = replace(settings, provider="ec2")
    assert ec2.by_region() == (ec2,), "only created machines are in several regions"


# Adapters.


def test_one_region_has_the_plain_adapters(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, GPU_FURTHER_REGIONS="")
    assert isinstance(open_capacity(settings, FakeClock()), FleetCapacity)
    assert not isinstance(open_guard(settings), RegionalGuard)


def test_each_region_has_offers_and_a_guard(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    capacity = open_capacity(settings, FakeClock())
    assert isinstance(capacity, RegionalCapacity)
    offers = capacity.offers(Instance(id="", state=InstanceState.STOPPED))
    assert [offer.name for offer in offers] == [
        "g5.xlarge spot",
        "g5.xlarge",
        "g5.xlarge spot us-west-2",
        "g5.xlarge us-west-2",
    ]
    assert ["us-west-2" in offer.rate.source for offer in offers] == [False, False, True, True]
    assert isinstance(open_guard(settings), RegionalGuard)


def test_a_run_keeps_its_regions_after_the_settings_changed(tmp_path: Path) -> None:
    opened = replace(run(), provider="fleet", region="us-east-2", further_regions=(WEST,))
    then = settings_of_run(settings_of(tmp_path, GPU_FURTHER_REGIONS="eu-west-1 lt-1"), opened)
    assert [there.region for there in then.by_region()] == ["us-east-2", "us-west-2"]
    assert then.by_region()[1].launch_template == "lt-west"
    before = replace(opened, further_regions=())
    assert settings_of_run(settings_of(tmp_path), before).by_region()[1:] == ()


def test_a_run_keeps_its_home_region_after_that_became_a_further_one(tmp_path: Path) -> None:
    opened = replace(run(), provider="fleet", region="us-east-2", further_regions=(WEST,))
    now = settings_of(
        tmp_path,
        AWS_REGION="us-west-2",
        GPU_LAUNCH_TEMPLATE="lt-west",
        GPU_SUBNETS="subnet-1",
        BATCH_GUARD_ROLE_ARN=f"{ROLE}/west",
        GPU_FURTHER_REGIONS=f"eu-west-1 lt-eu us-east-2 lt-home subnet-0 {ROLE}/home",
    )
    home, west = settings_of_run(now, opened).by_region()
    assert (home.region, home.launch_template, home.subnets) == ("us-east-2", "lt-home", ("subnet-0",))
    assert (home.guard_role_arn, west.launch_template) == (f"{ROLE}/home", "lt-west")


@pytest.mark.parametrize(("now", "others"), [(str(WEST), 0), ("", 1), ("us-west-2 lt-other", 1)])
def test_manual_control_knows_the_regions_of_open_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str, others: int
) -> None:
    settings = settings_of(tmp_path, GPU_FURTHER_REGIONS=now, BATCH_SOURCE=str(tmp_path))
    settings = replace(settings, state_dir=tmp_path, output=settings.source)
    opened = replace(
        run(),
        provider="fleet",
        region="us-east-2",
        further_regions=(WEST,),
        source=settings.source,
        output=settings.output,
    )
    ledger = Ledger(tmp_path / FILE_NAME)
    ledger.save_run(opened, at=opened.created)
    ledger.close()
    with open_gpu_tools(settings) as at:
        found = list(at.list_others(at))
        assert isinstance(at.guard, RegionalGuard) == bool(now), "it removes the orders of every region"
    assert len(found) == others * len(opened.instances)
    assert all(isinstance(each.guard, RegionalGuard) for each in found)


def test_manual_control_has_the_price_of_each_machine(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, GPU_FURTHER_REGIONS="", BATCH_SOURCE=str(tmp_path))
    settings = replace(settings, state_dir=tmp_path, output=settings.source)
    opened = replace(run(), provider="fleet", region="us-east-2", further_regions=(WEST,))
    (name, *_), own = opened.instances, Rate(per_hour=Usd(70_000), source="west")
    opened = opened.with_machine(name, type="g5.xlarge", market="spot", region=WEST.name, rate=own)
    with Ledger(tmp_path / FILE_NAME) as ledger:
        ledger.save_run(opened, at=opened.created)
    with open_gpu_tools(settings) as at:
        (found, *_) = at.list_others(at)
    assert found.find_rate(Instance(id=name, state=InstanceState.RUNNING)) == own


def test_manual_control_has_each_machine_once_after_a_region_was_added(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, BATCH_SOURCE=str(tmp_path))
    settings = replace(settings, state_dir=tmp_path, output=settings.source)
    opened = replace(run(), provider="fleet", region="us-east-2")
    with Ledger(tmp_path / FILE_NAME) as ledger:
        ledger.save_run(opened, at=opened.created)
    clock = FakeClock()
    fleet = FakeFleet(clock, ())
    fleet.create(opened.instance, "g5.xlarge", "spot", "a", {RUN_TAG: opened.id})
    clock.sleep(60)
    with open_gpu_tools(settings) as at:
        found = [each.instance for each in replace(at, created=fleet).machines()]
    assert found == list(opened.instances)


def test_a_ledger_that_cannot_be_read_hides_no_region_without_an_answer(tmp_path: Path) -> None:
    def refuse(_at: GpuTools) -> tuple[GpuTools, ...]:
        raise DamagedLedgerError("the ledger is damaged")

    settings = settings_of(tmp_path, BATCH_SOURCE=str(tmp_path))
    fleet = FakeFleet(FakeClock(), ())
    fleet.fail("list_created", Fault(ComputeUnavailableError("west does not answer")))
    with open_gpu_tools(replace(settings, state_dir=tmp_path, output=settings.source)) as at:
        tools = replace(at, created=fleet, list_others=refuse)
        with pytest.raises(DamagedLedgerError, match="west does not answer; the ledger is damaged"):
            list(tools.machines())


# Before a start.


class FakeTemplates:
    def __init__(self, settings: Settings) -> None:
        self.region = settings.region

    def describe(self, template: str) -> MachineTemplate:
        return MachineTemplate(
            id=template, image=f"ami-{self.region}", shutdown="terminate", shows_tags=True, profile="gpu"
        )

    def choose_subnets(self, subnets: tuple[str, ...]) -> Mapping[str, str]:
        return {f"{self.region}a": "subnet-1"}

    def zones_with(self, _type: str) -> frozenset[str]:
        return frozenset({f"{self.region}a"})


def test_a_start_needs_what_machines_need_in_each_region(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "open_templates", FakeTemplates)
    store = store_with("ami-us-east-2", "ami-us-west-2")
    preflight(settings_of(tmp_path), store)
    copied = msgspec.json.decode(store.get(keys.instance("lt-home")).data, type=InstanceRecord)
    assert copied.instance == "ami-us-east-2"
    with pytest.raises(MisconfiguredError, match="gpu image --made ami-us-west-2"):
        preflight(settings_of(tmp_path), store_with("ami-us-east-2"))
    without = str(replace(WEST, role=""))
    with pytest.raises(MisconfiguredError, match="GPU_FURTHER_REGIONS has no role in us-west-2"):
        preflight(settings_of(tmp_path, GPU_FURTHER_REGIONS=without), store)
    preflight(settings_of(tmp_path, GPU_FURTHER_REGIONS=without, BATCH_CLOUD_GUARD="off"), store)


def test_the_image_of_each_region_is_prepared_for_the_one_engine_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "open_templates", FakeTemplates)
    settings, store = settings_of(tmp_path, BATCH_ENGINE="auto"), store_with("ami-us-east-2", "ami-us-west-2")
    for image, model in {"ami-us-east-2": "tiny", "ami-us-west-2": "small"}.items():
        record = msgspec.json.decode(store.get(keys.instance(image)).data, type=InstanceRecord)
        prepared = msgspec.structs.replace(record, engine="faster-whisper", model=model)
        store.replace(keys.instance(image), msgspec.json.encode(prepared))
    with pytest.raises(MisconfiguredError, match="for faster-whisper small, not for faster-whisper tiny"):
        preflight(settings, store)


def test_doctor_has_a_group_for_each_further_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    settings = settings_of(tmp_path, AWS_ENDPOINT_URL="http://127.0.0.1:9", BATCH_SOURCE=str(tmp_path))
    made = open_preconditions(settings)
    assert made.machines is not None
    (west,) = made.further
    assert (west.settings.region, west.settings.launch_template) == ("us-west-2", "lt-west")
    groups = dict(made.list_groups())
    assert list(groups)[-6:][:3] == ["machines", "machines, us-west-2", "engine"]
    found = {finding.what: finding for finding in groups["machines, us-west-2"]()}
    assert not found["template"].ok
    assert "us-west-2" in found["price"].detail
    assert "stop orders" in found


# Prices.


def test_spot_prices_are_read_for_each_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    day = clock.now().date().isoformat()
    spot = {"us-east-2a": {"g5.xlarge": "0.4"}, "us-west-2b": {"g5.xlarge": "0.3"}}
    source = FakePriceSource({}, as_of=day, spot=spot)
    monkeypatch.setattr(prices, "open_price_source", lambda *_any: source)
    settings = replace(settings_of(tmp_path), state_dir=tmp_path)
    prices.read_spot_prices(settings, clock)
    offers = open_capacity(settings, clock).offers(Instance(id="", state=InstanceState.STOPPED))
    found = {offer.region: offer.rate.per_hour for offer in offers if offer.market is Market.SPOT}
    assert found == {"": Usd(400_000), "us-west-2": Usd(300_000)}


# Rights.


def test_the_scheduler_has_the_rights_in_each_region(tmp_path: Path) -> None:
    home, west = map(make_place, settings_of(tmp_path).by_region())
    documents = make_documents(home, [west])
    assert documents["scheduler"]["policy"] == make_documents(home)["scheduler"]["policy"]
    policies: list[Any] = [documents["scheduler"][name] for name in ("policy", "policy us-west-2")]
    texts = [json.dumps(policy, separators=(",", ":")) for policy in policies]
    assert max(map(len, texts)) < 6_144, "IAM's limit of a policy"
    assert ["ReadAudioAndResults" in text for text in texts] == [True, False]
    places = (("lt-home", "us-east-2", "home"), ("lt-west", "us-west-2", "west"))
    for policy, text, (template, region, role) in zip(policies, texts, places, strict=True):
        assert f"arn:aws:ec2:{region}:123456789012:launch-template/{template}" in text
        assert f"arn:aws:ec2:{region}:123456789012:instance/*" in text
        assert f"arn:aws:scheduler:{region}:123456789012:schedule/batchscribe/*" in text
        assert f'"aws:RequestedRegion":"{region}"' in text
        passed = [each["Resource"] for each in policy["Statement"] if each["Action"] == "iam:PassRole"]
        assert passed == [home.host_role, f"{ROLE}/{role}"]


def test_iam_policy_prints_the_rights_of_each_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["iam-policy", "--role", "scheduler"], env=NAMED)
    assert "# policy us-west-2\n" in done.stdout
    assert "GUARD_ROLE" not in done.stderr
    without = NAMED | {"GPU_FURTHER_REGIONS": "us-west-2 lt-west"}
    placed = CliRunner().invoke(cli, ["iam-policy", "--role", "scheduler"], env=without)
    for name in ("ACCOUNT_ID", "GUARD_ROLE"):
        assert name in placed.stdout
        assert f"{name} is unknown and stays a placeholder" in placed.stderr
    stop = CliRunner().invoke(cli, ["iam-policy", "--role", "stop"], env=NAMED)
    assert "us-west-2" not in stop.stdout, "that role is made by the stack of its region"
