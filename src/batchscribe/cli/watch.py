"""`watchdog`: what a timer of five minutes does about a tick that hangs, and about a GPU without one."""

from __future__ import annotations

import click
from rich.markup import escape

from batchscribe.adapters.processes import LocalProcesses
from batchscribe.cli.app import App, json_option, pass_app, print_json
from batchscribe.cli.tick import opened
from batchscribe.controller.watchdog import Watchdog


@click.command()
@json_option
@pass_app
def watchdog(app: App, *, as_json: bool) -> int:
    """End a tick that hangs, then stop what should not run; leave a tick that moves alone."""
    app.way_out = True
    with opened(app) as made:
        seen = Watchdog(made.world, made.terms, made.lock, LocalProcesses()).watch()
    if as_json:
        released = [{"run": each.id, "outcome": each.outcome} for each in seen.runs]
        ended = seen.ended.pid if seen.ended else None
        print_json({"found": seen.found, "ended": ended, "released": released})
        return 0
    app.console.print(seen.found, markup=False)
    for each in seen.runs:
        app.console.print(f"released run {each.id}: {each.outcome} ({escape(each.detail)})")
    return 0
