"""`batchscribe engines`: what can run here, how fast, and how well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from batchscribe.cli.app import App, json_option, pass_app, print_json
from batchscribe.core.figures import format_count
from batchscribe.core.run.manifest import EngineSpec

if TYPE_CHECKING:
    from batchscribe.ledger import Speed
    from batchscribe.wiring.engines import EngineReport

INDENT = 16
"""Width of the engine names, in columns."""
_file = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--engine", default="auto", show_default=True, help="The engine that the model belongs to.")
@click.option("--model", default="", help="A model's name, or its folder on this machine.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda or cpu.")
@click.option("--compute-type", default="auto", show_default=True, help="The number format.")
@click.option("--fetch", metavar="MODEL", help="Fetch a model of the engine onto this machine first.")
@click.option(
    "--compare",
    metavar="WHAT",
    multiple=True,
    help="Transcribe a file or a session with each engine and model.",
)
@click.option(
    "--reference",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Text that was spoken, for the word error rates of --compare.",
)
@click.option("--plot", type=_file, help="Draw error rate against price into a .png, .svg or .pdf.")
@json_option
@pass_app
def engines(
    app: App,
    /,
    *,
    fetch: str | None,
    compare: tuple[str, ...],
    reference: Path | None,
    plot: Path | None,
    as_json: bool,
    **options: str,
) -> None:
    """Speech engines of this machine: availability, models and measured speed.

    The speed comes from the runs of this machine: audio seconds per second of work.
    """
    from batchscribe.wiring.engines import engine_reports, fetch_model
    from batchscribe.wiring.seams import open_ledger

    spec = EngineSpec(**options)
    if fetch:
        folder = fetch_model(replace(spec, model=fetch))
        click.echo(f"{fetch} is in {folder}", err=True)
        spec = replace(spec, model=spec.model or fetch)

    if (reference or plot) and not compare:
        raise click.UsageError("--reference and --plot need --compare")
    if compare:
        _compare(app, spec, compare, reference, plot, as_json=as_json)
        return
    reports = engine_reports(spec)
    with open_ledger(app.settings, remember=False) as ledger:
        speeds = ledger.speeds()
    if as_json:
        print_json({"engines": [_build_document(report, speeds) for report in reports]})
        return
    for report in reports:
        state = "usable" if report.usable else "; ".join(report.problems)
        app.print_labelled(report.name, state, indent=INDENT)
        for line in _list_details(report, speeds):
            app.print_labelled("", line, indent=INDENT)


def _compare(
    app: App,
    spec: EngineSpec,
    what: tuple[str, ...],
    reference: Path | None,
    plot: Path | None,
    *,
    as_json: bool,
) -> None:
    from batchscribe.cli.compare import compare, draw_comparison, print_comparison
    from batchscribe.cli.plot import check_plot

    if plot:
        check_plot(plot)
    found = compare(app, what, reference, spec)
    if plot:
        draw_comparison(found, plot)
    if as_json:
        print_json({"compared": found})
    else:
        print_comparison(app, found)


def _build_document(report: EngineReport, speeds: Sequence[Speed]) -> dict[str, object]:
    return {
        "name": report.name,
        "usable": report.usable,
        "problems": report.problems,
        "models": [{"name": name, "here": here} for name, here in report.models.items()],
        "speeds": [speed for speed in speeds if speed.engine == report.name],
    }


def _list_details(report: EngineReport, speeds: Sequence[Speed]) -> Iterator[str]:
    here = [name for name, there in report.models.items() if there]
    missing = [name for name, there in report.models.items() if not there]
    if report.models:
        yield f"models here: {', '.join(here) or 'none'}"
    if missing:
        yield f"to fetch: {', '.join(missing)}"
    for row in speeds:
        if row.engine == report.name:
            host = row.instance_type or "this machine"
            runs = format_count(row.runs, "run")
            yield f"measured: {row.speed:.1f} x with {row.model or 'its own model'} on {host} ({runs})"
