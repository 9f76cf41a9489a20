"""Entry point of the command line: table of commands, imported on use.

`batchscribe --help` prints this table without importing any command.
"""

from __future__ import annotations

import difflib
import importlib
import json
import sys
from typing import NoReturn

import click

from batchscribe import __version__
from batchscribe.cli.terminal.examples import add_example
from batchscribe.core.redaction import printable
from batchscribe.errors import BatchscribeError, MisconfiguredError

GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Start here": {
        "demo": ("demo:demo", "A complete run on this machine: bundled speech, no account, no network."),
        "init": ("init:init", "Write a .env: finds buckets, GPU instances and keys, and asks for the rest."),
        "doctor": ("doctor:doctor", "Check every precondition of a run, with the fix for each."),
        "run": ("tick:run", "Transcribe the backlog now, ignoring policy and age, unless paused."),
    },
    "Every day": {
        "scan": ("scan:scan", "The backlog, by session."),
        "status": ("status:status", "Lock, run in progress, backlog, GPU, pause, last runs."),
        "report": ("report:report", "Sessions and costs of a period."),
        "why": ("chunks:why", "The history of one chunk, and what it waits for."),
        "export": ("chunks:export", "A session's transcript."),
        "redo": ("chunks:redo", "Transcribe again; old transcripts are kept."),
        "quarantine": ("chunks:quarantine", "Chunks that failed for good."),
        "logs": ("logs:logs", "The log of a run."),
        "dashboard": ("dashboard:dashboard", "Serve pages for a browser until interrupted."),
    },
    "The schedule": {
        "tick": ("tick:tick", "Make one decision, and carry it out."),
        "install": ("install:install", "Install the schedule of tick and watchdog."),
        "uninstall": ("install:uninstall", "Remove the schedule of tick and watchdog."),
        "metrics": ("report:metrics", "Metrics for Prometheus, from the ledger alone."),
        "simulate": ("simulate:simulate", "Cost and waits of each policy on past arrivals."),
        "pause": ("status:pause", "Suspend scheduling until `resume`, or for a duration."),
        "resume": ("status:resume", "Resume scheduling."),
        "watchdog": ("tick:watchdog", "Advance open runs by one pass; a timer calls it each minute."),
        "reconcile": ("tick:reconcile", "Stop runs that should have ended; start nothing."),
    },
    "The GPU": {
        "gpu": ("gpu:gpu", "Manual control of the GPU instance."),
        "prices": ("prices:prices", "The price table with its age, and its refresh."),
        "rehearse": ("rehearse:rehearse", "Kill the controller, and verify that the GPU is stopped."),
        "engines": ("engines:engines", "Speech engines, and whether each can run here."),
        "lane": ("engines:lane", "Transcribe on this machine's processor what ticks request."),
        "worker": ("worker:worker", "Process one manifest on the GPU host."),
    },
    "Set-up": {
        "config": ("status:config", "The effective settings, and the origin of each."),
        "iam-policy": (
            "rights:iam_policy",
            "The least rights on AWS for the scheduler, the stop role and the GPU host.",
        ),
        "notify": ("notify:notify", "Send a test message to all receivers."),
        "completion": ("terminal.completion:completion", "A script that completes commands in your shell."),
    },
}
WITHOUT_STATE = (
    "completion",
    "config",
    "dashboard",
    "demo",
    "iam-policy",
    "init",
    "install",
    "rehearse",
    "uninstall",
)
COMMANDS = {name: row for group in GROUPS.values() for name, row in group.items()}
"""Command -> (module:attribute, help)."""


class FrontDoor(click.Group):
    """Lists commands from the table; imports a command's module on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            if near := difflib.get_close_matches(cmd_name, COMMANDS, n=1):
                ctx.fail(f"No such command {cmd_name!r}. Did you mean {near[0]!r}?")
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"batchscribe.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        add_example(command, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for group, commands in GROUPS.items():
            with formatter.section(group):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])


@click.group(
    cls=FrontDoor, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="batchscribe")
@click.option("-v", "--verbose", is_flag=True, help="Show the events of the log on a terminal, too.")
@click.option("-q", "--quiet", is_flag=True, help="Show errors only.")
@click.pass_context
def cli(ctx: click.Context, *, verbose: bool, quiet: bool) -> None:
    """Transcribe the audio of a bucket on a GPU started on demand.

    Settings come from `.env` in the working directory; the environment wins over it, options win
    over both. Exit codes: 0 done, held or nothing to do; 1 failed; 2 misconfigured; 3 the GPU was not
    observed stopped; 130 interrupted.
    """
    if ctx.invoked_subcommand == "worker":
        return  # Paid time passes while it imports, and it has no settings.
    from batchscribe.cli.app import App

    ctx.obj = app = App()
    app.verbose |= verbose
    app.quiet = quiet
    app.reads_state = ctx.invoked_subcommand not in WITHOUT_STATE

    def tools() -> object:
        from batchscribe.wiring.gpu import open_gpu_tools

        return ctx.with_resource(open_gpu_tools(app.settings))

    ctx.meta["batchscribe.gpu.tools"] = tools


def main() -> NoReturn:
    """Runs the command line and exits with the documented code."""
    try:
        code = cli.main(prog_name="batchscribe", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        _print_document(error.format_message(), MisconfiguredError.__name__, 2)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as stopped:
        if isinstance(stopped, click.Abort) and not isinstance(stopped.__context__, KeyboardInterrupt):
            click.echo("batchscribe: not confirmed; nothing was done", err=True)
            sys.exit(1)
        click.echo("batchscribe: interrupted", err=True)
        sys.exit(130)
    except BatchscribeError as error:
        sys.exit(_print_error(error))
    except BrokenPipeError:
        sys.stderr.close()  # the reader closed the pipe (`| head`)
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _print_error(error: BatchscribeError) -> int:
    """Prints the error, for --json a document too; returns its exit code."""
    click.echo(printable(f"batchscribe: {error}"), err=True)
    _print_document(str(error), type(error).__name__, error.exit_code)
    return error.exit_code


def _print_document(text: str, kind: str, code: int) -> None:
    """Prints an error as a JSON document, if one was requested."""
    if "--json" in sys.argv[1:]:
        click.echo(json.dumps({"error": text, "kind": kind, "exit_code": code}))
