"""The production tick in a world where everything fails: whatever dies at any step, the promises hold."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence

import pytest

from batchscribe.errors import ComputeUnavailableError
from batchscribe.testing.compute import Cloud
from simulation.__main__ import Played, main, played
from simulation.fleet.cloud import FleetApi, Tokens
from simulation.fleet.stage import FleetStage
from simulation.gate import LONGEST, Gate
from simulation.summary import Summary, broken
from simulation.timeline import Timeline
from simulation.trace import Trace
from simulation.weather import FLEETS, Focus, Weather

SHORT, SHARE = 40, 100
EPISODES = (
    range(SHORT),
    *(
        pytest.param(range(first, first + SHARE), marks=pytest.mark.deep)
        for first in range(SHORT, 500, SHARE)
    ),
)

FOUND = (
    pytest.param(7102000700, id="passes are skipped after the ledger was rolled back"),
    pytest.param(7101033145, id="a wrong clock takes a live claim and its type"),
    pytest.param(7101034316, id="a manifest after a failed pass, for a host without an agent"),
)
"""Seeds of soaks."""


@pytest.mark.parametrize("episodes", EPISODES, ids=str)
def test_every_invariant_holds_at_every_step(episodes: range) -> None:
    summary = Summary()
    results, summary.seconds = played(episodes)
    for result in results:
        summary.add(result)
        assert not result.violation, broken(result)
    assert summary.crashes > len(episodes) / 2, "the episodes have become too quiet to find anything"
    assert summary.outcomes.total() > 2 * len(episodes)
    assert len(summary.outcomes) >= 8


@pytest.mark.parametrize("name", FLEETS)
def test_every_invariant_holds_for_created_machines(name: str) -> None:
    results, _seconds = played(range(2), {**FLEETS[name], "fleet": 5})
    for result in results:
        assert not result.violation, broken(result, FLEETS[name])
    assert sum(result.outcomes.total() for result in results) > 2


@pytest.mark.parametrize("seed", FOUND)
def test_an_episode_that_broke_an_invariant_keeps_all(seed: int) -> None:
    ((result,), _seconds) = played([seed])
    assert not result.violation, broken(result)


def test_a_poll_of_created_machines_without_a_reply_showed_nothing() -> None:
    line, rng = Timeline(), random.Random(0)
    gate, cloud = Gate(rng, line, Trace(line)), Cloud(line)
    api, shown = FleetApi(cloud, Tokens(rng, line, cloud), line, gate), list[str]()
    api.polled = lambda _asked, _at, seen: shown.append(seen.id)
    gate.trouble = lambda _name: (ComputeUnavailableError("no reply"), True)
    with pytest.raises(ComputeUnavailableError):
        api.poll(("run-1-0",))
    assert shown == []
    gate.trouble = lambda _name: None
    api.poll(("run-1-0",))
    assert shown == ["run-1-0"]


def test_a_soak_continues_where_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def record(share: Sequence[int], focus: Focus) -> Played:
        seeds.extend(share)
        return [], 0.0

    monkeypatch.setattr("simulation.__main__.played", record)
    main(["--seed", "5", "--episodes", "150", "--processes", "1"])
    main(["--seed", "5", "--episodes", "50", "--skip", "150", "--processes", "1"])
    assert seeds == list(range(5_000_000, 5_000_200))


def test_an_episode_is_the_same_bit_for_bit() -> None:
    seeds = range(4000, 4004)
    first, second = played(seeds)[0], played(seeds)[0]
    assert [each.digest for each in first] == [each.digest for each in second]
    assert len({each.digest for each in first}) == len(seeds)


def test_an_episode_does_not_depend_on_the_order_of_sets() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-m", "simulation", "--replay", "17"],
            env=dict(os.environ) | {"PYTHONHASHSEED": hashing},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hashing in ("1", "2")
    }
    assert len(printed) == 1


def test_a_summary_says_what_was_played(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--episodes", "3", "--processes", "1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("episodes    3,")
    assert said.rstrip().endswith("violations  0")


def test_each_process_of_a_fleet_may_take_the_steps_of_its_machines() -> None:
    """The watchdog follows the same machines as the tick beside it."""
    stage = FleetStage(random.Random(1), Weather(fleet=20))
    assert stage.beside.gate.longest == stage.main.gate.longest > LONGEST
