"""`status`, `pause`, `resume` and `config`: current state, and suspension of scheduling."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.table import Table

from batchscribe.cli.app import App, Duration, json_option, pass_app, print_json
from batchscribe.cli.scan import COUNTS, span
from batchscribe.cli.tick import opened
from batchscribe.controller.commands.rehearsal import PROVED, proofs, told
from batchscribe.controller.external_state import instance_record
from batchscribe.controller.observe import PAUSED, observe
from batchscribe.core.decide.policy import Observation, decide
from batchscribe.core.run.promises import Promise, promises
from batchscribe.core.run.runs import Run
from batchscribe.errors import BatchscribeError
from batchscribe.wiring.install import on_schedule
from batchscribe.wiring.process import open_clock
from batchscribe.wiring.scheduler import Scheduler
from batchscribe.wiring.seams import open_ledger

FOREVER = datetime(9999, 1, 1, tzinfo=UTC)
RECENT = timedelta(days=30)


@click.command()
@json_option
@pass_app
def status(app: App, *, as_json: bool) -> None:
    """Lock, run in progress, backlog, GPU, pause, last runs."""
    with opened(app, remember=False) as made:
        seen = _observed(made)
        document = _document(made, seen)
    if as_json:
        print_json(document)
        return
    for label, value in _lines(seen, document):
        app.console.print(f"{label:<10} {value}", markup=False)


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
    app.console.print(f"paused {_until(until)}; a run in progress is still finished")


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
    rows = app.settings.effective()
    if as_json:
        print_json({row.name: {"value": row.value, "origin": row.origin} for row in rows})
        return
    table = Table("setting", "value", "from", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(row.name, row.value or "-", row.origin)
    app.console.print(table)


def _observed(made: Scheduler) -> Observation | BatchscribeError:
    """Returns the observation, or the error that prevented it."""
    try:
        return observe(made.world, made.terms)
    except BatchscribeError as error:
        return error


def _document(made: Scheduler, seen: Observation | BatchscribeError) -> dict[str, Any]:
    ledger, now = made.world.ledger, made.world.clock.now()
    runs = ledger.runs(now - RECENT)
    document: dict[str, Any] = {
        "at": now,
        "timer": on_schedule(made.settings.folder),
        "lock": made.lock.holder(),
        "last_tick": ledger.last_tick(),
        "paused_until": ledger.get(PAUSED),
        "cloud_guard": made.settings.cloud_guard,
        "guard": _guard(made),
        "promises": _promises(made),
        "proofs": [{"told": told(proof), "proof": proof} for proof in proofs(ledger.facts(PROVED))],
        "run": next((_run(run) for run in ledger.open_runs()), None),
        "last_runs": [_run(run) for run in runs[-5:] if not run.open],
    }
    if isinstance(seen, BatchscribeError):
        return document | {"error": str(seen)}
    decision = decide(seen, made.terms.policy)
    return document | {
        "gpu": {"id": seen.instance.id, "state": seen.instance.state, "type": seen.instance.type},
        "backlog": {name: getattr(seen.backlog, name) for name in (*COUNTS, "oldest")},
        "next": {"decision": type(decision).__name__.lower(), "reason": decision.reason.sentence},
    }


def _guard(made: Scheduler) -> dict[str, Any]:
    """Describes the guard, and lists runs with active stop orders."""
    guard = made.world.guard
    try:
        armed = sorted({run for each in made.terms.instances for run in guard.armed(each)})
    except BatchscribeError as error:
        return {"says": f"{guard.description}; its stop orders could not be listed: {error}", "armed": None}
    orders = f"; active stop orders: {', '.join(armed)}" if armed else ""
    return {"says": f"{guard.description}{orders}", "armed": armed}


def _promises(made: Scheduler) -> tuple[Promise, ...]:
    """Time bounds of settings and GPU host; empty if local."""
    if made.terms.shared_machine:
        return ()
    try:
        record = instance_record(made.world, made.terms.instances[0])
    except BatchscribeError:
        record = None
    boots = record is not None and record.boots
    return promises(guarded=made.settings.cloud_guard != "off", boots=boots)


def _proof_lines(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines with the time bounds, and their last proofs on this account."""
    lines = [
        ("Promise" if promise.given else "No promise", promise.sentence) for promise in document["promises"]
    ]
    for row in document["proofs"]:
        proof = row["proof"]
        label = "Proved" if proof.proved else "Not proved"
        lines.append((label, f"{proof.at:%Y-%m-%d %H:%M} UTC: {row['told']}"))
    if lines and not document["proofs"]:
        lines.append(("Proved", "never on this account: `batchscribe rehearse` proves it, for a few cents"))
    return lines


def _run(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "state": run.state,
        "outcome": run.outcome,
        "created": run.created,
        "deadline": run.deadline,
        "chunks": run.chunks_done if not run.open else run.planned_chunks,
        "cost": run.cost.dollars,
    }


def _lines(seen: Observation | BatchscribeError, document: dict[str, Any]) -> list[tuple[str, str]]:
    now: datetime = document["at"]
    lines = [
        ("Timer", document["timer"]),
        ("Lock", document["lock"] or "free"),
        ("Last tick", f"{span(now - document['last_tick'])} ago" if document["last_tick"] else "none yet"),
    ]
    if document["paused_until"]:
        lines.append(("Paused", _until(datetime.fromisoformat(document["paused_until"]))))
    run = document["run"]
    lines.append(("Run", f"{run['id']} is {run['state']}, until {run['deadline']:%H:%M} UTC" if run else "-"))
    if isinstance(seen, BatchscribeError):
        lines.append(("Error", str(seen)))
    else:
        lines += _seen_lines(seen, document)
    lines.append(("Guard", document["guard"]["says"]))
    lines += _proof_lines(document)
    for last in reversed(document["last_runs"]):
        lines.append(
            ("Before", f"{last['id']}: {last['outcome']}, {last['chunks']} chunks, ${last['cost']:.4f}")
        )
    return lines


def _seen_lines(seen: Observation, document: dict[str, Any]) -> list[tuple[str, str]]:
    backlog, instance = seen.backlog, seen.instance
    oldest = f", the oldest {span(seen.now - backlog.oldest)} old" if backlog.oldest else ""
    return [
        ("Backlog", f"{backlog.pending} pending, {backlog.waiting} waiting, {backlog.done} done{oldest}"),
        ("GPU", f"{instance.id} ({instance.type or 'no type'}) is {instance.state}"),
        ("Next tick", f"would {document['next']['decision']}: {document['next']['reason']}"),
    ]


def _until(until: datetime) -> str:
    return "until `batchscribe resume`" if until >= FOREVER else f"until {until:%Y-%m-%d %H:%M} UTC"
