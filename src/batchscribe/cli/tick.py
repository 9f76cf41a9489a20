"""`tick`, `run`, `reconcile` and `watchdog`: decisions and their execution, scheduled or manual."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial

import click
from rich.markup import escape

from batchscribe.cli.app import App, json_option, pass_app, print_json, source_option
from batchscribe.cli.terminal.render import render_decision, render_dry_run, render_run, tick_document
from batchscribe.controller.commands.redo import find_by_session
from batchscribe.controller.observe import observe
from batchscribe.controller.recovery import adopt_run
from batchscribe.controller.tick import Ticked, forget_run, watch
from batchscribe.controller.tick import reconcile as reconcile_runs
from batchscribe.controller.tick import tick as one_tick
from batchscribe.core.decide.observation import Observation
from batchscribe.core.decide.policy import Launch, decide
from batchscribe.core.decide.start_sum import sum_up_start
from batchscribe.core.redaction import printable
from batchscribe.core.run.instances import InstanceState
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run
from batchscribe.core.scan.chunks import session_id
from batchscribe.errors import MisconfiguredError, choose_worst, exit_code
from batchscribe.wiring.scanners import explain_empty, open_scanner
from batchscribe.wiring.scheduler import Scheduler, open_scheduler
from batchscribe.wiring.seams import describe_missing

FINE = {Outcome.COMPLETED, Outcome.ABANDONED, None}
"""Outcomes that are no failure of the tick: completed, or nothing started."""
NO_LIMIT = 10**9
OPTIONS = {"engine": "BATCH_ENGINE", "model": "WHISPER_MODEL", "language": "BATCH_LANGUAGE"}
"""Settings of the options of `run`."""
LOCK_PATIENCE = 120.0
"""Seconds that a tick waits for the lock; longer than a usual pass of the timer."""
PASS_PATIENCE = 0.5
"""Seconds that a timer's pass waits for the lock; the next pass follows in a minute."""
wait_option = click.option(
    "--wait/--no-wait",
    default=True,
    help="Wait until no run is open, or return after one pass; the watchdog's timer does the rest. "
    "With BATCH_STATE_DIR in a store, always one pass.",
)


@click.command()
@click.option("--dry-run", is_flag=True, help="Print the decision, its reason and its cost; do nothing.")
@wait_option
@json_option
@pass_app
def tick(app: App, *, dry_run: bool, wait: bool, as_json: bool) -> int:
    """Make one decision, and carry it out."""
    app.warn_of_names()
    if dry_run:
        return _dry_run(app, as_json=as_json)
    return _run_tick(app, wait=wait, as_json=as_json)


@click.command()
@click.argument("sessions", metavar="[SESSION]...", nargs=-1)
@source_option
@click.option("--limit", type=click.IntRange(min=1), help="Maximum number of chunks.")
@click.option("--engine", help="Engine instead of BATCH_ENGINE.")
@click.option("--model", help="Model instead of WHISPER_MODEL.")
@click.option("--language", help="Language instead of BATCH_LANGUAGE.")
@click.option("--dry-run", is_flag=True, help="Print the decision, its reason and its cost; do nothing.")
@wait_option
@json_option
@pass_app
def run(
    app: App,
    /,
    sessions: tuple[str, ...],
    *,
    limit: int | None,
    dry_run: bool,
    wait: bool,
    as_json: bool,
    **chosen: str | None,
) -> int:
    """Transcribe the backlog now, or only SESSIONs, ignoring policy and age.

    A pause and the day's budget hold it, too; `batchscribe resume` ends a pause.
    """
    # A run with a limit takes nothing beyond its batch, so that it stays within its sessions.
    if limit or sessions:
        app.flags["BATCH_LIMIT"] = str(limit or NO_LIMIT)
    app.flags |= {OPTIONS[name]: value for name, value in chosen.items() if value}
    only = _find_session_ids(app, sessions)
    if dry_run:
        return _dry_run(app, manual=True, only=only, as_json=as_json)
    return _run_tick(app, manual=True, only=only, wait=wait, as_json=as_json)


def _find_session_ids(app: App, names: tuple[str, ...]) -> frozenset[str]:
    """Ids of these sessions. Raises ObjectNotFoundError if one has no audio."""
    scanner = open_scanner(app.settings)
    wanted = [session_id(app.make_relative(name)) for name in names]
    for session in wanted:
        find_by_session(scanner, session)
    return frozenset(wanted)


def _run_tick(
    app: App, *, manual: bool = False, only: frozenset[str] = frozenset(), wait: bool, as_json: bool
) -> int:
    # The state is stored at the end of a command: a waiting one would keep it from the schedule's passes.
    wait = wait and not app.settings.state_url
    with open_app_scheduler(app, manual=manual, only=only) as made:
        locked = partial(made.locked, LOCK_PATIENCE)
        show = partial(_print_decision, app, made, as_json=as_json)
        ticked = one_tick(made.world, made.config, locked=locked, wait=wait, on_decision=show)
        made.world.view.clear()
        return _print_result(app, made, ticked, as_json=as_json)


def _print_decision(app: App, made: Scheduler, ticked: Ticked, *, as_json: bool) -> None:
    """Prints the decision before its run is followed, for minutes or hours."""
    made.world.view.clear()
    if not as_json and not app.quiet:
        app.console.print("\n".join(render_decision(ticked)), markup=False)
        sys.stdout.flush()


@click.command()
@click.option(
    "--forget", metavar="RUN", help="Close a run without polling its instance, which is gone for good."
)
@click.option(
    "--adopt", metavar="RUN", help="Stop and settle a run of another scheduler, before its deadline."
)
@json_option
@pass_app
def reconcile(app: App, *, forget: str | None, adopt: str | None, as_json: bool) -> int:
    """Stop runs that should have ended; start nothing.

    Live work is not interrupted.
    """
    app.lenient = True
    with open_app_scheduler(app) as made:
        locked = partial(made.locked, LOCK_PATIENCE)
        if adopt:
            with locked():
                adopt_run(made.world, made.config, adopt, Outcome.INTERRUPTED, "adopted at a user's request")
        if forget:
            with locked():
                runs: tuple[Run, ...] = (forget_run(made.world, forget),)
        else:
            runs = reconcile_runs(made.world, made.config, locked=locked)
    if as_json:
        print_json(_list_released(runs))
        return 0
    for each in runs:
        app.console.print(f"closed run {each.id}: {each.outcome} ({escape(each.detail)})")
    if not runs:
        app.console.print("nothing to close: no run is open, or its work is in progress")
    return 0


@click.command()
@json_option
@pass_app
def watchdog(app: App, *, as_json: bool) -> int:
    """Advance open runs by one pass: start, follow, stop. Opens no run."""
    app.lenient = True
    with open_app_scheduler(app) as made:
        watched = watch(made.world, made.config, locked=partial(made.locked, PASS_PATIENCE))
    if as_json:
        print_json({"found": watched.found} | _list_released(watched.runs))
        return 0
    app.console.print(watched.found, markup=False)
    for each in watched.runs:
        app.console.print(f"closed run {each.id}: {each.outcome} ({escape(each.detail)})")
    return 0


def _list_released(runs: Sequence[Run]) -> dict[str, object]:
    return {"released": [{"run": each.id, "outcome": each.outcome} for each in runs]}


def open_app_scheduler(
    app: App, *, manual: bool = False, remember: bool = True, only: frozenset[str] = frozenset()
) -> AbstractContextManager[Scheduler]:
    """Opens the scheduler of the command's settings."""
    return open_scheduler(
        app.settings,
        manual=manual,
        remember=remember,
        lenient=app.lenient,
        only=only,
        quiet=app.quiet,
    )


def _dry_run(app: App, *, manual: bool = False, only: frozenset[str] = frozenset(), as_json: bool) -> int:
    with open_app_scheduler(app, manual=manual, remember=False, only=only) as made:
        seen = observe(made.world, made.config)
        if seen.instance and seen.instance.state is InstanceState.MISSING:
            raise MisconfiguredError(describe_missing(made.settings))
        decision = decide(seen, made.config.policy)
        refused = made.find_refusal()
        total = sum_up_start(seen, made.config.policy) if seen.backlog.pending else None
        costs = made.cost_basis()
    if as_json:
        document = tick_document(
            Ticked(seen, decision), dry_run=True, refused=refused, total=total, costs=costs
        )
        print_json(document)
    else:
        lines = render_dry_run(decision, refused, total, now=seen.now, costs=costs)
        app.console.print("\n".join(lines), markup=False)
        _print_empty(app, seen)
    return refused.exit_code if refused else 0


def _print_empty(app: App, seen: Observation | None) -> None:
    if seen and (empty := explain_empty(app.settings, seen.backlog)):
        app.console.print(empty, markup=False)


def _print_result(app: App, made: Scheduler, ticked: Ticked, *, as_json: bool) -> int:
    """Prints the tick's result and returns the exit code.

    0 if done, held or in progress; otherwise the most serious error's code.
    """
    failed = any(each.outcome not in FINE for each in ticked.runs if not each.open)
    code = choose_worst((exit_code(ticked.errors), int(failed)))
    if as_json:
        costs = made.cost_basis() if ticked.runs else None
        print_json(tick_document(ticked, exit_code=code, costs=costs))
        return code
    if not app.quiet:
        _print_runs(app, made, ticked)
    for error in ticked.errors:
        click.echo(printable(f"batchscribe: {error}"), err=True)
    sys.stdout.flush()
    return code


def _print_runs(app: App, made: Scheduler, ticked: Ticked) -> None:
    if made.config.policy.manual:
        _print_empty(app, ticked.seen)
    for each in ticked.runs:
        lines = render_run(each, made.settings, left=_count_left(ticked))
        app.console.print("\n".join(lines), markup=False)


def _count_left(ticked: Ticked) -> int | None:
    """Pending chunks that the run did not take; None without launch."""
    if not isinstance(ticked.decision, Launch) or ticked.seen is None:
        return None
    run = ticked.runs[-1]
    return max(0, ticked.seen.backlog.pending - run.chunks_done - run.chunks_failed)
