"""The instance's own tags, read from its metadata service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from batchscribe import aws_environment
from batchscribe.adapters.aws.metadata import read_interruption, read_tag
from batchscribe.core.run.instances import MANIFEST_TAG
from batchscribe.errors import ComputeUnavailableError
from support.metadata import Metadata, metadata_service


@pytest.fixture
def service() -> Iterator[Metadata]:
    with metadata_service({MANIFEST_TAG: "abc", "batchscribe:run": "r"}) as made:
        yield made


def test_a_tag_is_read_with_a_token_and_past_any_proxy(
    service: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert read_tag(MANIFEST_TAG, service.url) == "abc"


@pytest.mark.parametrize("tags", [None, {}, {"batchscribe:run": "r"}])
def test_a_tag_that_is_not_shown_is_none(service: Metadata, tags: dict[str, str] | None) -> None:
    service.tags = tags
    assert read_tag(MANIFEST_TAG, service.url) is None


@pytest.mark.parametrize("error", [401, 403, 500])
def test_another_answer_may_go_away(service: Metadata, error: int) -> None:
    service.error = error
    with pytest.raises(ComputeUnavailableError, match=str(error)):
        read_tag(MANIFEST_TAG, service.url)


def test_no_answer_may_go_away() -> None:
    with metadata_service() as gone:
        url = gone.url
    with pytest.raises(ComputeUnavailableError, match="did not answer"):
        read_tag(MANIFEST_TAG, url)


def test_the_service_is_where_aws_has_it_unless_the_environment_names_another() -> None:
    assert aws_environment.find_metadata_url({}) == "http://169.254.169.254"
    named = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1/"}
    assert aws_environment.find_metadata_url(named) == "http://127.0.0.1:1"


NOTICE = '{"action": "terminate", "time": "2026-11-30T03:00:00Z"}'


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        ({}, ""),
        ({"instance-life-cycle": "spot"}, ""),
        (
            {"instance-life-cycle": "spot", "spot/instance-action": NOTICE},
            "terminate at 2026-11-30T03:00:00Z",
        ),
        ({"instance-life-cycle": "spot", "spot/instance-action": "?"}, "EC2 revokes this spot instance"),
        ({"instance-life-cycle": "on-demand", "spot/instance-action": NOTICE}, ""),
    ],
)
def test_a_spot_instance_shows_that_it_is_taken_back(
    service: Metadata, shown: dict[str, str], why: str
) -> None:
    service.shown = shown
    assert why in read_interruption(service.url)
    assert bool(read_interruption(service.url)) is bool(why)


def test_an_unknown_life_cycle_is_asked_for_again(service: Metadata) -> None:
    service.error = 500
    with pytest.raises(ComputeUnavailableError):
        read_interruption(service.url)
    service.error = 0
    service.shown = {"instance-life-cycle": "spot", "spot/instance-action": NOTICE}
    assert read_interruption(service.url)
