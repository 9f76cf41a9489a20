"""Message to the user about a settled run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from batchscribe.core.decide.hosted import format_savings, make_savings
from batchscribe.core.decide.offers import LOCAL
from batchscribe.core.figures import format_count, format_hours
from batchscribe.core.messages import Level, Message
from batchscribe.core.run.engine_time import flag_text
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run
from batchscribe.core.scan.chunks import passed_over_text


def run_message(
    run: Run,
    *,
    left: Sequence[str],
    quarantined: Sequence[str],
    passed_over: Mapping[str, int],
) -> Message:
    """Builds the message: result, cost, failed chunks with reasons, places, next step.

    `left` and `quarantined` are the keys of chunks that are not done.
    """
    outcome = run.outcome or Outcome.INCOMPLETE
    level = Level.SUCCESS if outcome.success else Level.FAILURE
    if outcome.success and quarantined:
        level = Level.WARNING
    asked = run.chunks_done + len(quarantined) + len(left)
    machine = run.instance_type or run.provider
    if len(run.machines) > 1:
        offers = ((each.type, each.market, each.region) for each in run.machines)
        types = sorted({" ".join(filter(None, offer)) for offer in offers} - {""})
        machine = f"{len(run.machines)} machines ({', '.join(types) or machine})"
    done = f"{run.chunks_done} of {format_count(asked, 'chunk')} done"
    lines = [
        f"{done}, {len(quarantined)} quarantined, {len(left)} left.",
        f"{format_hours(run.audio_seconds)} of audio, at most {run.cost} on {machine}.",
        f"Savings: {format_savings(make_savings(run.cost, run.audio_seconds / 3600), run.created)}."
        if run.audio_seconds
        else "",
        run.detail,
        *failure_lines(run, len(quarantined) + len(left)),
        f"Transcripts: {run.output}. Audio: {run.source}. Scheduler: {run.host or 'this machine'}.",
        _next_step(run, quarantined, left),
        flag_text(run.worked.flags),
        passed_over_text(passed_over),
    ]
    return Message(f"batchscribe: run {run.id} {outcome.value}", "\n".join(filter(None, lines)), level)


def failure_lines(run: Run, failed: int) -> Iterator[str]:
    """Yields the first failed chunks with reasons, and the others' number."""
    for key, reason in run.failures.items():
        yield f"  {key}: {reason}"
    if run.failures and failed > len(run.failures):
        yield f"  and {failed - len(run.failures)} more"


def count_failed(run: Run) -> str:
    """Number of chunks not done, with the command for them."""
    if not run.chunks_failed:
        return "0 failed"
    if run.outcome is Outcome.COMPLETED:
        return f"{run.chunks_failed} quarantined: `batchscribe quarantine list`"
    key = shlex.quote(next(iter(run.failures), "KEY"))
    return f"{run.chunks_failed} failed: `batchscribe why {key}` shows the attempts left"


def _next_step(run: Run, quarantined: Sequence[str], left: Sequence[str]) -> str:
    if quarantined:
        return (
            f"`batchscribe why {shlex.quote(quarantined[0])}` shows its history; after a fix, "
            "`batchscribe quarantine release` retries quarantined chunks."
        )
    if left:
        return (
            f"The rest is for the next run; `batchscribe why {shlex.quote(left[0])}` shows a chunk's history."
        )
    if run.outcome and not run.outcome.success:
        local = run.provider == LOCAL
        check = "doctor` checks this machine" if local else "gpu check --start` checks the GPU host"
        return f"`batchscribe {check}, `batchscribe status` shows the next start."
    return ""
