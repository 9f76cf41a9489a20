"""`rehearse`: proves that the GPU stops without its controller."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from importlib.resources import files
from pathlib import Path
from typing import IO

import click

from batchscribe.cli.app import App, json_option, pass_app, print_json
from batchscribe.cli.tick import open_app_scheduler
from batchscribe.controller.capacity import poll_one
from batchscribe.controller.commands.rehearsal import (
    LONGEST,
    Act,
    Proof,
    check,
    describe_proof,
    make_config,
    put_speech,
)
from batchscribe.controller.commands.rehearsal import (
    rehearse as play,
)
from batchscribe.controller.rehearsal_place import make_rehearsal_world
from batchscribe.controller.tick import tick as one_tick
from batchscribe.core.decide.money import Usd, cost
from batchscribe.core.decide.prices import describe_rate
from batchscribe.core.redaction import printable
from batchscribe.core.run.instances import GUARD_FIRST
from batchscribe.errors import BatchscribeError, MisconfiguredError
from batchscribe.private_files import FILE, make_folder
from batchscribe.wiring.scheduler import Scheduler

USUAL = {Act.BOX: 420.0, Act.GUARD: LONGEST[Act.GUARD].total_seconds() / 2}
"""Billed seconds of a successful act."""


@click.command()
@click.option(
    "--act",
    "acts",
    type=click.Choice([act.value for act in Act]),
    multiple=True,
    help="Play only this act; default: both.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--controller", hidden=True, help="Run as the controller of this rehearsal.")
@json_option
@pass_app
def rehearse(app: App, *, acts: tuple[str, ...], yes: bool, controller: str | None, as_json: bool) -> int:
    """Start the GPU, kill its controller, and verify the stop.

    First the GPU host has to power itself off, then the guard has to stop it.
    """
    app.require_state_folder("set BATCH_STATE_DIR=rehearsal for this command")
    if app.settings.creates_machines:
        raise MisconfiguredError(
            "a rehearsal needs an instance that exists, and each run of GPU_PROVIDER="
            f"{app.settings.provider} creates its machines: nothing was started"
        )
    chosen = tuple(Act(act) for act in acts) or tuple(Act)
    if controller:
        return _run_controller(app, controller, chosen[0])
    with open_app_scheduler(app) as made, made.lock.held():
        for act in chosen:
            check(made.world, made.config, act, guarded=made.settings.cloud_guard != "off")
        if not yes:
            click.confirm(_cost_question(made, chosen), abort=True, err=True)
        played = [_play_act(app, made, act, quiet=as_json) for act in chosen]
    if as_json:
        print_json({"proofs": played})
    return 0 if all(proof.proved for proof in played) else 1


def _cost_question(made: Scheduler, acts: tuple[Act, ...]) -> str:
    rate = made.world.capacity.offers(poll_one(made.world, made.config.instances[0]))[0].rate
    usual = sum((cost(rate, USUAL[act]) for act in acts), start=Usd(0))
    most = sum((cost(rate, LONGEST[act].total_seconds()) for act in acts), start=Usd(0))
    minutes = sum(USUAL[act] for act in acts) / 60
    return (
        f"This starts {made.config.instances[0]}{' twice' if len(acts) > 1 else ''} and takes about "
        f"{minutes:.0f} minutes: about {usual} at {describe_rate(rate, made.world.clock.now())}, "
        f"and never more than {most}. Continue?"
    )


def _play_act(app: App, made: Scheduler, act: Act, *, quiet: bool) -> Proof:
    name = f"{made.world.clock.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    if not quiet:
        app.console.print(f"{act}: {_PLOTS[act]}", markup=False)
    bundled = files("batchscribe") / "demo" / "audio" / "morning-walk" / "chunk-002.ogg"
    put_speech(made.world, name, {"rehearsal/chunk-001.ogg": bundled.read_bytes()})
    log = made.settings.log_dir / "rehearsal.log"
    make_folder(log.parent)
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE), "ab") as output:
        proof = play(made.world, made.config, act, name, lambda: _Controller(made, name, act, output, log))
    if not quiet:
        app.console.print(f"{'proved' if proof.proved else 'FAILED'}: {describe_proof(proof)}", markup=False)
    return proof


class _Controller:
    """A rehearsal.Victim: a tick in a separate process."""

    def __init__(self, made: Scheduler, name: str, act: Act, output: IO[bytes], log: Path) -> None:
        argv = [sys.executable, "-m", "batchscribe", "rehearse", "--controller", name, "--act", act.value]
        self._log = log
        self._process = subprocess.Popen(
            argv, cwd=made.settings.folder, stdin=subprocess.PIPE, stdout=output, stderr=output
        )

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def ended(self) -> str | None:
        code = self._process.poll()
        if code is None:
            return None
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"its controller ended with code {code}"


def _run_controller(app: App, name: str, act: Act) -> int:
    """Runs one tick without the lock, which its parent process holds."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open_app_scheduler(app) as made:
        ticked = one_tick(make_rehearsal_world(made.world, name), make_config(made.config, act))
    for error in ticked.errors:
        click.echo(printable(f"batchscribe: {error}"), err=True)
    ended = ticked.runs[-1].detail if ticked.runs else ticked.decision.reason.sentence
    raise BatchscribeError(ended)


def _end_with_parent() -> None:
    """Exits when the parent ends, also if it was killed."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)  # without clean-up, as if killed


_PLOTS = {
    Act.BOX: "the controller is killed while the GPU host works; then the host has to power itself off",
    Act.GUARD: (
        "the controller is killed and the GPU host stays on; then the guard has to stop it, from "
        f"{GUARD_FIRST.total_seconds() / 60:.0f} min after a near deadline on"
    ),
}
