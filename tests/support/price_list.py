"""Replies of AWS's Price List and of EC2's spot history, as they come over the wire."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from botocore.awsrequest import AWSResponse

from batchscribe.adapters.aws.clients import open_client

REGION = "us-east-2"
PREFIX = "USE2-"


def product(family: str, price: str, unit: str, **attributes: str) -> str:
    """One entry of a PriceList: a JSON text with its terms."""
    sku = f"SKU{len(family)}{price}"
    dimension = {
        "unit": unit,
        "endRange": "Inf",
        "description": f"${price} per {unit}",
        "appliesTo": [],
        "rateCode": f"{sku}.JRTCKXETXF.6YS6EN2CT7",
        "beginRange": "0",
        "pricePerUnit": {"USD": price},
    }
    term = {
        "priceDimensions": {f"{sku}.JRTCKXETXF.6YS6EN2CT7": dimension},
        "sku": sku,
        "effectiveDate": "2026-11-01T00:00:00Z",
        "offerTermCode": "JRTCKXETXF",
        "termAttributes": {},
    }
    body = {
        "product": {
            "productFamily": family,
            "attributes": {"regionCode": REGION, "locationType": "AWS Region", **attributes},
            "sku": sku,
        },
        "serviceCode": "AmazonEC2",
        "terms": {"OnDemand": {f"{sku}.JRTCKXETXF": term}},
        "version": "20261120190101",
        "publicationDate": "2026-11-20T19:01:01Z",
    }
    return json.dumps(body)


def machine(name: str, price: str, family: str = "GPU instance") -> str:
    return product(
        "Compute Instance",
        price,
        "Hrs",
        instanceType=name,
        instanceFamily=family,
        operatingSystem="Linux",
        tenancy="Shared",
        preInstalledSw="NA",
        capacitystatus="Used",
        marketoption="OnDemand",
        usagetype=f"{PREFIX}BoxUsage:{name}",
    )


def storage(price: str, usage: str, **attributes: str) -> str:
    return product("Storage", price, "GB-Mo", usagetype=f"{PREFIX}{usage}", **attributes)


OFFERS = (
    machine("g4dn.xlarge", "0.5260000000"),
    machine("g6e.2xlarge", "2.2420800000"),
    machine("p4d.24xlarge", "21.9576420000"),
    machine("t4g.nano", "0.0042000000", "General purpose"),
    # A product of a reservation's capacity has no price of its own.
    machine("g5.xlarge", "0.0000000000"),
    storage("0.0800000000", "EBS:VolumeUsage.gp3", volumeApiName="gp3"),
    product("Storage Snapshot", "0.0125000000", "GB-Mo", usagetype=f"{PREFIX}EBS:SnapshotArchiveStorage"),
    product("Storage Snapshot", "0.0500000000", "GB-Mo", usagetype=f"{PREFIX}EBS:SnapshotUsage"),
    product(
        "", "0.0050000000", "Hrs", group="VPCPublicIPv4Address", usagetype=f"{PREFIX}PublicIPv4:IdleAddress"
    ),
    product(
        "", "0.0040000000", "Hrs", group="VPCPublicIPv4Address", usagetype=f"{PREFIX}PublicIPv4:InUseAddress"
    ),
    product(
        "API Request", "0.0000050000", "Requests", group="S3-API-Tier1", usagetype=f"{PREFIX}Requests-Tier1"
    ),
    product(
        "API Request", "0.0000004000", "Requests", group="S3-API-Tier2", usagetype=f"{PREFIX}Requests-Tier2"
    ),
)
SPOT = (
    ("g4dn.xlarge", "us-east-2a", "0.199000", "2026-11-29T09:00:00.000Z"),
    ("g4dn.xlarge", "us-east-2a", "0.190300", "2026-11-29T11:00:00.000Z"),
    ("g4dn.xlarge", "us-east-2b", "0.191900", "2026-11-29T10:00:00.000Z"),
)
ITEM = (
    "<item><instanceType>{}</instanceType><productDescription>Linux/UNIX</productDescription>"
    "<spotPrice>{}</spotPrice><timestamp>{}</timestamp><availabilityZone>{}</availabilityZone></item>"
)


class _Raw:
    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, **_options: object) -> Any:
        yield self._body

    def read(self, *_size: object) -> bytes:
        return self._body


def answer(request: Any, **_event: object) -> AWSResponse:
    """A handler of botocore's `before-send`: no request leaves this machine."""
    body = request.body.decode() if isinstance(request.body, bytes) else str(request.body)
    spot = "DescribeSpotPriceHistory" in body
    return reply(200, _spot_reply(body) if spot else _products_reply(json.loads(body)))


def refuse(code: str) -> Callable[..., AWSResponse]:
    """A handler that refuses every call with an error code."""
    body = json.dumps({"__type": code, "message": "no"}).encode()
    return lambda **_event: reply(400, body)


def reply(status: int, body: bytes) -> AWSResponse:
    headers: Any = {"x-amzn-requestid": "r"}
    return AWSResponse("https://aws.invalid", status, headers, _Raw(body))


def opener(handler: Callable[..., AWSResponse]) -> Callable[..., Any]:
    """Opens clients with the real parser, whose requests `handler` answers."""

    def opened(*words: str, **options: Any) -> Any:
        client = open_client(*words, **options)
        client.meta.events.register("before-send", handler)
        return client

    return opened


def _products_reply(asked: dict[str, Any]) -> bytes:
    """Matches the filters as AWS does, and gives one product on each page."""
    wanted = {each["Field"]: each["Value"] for each in asked["Filters"]}
    assert all(each["Type"] == "TERM_MATCH" for each in asked["Filters"])
    found = [text for text in OFFERS if _matches(json.loads(text)["product"], wanted)]
    page = int(asked.get("NextToken", "0"))
    reply: dict[str, Any] = {"FormatVersion": "aws_v1", "PriceList": found[page : page + 1]}
    if page + 1 < len(found):
        reply["NextToken"] = str(page + 1)
    return json.dumps(reply).encode()


def _matches(offered: dict[str, Any], wanted: dict[str, str]) -> bool:
    fields = offered["attributes"] | {"productFamily": offered["productFamily"]}
    return all(fields.get(name) == value for name, value in wanted.items())


def _spot_reply(body: str) -> bytes:
    asked = parse_qs(body)
    types = [values[0] for name, values in asked.items() if name.startswith("InstanceType.")]
    assert asked["ProductDescription.1"] == ["Linux/UNIX"]
    rows = [ITEM.format(name, price, at, zone) for name, zone, price, at in SPOT if name in types]
    return (
        '<DescribeSpotPriceHistoryResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
        f"<requestId>r</requestId><spotPriceHistorySet>{''.join(rows)}</spotPriceHistorySet><nextToken/>"
        "</DescribeSpotPriceHistoryResponse>"
    ).encode()
