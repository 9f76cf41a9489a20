"""`batchscribe worker` and `batchscribe engines`: commands for the GPU host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from batchscribe.cli.app import App, json_option, pass_app, print_json
from batchscribe.core.figures import format_count
from batchscribe.core.redaction import printable
from batchscribe.core.run.manifest import EngineSpec, WorkerEnd

if TYPE_CHECKING:
    from batchscribe.ledger import Speed
    from batchscribe.wiring.engines import EngineReport

INDENT = 16
"""Width of the engine names, in columns."""


@click.command()
@click.argument("manifest")
@click.option("--control", default="", metavar="URL", help="BATCH_CONTROL of the scheduler, if it has one.")
@click.option("--sha256", default="", metavar="HASH", help="The required hash of the manifest.")
def worker(manifest: str, control: str, sha256: str) -> None:
    """Process one MANIFEST, given as OUTPUT/_batchscribe/runs/RUN/workers/N/manifest.json.

    SIGTERM and Ctrl-C let the window in the engine finish; complete chunks are published. Exit codes: 0
    finished or stopped, 1 failed, 2 misconfigured.
    """
    # Imports numpy and the decoder's packages, which other commands do not need.
    from batchscribe.wiring.process import configure_host_log
    from batchscribe.wiring.worker import process_manifest

    configure_host_log()
    record = process_manifest(manifest, control=control, sha256=sha256)
    click.echo(printable(f"worker {record.end}: {record.message}"))
    if record.end is WorkerEnd.FAILED:
        raise click.exceptions.Exit(1)


@click.command()
@click.option("--engine", default="auto", show_default=True, help="The engine that the model belongs to.")
@click.option("--model", default="", help="A model's name, or its folder on this machine.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda or cpu.")
@click.option("--compute-type", default="auto", show_default=True, help="The number format.")
@click.option("--fetch", metavar="MODEL", help="Fetch a model of the engine onto this machine first.")
@json_option
@pass_app
def engines(app: App, /, *, fetch: str | None, as_json: bool, **options: str) -> None:
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
