"""An example for the help of each command."""

from __future__ import annotations

import click

EXAMPLES = {
    "demo": "demo --folder ./demo",
    "doctor": "doctor",
    "init": "init --from old-project/.env",
    "run": "run morning-walk --dry-run",
    "scan": "scan --source s3://my-bucket/audio --all",
    "status": "status --json",
    "report": "report --last 7d --format html -o report.html",
    "why": "why morning-walk/chunk-001.webm",
    "export": "export morning-walk --format srt -o walk.srt",
    "redo": "redo morning-walk --dry-run",
    "quarantine list": "quarantine list --json",
    "quarantine release": "quarantine release morning-walk/chunk-001.webm",
    "logs": "logs -f",
    "dashboard": "dashboard --port 8765",
    "tick": "tick --dry-run",
    "install systemd": "install systemd --every 30m --print",
    "install cron": "install cron --every 30m",
    "uninstall": "uninstall",
    "simulate": "simulate --arrivals arrivals.csv --rate 0.526",
    "metrics": "metrics --textfile batchscribe.prom",
    "pause": "pause --for 8h",
    "resume": "resume",
    "watchdog": "watchdog --json",
    "reconcile": "reconcile --json",
    "gpu start": "gpu start --for 2h",
    "gpu stop": "gpu stop",
    "gpu status": "gpu status --json",
    "gpu check": "gpu check --start",
    "gpu setup": "gpu setup --start",
    "gpu image": "gpu image --start",
    "prices": "prices --refresh",
    "rehearse": "rehearse --act box",
    "engines": "engines --fetch small.en",
    "lane": "lane --test",
    "worker": "worker s3://recordings/_batchscribe/runs/RUN/workers/0/manifest.json",
    "config": "config --json",
    "iam-policy": "iam-policy --role scheduler",
    "notify": "notify --test",
}


def add_example(command: click.Command, name: str) -> None:
    """Sets the epilog of a command, or of each of a group."""
    if isinstance(command, click.Group):
        for inner, each in command.commands.items():
            add_example(each, f"{name} {inner}")
    elif name in EXAMPLES:
        command.epilog = f"Example: batchscribe {EXAMPLES[name]}"
