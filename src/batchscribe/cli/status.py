"""`status`, `pause`, `resume` and `config`: current state, and suspension of scheduling."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import click

from batchscribe.cli.app import App, Duration, json_option, pass_app, print_json, source_option
from batchscribe.cli.scan import COUNTS, format_span
from batchscribe.cli.terminal.layout import Column, print_table
from batchscribe.cli.terminal.times import describe_holder
from batchscribe.cli.tick import open_app_scheduler
from batchscribe.controller.commands.overview import Overview, RunNow, overview
from batchscribe.controller.commands.rehearsal import describe_proof
from batchscribe.controller.observe import PAUSED
from batchscribe.controller.run_message import count_failed
from batchscribe.core.decide.observation import Observation
from batchscribe.core.decide.policy import FOREVER, describe_pause
from batchscribe.core.figures import format_count
from batchscribe.core.run.other_scheduler import FIX
from batchscribe.core.run.runs import Run
from batchscribe.wiring.install import describe_schedule
from batchscribe.wiring.process import open_clock
from batchscribe.wiring.scheduler import Scheduler, derived_values
from batchscribe.wiring.seams import open_ledger


@click.command()
@source_option
@json_option
@pass_app
def status(app: App, *, as_json: bool) -> None:
    """Lock, run in progress, backlog, GPU, pause, last runs."""
    with open_app_scheduler(app, remember=False) as made:
        now = overview(made.world, made.config)
        document = _build_document(made, now)
    if as_json:
        print_json(document)
    else:
        for label, value in _list_lines(now, document):
            app.print_labelled(label, value, indent=11)
    if failure := now.around.failure:
        click.get_current_context().exit(failure.exit_code)


@click.command()
@click.option(
    "--for",
    "length",
    type=Duration("mhd", "write it as 30m, 8h or 2d"),
    metavar="8h",
    help="Duration: 30m, 8h or 2d. Default: until `resume`.",
)
@pass_app
def pause(app: App, *, length: timedelta | None) -> None:
    """Suspend scheduling until `resume`, or for a duration.

    A run in progress is still finished.
    """
    until = open_clock().now() + length if length is not None else FOREVER
    with open_ledger(app.settings) as ledger:
        ledger.put(PAUSED, until.isoformat())
    app.console.print(f"paused {describe_pause(until)}; a run in progress is still finished")


@click.command()
@pass_app
def resume(app: App) -> None:
    """Resume scheduling."""
    with open_ledger(app.settings) as ledger:
        paused = ledger.get(PAUSED)
        ledger.put(PAUSED, None)
    app.console.print("resumed" if paused else "scheduling was not paused")


@click.command()
@json_option
@pass_app
def config(app: App, *, as_json: bool) -> None:
    """The effective settings, and the origin of each. Secrets are masked."""
    app.warn_of_names()
    rows = app.settings.list_effective()
    if as_json:
        print_json({row.name: {"value": row.value, "origin": row.origin} for row in rows})
        return
    derived = derived_values(app.settings)
    columns = [
        Column("setting", [row.name for row in rows]),
        Column("value", [_show_value(row.value) or derived.get(row.name) or "-" for row in rows], folded=24),
        Column("from", [row.origin for row in rows]),
    ]
    print_table(app.console, columns)


def _show_value(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def _build_document(made: Scheduler, now: Overview) -> dict[str, Any]:
    document: dict[str, Any] = {
        "at": now.at,
        "timer": describe_schedule(made.settings),
        "lock": made.lock.holder(),
        "last_tick": now.last_tick,
        "paused_until": now.paused_until,
        "other_scheduler": now.other_scheduler,
        "cloud_guard": made.settings.cloud_guard,
        "guard": {"says": now.around.guard, "armed": now.around.armed},
        "promises": now.around.promises,
        "proofs": [{"told": describe_proof(proof), "proof": proof} for proof in now.proofs],
        "run": _open_run(now.runs[0]) if now.runs else None,
        "last_runs": [_settled_run(run) for run in now.last_runs],
        "month_cost": now.month.dollars,
        "next_start": now.next_start,
        "cpu_lane": made.describe_lane(),
    }
    if now.observed is None or now.decision is None:
        return document | {"error": now.error}
    instance, backlog = now.observed.instance, now.observed.backlog
    return document | {
        "gpu": {"id": instance.id, "state": instance.state, "type": instance.type} if instance else None,
        "backlog": {name: getattr(backlog, name) for name in (*COUNTS, "oldest")},
        "next": {"decision": type(now.decision).__name__.lower(), "reason": now.decision.reason.sentence},
    }


def _proof_lines(now: Overview, document: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines with the time bounds, and their last proofs on this account."""
    lines = [
        ("Promise" if promise.given else "No promise", promise.sentence) for promise in document["promises"]
    ]
    for row in document["proofs"]:
        proof = row["proof"]
        label = "Proved" if proof.proved else "Not proved"
        lines.append((label, f"{proof.at:%Y-%m-%d %H:%M} UTC: {row['told']}"))
    created = now.observed is not None and now.observed.instance is None
    if lines and not document["proofs"] and not created:  # a rehearsal needs an instance that exists
        lines.append(("Proved", "never on this account: `batchscribe rehearse` proves it, for a few cents"))
    return lines


def _open_run(run: RunNow) -> dict[str, Any]:
    left = run.left
    return {
        "id": run.id,
        "state": run.state,
        "outcome": None,
        "created": run.created,
        "deadline": run.deadline,
        "chunks": run.total,
        "done": run.done,
        "failed": run.failed,
        "seconds_left": None if left is None else left.total_seconds(),
        "cost": run.cost.dollars,
        "machines": list(run.machines),
    }


def _settled_run(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "state": run.state,
        "outcome": run.outcome,
        "created": run.created,
        "deadline": run.deadline,
        "chunks": run.chunks_done,
        "cost": run.cost.dollars,
    }


def _list_lines(now: Overview, document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Timer", document["timer"]
    yield "Lock", describe_holder(document["lock"])
    yield "Last tick", f"{format_span(now.at - now.last_tick)} ago" if now.last_tick else "none yet"
    if now.other_scheduler:
        yield "Warning", f"{now.other_scheduler.sentence}; {FIX}"
    if now.paused_until:
        yield "Paused", describe_pause(now.paused_until)
    yield "Run", "; ".join(_describe_run(run, now.at) for run in now.runs) or "none"
    yield from (("", machine) for run in now.runs for machine in run.machines)
    if now.runs and not document["lock"] and document["timer"].startswith("none"):
        yield "", "no timer advances this run: start `batchscribe tick`, unless one waits for it already"
    yield from _observed_lines(now, document)
    yield "Guard", document["guard"]["says"]
    yield from _proof_lines(now, document)
    yield "This month", f"at most {now.month}"
    for last in reversed(now.last_runs):
        failed = f", {count_failed(last)}" if last.chunks_failed else ""
        done = format_count(last.chunks_done, "chunk")
        yield "Recent", f"{last.id}: {last.outcome}, {done}, {last.cost}{failed}"


def _describe_run(run: RunNow, at: datetime) -> str:
    left = f"about {format_span(run.left)} left" if run.left is not None else "time left unknown"
    failed = f", {run.failed} failed" if run.failed else ""
    return (
        f"{run.id} is {run.state}: {run.done} of {format_count(run.total, 'chunk')}{failed}, {left}, "
        f"at most {run.cost} so far, stopped in {format_span(run.deadline - at)} at the latest"
    )


def _describe_gpu(seen: Observation) -> str:
    if seen.instance is None:
        offers = ", ".join(offer.name for offer in seen.offers)
        return f"up to {format_count(seen.max_machines, 'machine')}, created for each run ({offers})"
    kind = f" ({seen.instance.type})" if seen.instance.type else ""
    return f"{seen.instance.id}{kind} is {seen.instance.state}"


def _observed_lines(now: Overview, document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if now.observed is None:
        yield "Error", now.error
        return
    backlog = now.observed.backlog
    oldest = f", the oldest {format_span(now.at - backlog.oldest)} old" if backlog.oldest else ""
    yield "Backlog", f"{backlog.pending} pending, {backlog.waiting} waiting, {backlog.done} done{oldest}"
    if backlog.quarantined:
        yield "Quarantine", f"{format_count(backlog.quarantined, 'chunk')}: `batchscribe quarantine list`"
    yield "GPU", _describe_gpu(now.observed)
    if lane := document["cpu_lane"]:
        yield "CPU lane", lane
    yield "Next tick", f"would {document['next']['decision']}: {document['next']['reason']}"
    if now.next_start:
        yield "Next start", f"{now.next_start:%Y-%m-%d %H:%M} UTC at the latest, earlier if more arrives"
