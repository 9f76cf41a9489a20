"""The command line's front door: names and one line each, and nothing imported that is not used.

`batchscribe --help` shows this table and starts in a blink; a command's module is imported when the
command is called.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import NoReturn

import click

from batchscribe import __version__
from batchscribe.core.redaction import printable
from batchscribe.errors import BatchscribeError

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo:demo", "The whole main job on this machine: bundled speech, no account, no network."),
    "scan": ("scan:scan", "The backlog, by session."),
    "tick": ("tick:tick", "One decision, and what follows from it."),
    "run": ("tick:run", "Transcribe the backlog now, whatever policy and age say."),
    "status": ("status:status", "Lock, run in progress, backlog, GPU, pause, last runs."),
    "report": ("report:report", "Sessions and costs of a period."),
    "why": ("chunks:why", "The whole life of one chunk."),
    "redo": ("chunks:redo", "Transcribe again; the old transcripts are kept aside."),
    "quarantine": ("chunks:quarantine", "Chunks that failed for good."),
    "export": ("chunks:export", "A session's transcript."),
    "pause": ("status:pause", "Ticks hold until `resume`, or for a while."),
    "resume": ("status:resume", "Ticks decide again."),
    "gpu": ("gpu:gpu", "The GPU instance by hand."),
    "reconcile": ("tick:reconcile", "Stop what should not run; start nothing."),
    "watchdog": ("watch:watchdog", "Advance open runs by one pass; a timer calls it each minute."),
    "rehearse": ("rehearse:rehearse", "Kill the controller, and watch what stops the GPU."),
    "install": ("install:install", "Put the scheduler on a schedule."),
    "uninstall": ("install:uninstall", "Take the scheduler off its schedule."),
    "worker": ("worker:worker", "Work off one manifest, beside the GPU."),
    "engines": ("worker:engines", "Which speech engines can run here, and why not."),
    "iam-policy": (
        "rights:iam_policy",
        "The least rights on AWS for the scheduler, the stop role and the box.",
    ),
    "config": ("status:config", "The effective settings, and where each comes from."),
}


class FrontDoor(click.Group):
    """Lists commands from the table; imports the module of the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"batchscribe.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=FrontDoor, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="batchscribe")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Transcribes everything in a bucket on a GPU that exists only while it is worth paying for.

    Settings come from `.env` in the working directory; the environment wins over it, options win
    over both. Exit codes: 0 done, held or nothing to do; 1 failed; 2 misconfigured; 3 the GPU could
    not be proved stopped.
    """
    from batchscribe.cli.app import App

    ctx.obj = app = App()

    def tools() -> object:
        from batchscribe.cli.gpu_tools import gpu_tools

        return gpu_tools(ctx, app)

    ctx.meta["batchscribe.gpu.tools"] = tools


def main() -> NoReturn:
    """Runs the command line and ends the process with the exit code of the contract."""
    try:
        code = cli.main(prog_name="batchscribe", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("batchscribe: interrupted", err=True)
        sys.exit(1)
    except BatchscribeError as error:
        sys.exit(_failed(error))
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away (`| head`); nothing is left to say
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _failed(error: BatchscribeError) -> int:
    """Says what happened in one line, as JSON too where that was asked for; the exit code."""
    click.echo(printable(f"batchscribe: {error}"), err=True)
    if "--json" in sys.argv[1:]:
        document = {"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code}
        click.echo(json.dumps(document))
    return error.exit_code
