"""`gpu setup` and `gpu check`: whether an instance shows its tags to its host."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from batchscribe import __version__
from batchscribe.adapters.host_access.setup import HostSetup
from batchscribe.core import keys
from batchscribe.core.decide.fixed import ParkedParts
from batchscribe.core.run.host import CheckRequest, Finding, HostReply, InstanceRecord
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.manifest import EngineSpec, decode
from batchscribe.errors import ComputeUnavailableError, MisconfiguredError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from support.host_setup import PlayedSetup

INSTANCE = Instance(id="i-0123456789abcdef0", state=InstanceState.RUNNING)


class Host:
    def ask(self, _instance: Instance, _word: str, _data: bytes = b"", *, timeout: float) -> HostReply:
        assert timeout
        return HostReply(release=__version__)


@dataclass
class Cloud:
    """An instance's metadata options."""

    shown: bool = False
    denied: bool = False
    parked: ParkedParts | None = None
    store: MemoryStore = field(default_factory=lambda: MemoryStore(FakeClock()))

    def shows_tags(self, _instance: str) -> bool:
        return self.shown

    def show_tags(self, _instance: str) -> None:
        if self.denied:
            raise MisconfiguredError("the right ec2:ModifyInstanceMetadataOptions is missing")
        self.shown = True

    def parked_parts(self, _instance: str) -> ParkedParts | None:
        if self.denied:
            raise MisconfiguredError("the right ec2:DescribeVolumes is missing")
        return self.parked

    @property
    def setup(self) -> HostSetup:
        return PlayedSetup(
            client=Host(),
            clock=FakeClock(),
            request=CheckRequest(now=FakeClock().now(), engine=EngineSpec(engine="played"), gpu=False),
            output=self.store,
            published=lambda _instance: frozenset(),
            shows_tags=self.shows_tags,
            show_tags=self.show_tags,
            parked_parts=self.parked_parts,
        )

    def recorded(self) -> InstanceRecord:
        """What a set-up that installed the units records."""
        self.setup._enable_tags(INSTANCE)
        self.setup._write_record(INSTANCE, "", boots=True)
        return decode(self.store.get(keys.instance(INSTANCE.id)).data, InstanceRecord)

    def finding(self) -> Finding | None:
        return next((each for each in self.setup.check(INSTANCE) if each.what == "instance tags"), None)


def test_a_set_up_lets_the_instance_show_its_tags() -> None:
    cloud = Cloud()
    assert cloud.recorded().shows_tags
    found = cloud.finding()
    assert found is not None
    assert (found.ok, "compares the hash" in found.detail) == (True, True)


def test_without_the_right_to_that_the_host_gets_its_work_over_ssh() -> None:
    cloud = Cloud(denied=True)
    assert not cloud.recorded().shows_tags
    found = cloud.finding()
    assert found is not None
    assert (found.ok, "over ssh" in found.detail) == (True, True)


def test_a_set_up_records_what_is_billed_while_the_instance_is_stopped() -> None:
    cloud = Cloud(parked=ParkedParts(disk_gigabytes=20))
    assert cloud.recorded().parked == ParkedParts(disk_gigabytes=20)
    finding = cloud.setup._write_record(INSTANCE, "", boots=True)
    assert finding.detail.endswith("; billed while stopped: 20 GB of disk")
    cloud.denied = True
    assert cloud.recorded().parked == ParkedParts(disk_gigabytes=20), "as recorded before"
    assert Cloud(denied=True).recorded().parked is None


def test_a_check_fails_if_the_tags_are_not_shown_any_more() -> None:
    cloud = Cloud()
    cloud.recorded()
    cloud.shown = False
    found = cloud.finding()
    assert found is not None
    assert (found.ok, found.fix.startswith("batchscribe gpu setup")) == (False, True)


def test_a_host_without_units_needs_no_tags() -> None:
    cloud = Cloud()
    cloud.setup._write_record(INSTANCE, "", boots=False)
    assert cloud.finding() is None


@pytest.mark.parametrize("error", [ComputeUnavailableError("no answer"), MisconfiguredError("no right")])
def test_what_the_cloud_does_not_tell_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    cloud = Cloud(shown=True)

    def unknown(_instance: str) -> bool:
        raise error

    monkeypatch.setattr(cloud, "shows_tags", unknown)
    assert not cloud.recorded().shows_tags
    found = cloud.finding()
    assert found is not None
    assert f"not checked: {error}" in found.detail


def test_an_image_whose_machines_could_not_start_their_work_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("batchscribe.adapters.host_access.setup.install_units", lambda *_: "no systemd")
    with pytest.raises(MisconfiguredError, match=r"no image was made.*no systemd"):
        list(HostSetup._install_units(Cloud().setup, INSTANCE, image=True))
    assert [each.what for each in HostSetup._install_units(Cloud().setup, INSTANCE)][-1] == "launch at boot"
