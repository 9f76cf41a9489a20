"""`batchscribe doctor`: every precondition of a run, with the fix for each."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout

import click

from batchscribe.cli.app import App, json_option, print_json
from batchscribe.cli.gpu import check_host, open_tools
from batchscribe.cli.gpu_session import running_instance
from batchscribe.cli.terminal.layout import describe_finding
from batchscribe.core.decide.money import MINIMUM_BILLED_SECONDS, cost
from batchscribe.core.decide.prices import describe_rate
from batchscribe.core.run.host import Finding, Grade, warned
from batchscribe.core.run.instances import InstanceState
from batchscribe.settings import Settings
from batchscribe.wiring.doctor import open_preconditions
from batchscribe.wiring.process import open_clock
from batchscribe.wiring.seams import rate_of

ON_HOST = "started host"
MISCONFIGURED = 2
Show = Callable[[str, Finding], None]


@click.command()
@click.option("--start", "start_it", is_flag=True, help="Then start the GPU, check its host, and stop it.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, *, start_it: bool, as_json: bool) -> int:
    """Check every precondition of a run, with the fix for each.

    Exit code 2 if a check fails that would refuse a start.
    """
    app = ctx.ensure_object(App)
    app.lenient = True
    rows: list[tuple[str, Finding]] = []

    def show(group: str, finding: Finding) -> None:
        if not as_json:
            _print_row(app, finding, heading=group if not rows or rows[-1][0] != group else "")
        rows.append((group, finding))

    # A document on stdout stands alone: what starting and stopping print goes to stderr.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        for group, finding in open_preconditions(app.settings).check():
            show(group, finding)
        if start_it:
            _check_started(ctx, app.settings, show, fine=all(finding.ok for _, finding in rows))
    ok = all(finding.ok for _, finding in rows)
    if as_json:
        print_json({"ok": ok, "checks": [_document(*row) for row in rows]})
    else:
        counts = Counter(finding.level for _, finding in rows)
        app.console.print(
            f"\nPassed: {counts[Grade.PASS]}, warnings: {counts[Grade.WARN]}, failures: {counts[Grade.FAIL]}"
        )
    return 0 if ok else MISCONFIGURED


def _check_started(ctx: click.Context, settings: Settings, show: Show, *, fine: bool) -> None:
    """Starts the instance unless a check failed, then checks its host."""
    if not fine:
        show(ON_HOST, warned("start", "not started: a failure above would make it useless"))
        return
    at = open_tools(ctx)
    seen = at.control.poll()
    if at.ssh and seen.state is not InstanceState.RUNNING:
        rate = rate_of(settings)(seen.type)
        least = cost(rate, MINIMUM_BILLED_SECONDS)
        price = f"{describe_rate(rate, open_clock().now())}: at least {least}"
        click.echo(f"\nStarting {seen.id} at {price}, billed until it is stopped.")
    with running_instance(at, seen, start_it=True) as running:
        assert running
        for finding in check_host(at, running):
            show(ON_HOST, finding)


def _print_row(app: App, finding: Finding, *, heading: str) -> None:
    if heading:
        app.console.print(f"[bold]{heading}[/bold]")
    app.console.print(describe_finding(finding, app.console.room, indent="  "), markup=False)


def _document(group: str, finding: Finding) -> dict[str, str]:
    fix = "" if finding.level is Grade.PASS else finding.fix
    return {
        "group": group,
        "name": finding.what,
        "level": finding.level.value,
        "detail": finding.detail,
        "fix": fix,
    }
