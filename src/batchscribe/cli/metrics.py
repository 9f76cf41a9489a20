"""`metrics`: numbers for Prometheus."""

from __future__ import annotations

from pathlib import Path

import click

from batchscribe.cli.app import App, pass_app
from batchscribe.wiring.process import open_clock
from batchscribe.wiring.seams import open_ledger


@click.command()
@click.option(
    "--textfile",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.prom",
    help="Replace this file of node_exporter's textfile collector, instead of stdout.",
)
@pass_app
def metrics(app: App, *, textfile: Path | None) -> None:
    """Metrics for Prometheus, from the ledger alone."""
    from batchscribe.dashboard.metrics import render_metrics, write_metrics

    with open_ledger(app.settings, remember=False) as ledger:
        data = render_metrics(app.settings, ledger, open_clock().now())
    if textfile:
        write_metrics(textfile, data)
    else:
        click.echo(data, nl=False)
