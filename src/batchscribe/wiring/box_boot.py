"""`python -m batchscribe.wiring.box_boot`: what the unit on the box runs at every boot.

It begins anew in the workers' own environment, where the credentials for the stores are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import structlog

from batchscribe import aws_environment
from batchscribe.adapters import logs
from batchscribe.adapters.clock import SystemClock
from batchscribe.adapters.stores import open_store
from batchscribe.core.box import BOOT_MODULE, BoxClaim, BoxPlace
from batchscribe.detached import boot_id
from batchscribe.errors import BatchscribeError
from batchscribe.protocols import Store
from batchscribe.worker.boot import Boot, BoxAgent, BoxSeams, live
from batchscribe.worker.box import Box
from batchscribe.worker.markers import MarkerFiles

MARKERS = Path("/run/batchscribe")
"""The unit's RuntimeDirectory: in memory, so that nothing in it survives a stop."""
ASSET_TAG = Path("/sys/devices/virtual/dmi/id/board_asset_tag")
"""Where EC2's newer instances have their id."""
LIVE = "live"


def main(words: Sequence[str] | None = None) -> int:
    """Lives through this boot. 0 when nothing is left to do; what a person must mend is 2."""
    os.umask(0o077)
    os.chdir(Path.home())
    logs.configure(secrets=aws_environment.secrets())
    clock = SystemClock()
    box = Box(Path.home(), clock)
    try:
        place = box.place()
        if another := copied_from(place):
            structlog.get_logger().warning("box.is_a_copy", here=another, recorded=place.instance)
            return 0
        if list(sys.argv[1:] if words is None else words) != [LIVE]:
            begin_anew(box.environment(region=place.region, endpoint=place.endpoint))
        live(BoxAgent(place, Boot(id=boot_id(), at=clock.booted()), seams(place, box, clock)), clock)
    except BatchscribeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def begin_anew(environment: dict[str, str]) -> None:
    """Replaces this process by one that lives in that environment."""
    os.execve(  # noqa: S606  nothing of this process is left, least of all a shell
        sys.executable, [sys.executable, "-I", "-m", BOOT_MODULE, LIVE], environment
    )


def copied_from(place: BoxPlace, tag: Path = ASSET_TAG) -> str:
    """The id of this instance, where its disk is a copy of another's; empty where it is not, or unknown."""
    try:
        here = tag.read_text().strip()
    except OSError:
        return ""
    return here if here.startswith("i-") and here != place.instance else ""


def seams(place: BoxPlace, box: Box, clock: SystemClock, markers: Path = MARKERS) -> BoxSeams:
    """The agent's seams on this machine; each store is opened once."""

    @cache
    def opened(url: str, region: str, endpoint: str) -> Store:
        there, at = aws_environment.place(region=region, endpoint=endpoint)
        return open_store(url, region=there, endpoint=at)

    def runs(claim: BoxClaim) -> Store:
        return opened(claim.output, claim.region or place.region, claim.endpoint or place.endpoint)

    return BoxSeams(
        clock=clock,
        workers=box,
        marks=MarkerFiles(markers),
        home=lambda: opened(place.home, place.region, place.endpoint),
        runs=runs,
    )


if __name__ == "__main__":
    raise SystemExit(main())
