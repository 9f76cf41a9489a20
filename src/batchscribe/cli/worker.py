"""`batchscribe worker` and `batchscribe engines`: beside the GPU."""

from __future__ import annotations

import click

from batchscribe.cli.app import json_option, print_json
from batchscribe.core.manifest import EngineSpec, WorkerEnd


@click.command()
@click.argument("manifest")
def worker(manifest: str) -> None:
    """Work off one MANIFEST, given as the URL or the path of its object in the store.

    SIGTERM and Ctrl-C let the window in the engine finish; what is whole is published. Exit codes: 0
    finished or stopped, 1 failed, 2 misconfigured.
    """
    # Numpy and the decoder's packages come with it: other commands start without them.
    from batchscribe import aws_environment
    from batchscribe.adapters import logs
    from batchscribe.wiring.worker import work

    logs.configure(secrets=aws_environment.secrets())
    record = work(manifest)
    click.echo(f"worker {record.end}: {record.message}")
    if record.end is WorkerEnd.FAILED:
        raise click.exceptions.Exit(1)


@click.command()
@click.option("--engine", default="auto", show_default=True, help="The engine that the model belongs to.")
@click.option("--model", default="", help="A model's name, or its folder on this machine.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda or cpu.")
@click.option("--fetch", metavar="MODEL", help="Fetch a Whisper model onto this machine first.")
@json_option
def engines(*, engine: str, model: str, device: str, fetch: str | None, as_json: bool) -> None:
    """Which speech engines can run here, and why not."""
    from batchscribe.wiring.worker import engines as find
    from batchscribe.wiring.worker import fetch_model

    if fetch:
        folder = fetch_model(fetch)
        click.echo(f"{fetch} is in {folder}", err=True)
        model = model or fetch

    reports = find(EngineSpec(engine=engine, model=model, device=device))
    if as_json:
        print_json(
            [
                {"name": report.name, "usable": report.usable, "problems": report.problems}
                for report in reports
            ]
        )
        return
    for report in reports:
        click.echo(f"{report.name:16} {'usable' if report.usable else '; '.join(report.problems)}")
