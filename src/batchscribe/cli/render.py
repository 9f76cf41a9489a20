"""Decisions and runs as text lines and as a JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from batchscribe.controller.run_message import failure_lines
from batchscribe.controller.tick import Ticked
from batchscribe.core.decide.packing import Batch
from batchscribe.core.decide.policy import Decision, Launch, Observation, ReasonCode
from batchscribe.core.figures import format_count, render_block
from batchscribe.core.run.engine_time import flag_text
from batchscribe.core.run.report import build, cost_block, estimate_block
from batchscribe.core.run.runs import Outcome, Run
from batchscribe.core.scan.chunks import passed_over_text
from batchscribe.errors import BatchscribeError
from batchscribe.settings import Settings


def render_decision(ticked: Ticked) -> list[str]:
    """Lines with the decision and the files that the listing passed over."""
    over = passed_over_text(ticked.seen.backlog.passed_over) if ticked.seen else ""
    return [f"{type(ticked.decision).__name__}: {ticked.decision.reason.sentence}", *filter(None, [over])]


def render_dry_run(
    seen: Observation, decision: Decision, refused: BatchscribeError | None, max_wait: timedelta
) -> list[str]:
    """Lines of a dry run: refusal, decision, reason, batch and estimates."""
    lines = [f"Would not start: {refused}"] if refused else []
    otherwise = " otherwise" if refused else ""
    lines.append(f"Would{otherwise} {type(decision).__name__.lower()}: {decision.reason.sentence}")
    if isinstance(decision, Launch):
        batch = decision.batch
        lines.append(f"Batch: {format_count(len(batch.chunks), 'chunk')}, {batch.left} left for later")
        lines.append(render_block(estimate_block(batch.estimate, seen.instance.type or "local")))
        if not seen.offer.priors.learned:
            lines.append("Speed and set-up time are assumed until the first run measures them.")
    elif decision.reason.code is ReasonCode.BELOW_THRESHOLD and seen.backlog.oldest:
        lines.append(
            f"It starts by {seen.backlog.oldest + max_wait:%Y-%m-%d %H:%M} UTC at the latest, when the "
            f"oldest chunk has waited {max_wait.total_seconds() / 3600:g} h (BATCH_MAX_WAIT_HOURS)."
        )
    lines.append("Dry run: nothing was started, nothing was written.")
    return lines


def render_run(run: Run, settings: Settings, *, left: int | None) -> Iterator[str]:
    """Lines with a run's outcome, maximum cost and file locations."""
    outcome = run.outcome or Outcome.INCOMPLETE
    detail = f" ({run.detail})" if run.detail else ""
    yield ""
    if run.open:
        yield f"Run {run.id}: {run.state}{detail}"
        return
    counts = f"{run.chunks_done} done, {run.chunks_failed} failed" + (f", {left} left" if left else "")
    yield f"Run {run.id}: {outcome}{detail}, {counts}"
    yield from failure_lines(run, run.chunks_failed)
    if flags := flag_text(run.worked.flags):
        yield f"Flags: {flags}"
    yield render_block(cost_block(build(run)))
    if run.chunks_done:
        yield f"Transcripts in {run.output}; `batchscribe export SESSION` prints one"
    yield f"Report in {settings.reports_dir}, log in {settings.log_dir}"


def tick_document(
    ticked: Ticked,
    *,
    dry_run: bool = False,
    refused: BatchscribeError | None = None,
    exit_code: int = 0,
) -> dict[str, Any]:
    """JSON document of `tick --json` and `run --json`."""
    decision = ticked.decision
    batch = decision.batch if isinstance(decision, Launch) else None
    return {
        "dry_run": dry_run,
        "decision": type(decision).__name__.lower(),
        "reason": {
            "code": decision.reason.code,
            "sentence": decision.reason.sentence,
            "numbers": dict(decision.reason.numbers),
        },
        "passed_over": ticked.seen.backlog.passed_over if ticked.seen else {},
        "batch": _batch_document(batch) if batch else None,
        "refused": str(refused) if refused else None,
        "runs": [build(run) for run in ticked.runs],
        "errors": [str(error) for error in ticked.errors],
        "exit_code": refused.exit_code if refused else exit_code,
    }


def _batch_document(batch: Batch) -> dict[str, Any]:
    estimate = batch.estimate
    return {
        "chunks": len(batch.chunks),
        "left": batch.left,
        "audio_seconds": round(estimate.audio_seconds, 1),
        "seconds": round(estimate.seconds, 1),
        "dollars": estimate.cost.dollars,
        "hourly_dollars": estimate.rate.per_hour.dollars,
        "price_source": estimate.rate.source,
        "price_as_of": estimate.rate.as_of,
        "keys": [chunk.key for chunk in batch.chunks[:20]],
    }
