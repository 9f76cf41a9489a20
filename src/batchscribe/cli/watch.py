"""`watchdog`: one pass over the open runs, for a timer."""

from __future__ import annotations

from functools import partial

import click
from rich.markup import escape

from batchscribe.cli.app import App, json_option, pass_app, print_json
from batchscribe.cli.tick import opened
from batchscribe.controller.tick import watch

PASS_PATIENCE = 0.5
"""Seconds that a timer's pass waits for the lock; the next pass follows in a minute."""


@click.command()
@json_option
@pass_app
def watchdog(app: App, *, as_json: bool) -> int:
    """Advance open runs by one pass: start, follow, stop. Opens no run."""
    app.lenient = True
    with opened(app) as made:
        watched = watch(made.world, made.terms, locked=partial(made.locked, PASS_PATIENCE))
    if as_json:
        released = [{"run": each.id, "outcome": each.outcome} for each in watched.runs]
        print_json({"found": watched.found, "released": released})
        return 0
    app.console.print(watched.found, markup=False)
    for each in watched.runs:
        app.console.print(f"closed run {each.id}: {each.outcome} ({escape(each.detail)})")
    return 0
