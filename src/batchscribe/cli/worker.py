"""`batchscribe worker`: the command of the GPU host."""

from __future__ import annotations

import click

from batchscribe.core.redaction import printable
from batchscribe.core.run.manifest import WorkerEnd


@click.command()
@click.argument("manifest")
@click.option("--control", default="", metavar="URL", help="BATCH_CONTROL of the scheduler, if it has one.")
@click.option("--sha256", default="", metavar="HASH", help="The required hash of the manifest.")
def worker(manifest: str, control: str, sha256: str) -> None:
    """Process one MANIFEST, given as OUTPUT/_batchscribe/runs/RUN/workers/N/manifest.json.

    If MANIFEST is `-`, the manifests are read from standard input, `SHA256 URL` a line, and the engine stays
    loaded between them: a line is printed for each finished one, and the first other one ends the command.

    SIGTERM and Ctrl-C let the window in the engine finish; complete chunks are published. Exit codes: 0
    finished or stopped, 1 failed, 2 misconfigured.
    """
    # Imports numpy and the decoder's packages, which other commands do not need.
    from batchscribe.wiring.host_log import configure_host_log
    from batchscribe.wiring.worker import process_each, process_manifest

    configure_host_log()
    if manifest != "-":
        record = process_manifest(manifest, control=control, sha256=sha256)
        click.echo(printable(f"worker {record.end}: {record.message}"))
    else:
        # Not sys.stdin: the interpreter could not close it at its end, while a thread reads it.
        lines = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        for record in process_each(lines, control=control):
            finished = record.end is WorkerEnd.FINISHED
            click.echo(printable(f"worker {record.end}: {record.message}"), err=not finished)
    if record.end is WorkerEnd.FAILED:
        raise click.exceptions.Exit(1)
