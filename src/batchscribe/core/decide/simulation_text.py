"""A simulation explained in lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from batchscribe.core.decide.hosted import HOSTED
from batchscribe.core.decide.hours import Hours
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.observation import PolicyName
from batchscribe.core.decide.simulation import HOUR, PolicyResult, Simulation
from batchscribe.core.figures import format_count, format_hours


def list_points(results: Iterable[PolicyResult]) -> list[tuple[str, float, float]]:
    """Points (names, p95 wait in hours, dollars), one for equal results."""
    names: dict[tuple[float, float], list[str]] = {}
    for each in results:
        names.setdefault((each.wait_hours.p95, each.dollars), []).append(each.name)
    return [(", ".join(named), wait, dollars) for (wait, dollars), named in names.items()]


def format_ratio(row: PolicyResult) -> str:
    """The ratio, marked if it counts waits by the linear price."""
    return f"{row.ratio:.2f} *" if row.name == PolicyName.BALANCED else f"{row.ratio:.2f}"


def format_speed(speed: float) -> str:
    """Three significant digits."""
    return f"{float(f'{speed:.3g}'):,.7g} x"


def explain(found: Simulation, assumed: str, hours: Hours | None) -> Iterator[str]:
    """Yields lines that explain the results; the last ones are settings.

    `assumed`: what no run measured. `hours`: the policy's.
    """
    offer = found.offers[0]
    yield (
        f"{format_count(found.chunks, 'chunk')}, {format_hours(found.audio_hours * HOUR)} of audio, "
        f"{found.since:%Y-%m-%d} to {found.until:%Y-%m-%d}, from {found.origin}"
    )
    yield (
        f"${offer.rate:g}/h ({offer.rate_source}), {offer.setup_seconds + offer.release_seconds:.0f} s "
        f"billed for a start besides its work, {format_speed(offer.speed)} speed, "
        f"a check each {found.check_hours:g} h"
    )
    if assumed:
        yield assumed
    if hours:
        yield f"Starts only within BATCH_HOURS ({hours}), unless a chunk would wait too long"
    yield f"Ratio: to the least bill that keeps the longest wait of {found.max_wait_hours:g} h"
    yield f"* to the least sum of the bill and ${found.wait_price:g} for each hour that an audio hour waits"
    service = HOSTED[0]
    hosted = Usd(round(service.per_audio_hour.micros * found.audio_hours))
    yield f"{service.name} charges {hosted} for the same audio"
    yield from _explain_late(found)
    yield _explain_choice(found)
    yield from (f"{name}={value}" for name, value in found.env.items())


def _explain_choice(found: Simulation) -> str:
    """The savings by the settings that follow, against the present policy."""
    by_name = {each.name: each for each in found.policies}
    best, present = by_name[found.env["BATCH_POLICY"]], by_name[found.present]
    bill, present_bill = Usd(best.dollars_micros), Usd(present.dollars_micros)
    if best is present:
        least = min((each.late, each.dollars_micros) for each in found.policies)
        exact = (best.late, best.dollars_micros) == least
        lead = "The present policy has the lowest bill" if exact else "No lower bill is worth a change"
        return f"{lead}, with {_count_late(best)}. Its lines in .env:"
    waits = f"mean wait {present.wait_hours.mean:.2f} h -> {best.wait_hours.mean:.2f} h"
    if best.late == present.late and best.costs_as_much_as(present):
        return (
            f"BATCH_POLICY={best.name} costs as much as the present {present.name} ({bill}, {present_bill}), "
            f"and waits are shorter: {waits}. To use it, put into .env:"
        )
    difference = f"{bill - present_bill} more" if bill > present_bill else f"{present_bill - bill} less"
    return (
        f"The lowest bill is {bill}, with {_count_late(best)}: {difference} than with the present "
        f"BATCH_POLICY={present.name}, with {_count_late(present)}; {waits}. Put into .env:"
    )


def _explain_late(found: Simulation) -> Iterator[str]:
    """Yields the cause if the checks alone make chunks late."""
    slowest = found.check_hours + found.offers[0].setup_seconds / HOUR
    if any(each.late for each in found.policies) and slowest > found.max_wait_hours:
        yield (
            f"Chunks are late because BATCH_SCHEDULER_CHECK_HOURS={found.check_hours:g} is too long for a "
            f"longest wait of {found.max_wait_hours:g} h"
        )


def _count_late(result: PolicyResult) -> str:
    return f"{format_count(result.late, 'chunk')} late" if result.late else "no chunk late"
