"""Decisions and runs as text lines and as a JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from batchscribe.controller.run_message import count_failed, failure_lines
from batchscribe.controller.tick import Ticked
from batchscribe.core.decide.fixed import CostBasis, describe_fixed_costs
from batchscribe.core.decide.packing import Batch
from batchscribe.core.decide.policy import Decision, Launch
from batchscribe.core.decide.start_sum import StartSum, describe_sum
from batchscribe.core.figures import format_count, render_block
from batchscribe.core.run.cost_block import estimate_block, summarize_cost
from batchscribe.core.run.engine_time import flag_text
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.report import build
from batchscribe.core.run.runs import Run
from batchscribe.core.scan.chunks import passed_over_text
from batchscribe.errors import BatchscribeError
from batchscribe.settings import Settings


def render_decision(ticked: Ticked) -> list[str]:
    """Lines with the decision, passed-over files, and a change of engine."""
    over = passed_over_text(ticked.seen.backlog.passed_over) if ticked.seen else ""
    decided = f"{type(ticked.decision).__name__}: {ticked.decision.reason.sentence}"
    return [decided, *filter(None, [over, ticked.note])]


def render_dry_run(
    decision: Decision,
    refused: BatchscribeError | None,
    total: StartSum | None,
    *,
    now: datetime,
    costs: CostBasis | None = None,
) -> list[str]:
    """Lines of a dry run: obstacles, decision, and sum of a start."""
    lines = [f"Would not start: {refused}"] if refused else []
    lines += [
        f"In the way of a start: {obstacle.sentence}"
        for obstacle in (total.obstacles if total else ())
        if obstacle.sentence not in decision.reason.sentence
    ]
    otherwise = " otherwise" if refused else ""
    lines.append(f"Would{otherwise} {type(decision).__name__.lower()}: {decision.reason.sentence}")
    lines += [f"{label}: {text}" for label, text in (describe_sum(total) if total else ())]
    if isinstance(decision, Launch):
        batch = decision.batch
        lines.append(f"Batch: {format_count(len(batch.chunks), 'chunk')}, {batch.left} left for later")
        lines.append(
            render_block(estimate_block(batch.estimate, decision.offer.instance_type or "local", now, costs))
        )
        if not decision.offer.priors.learned:
            lines.append("Speed and set-up time are assumed until the first run measures them.")
    elif total and costs:
        lines += filter(None, [describe_fixed_costs(costs.fixed_costs())])
    lines.append("Dry run: nothing was started, nothing was written.")
    return lines


def render_run(run: Run, settings: Settings, *, left: int | None) -> Iterator[str]:
    """At most ten lines: a run's outcome, maximum cost and files."""
    outcome = run.outcome or Outcome.INCOMPLETE
    detail = f" ({run.detail})" if run.detail else ""
    yield ""
    if run.open:
        yield f"Run {run.id}: {run.state}{detail}"
        return
    counts = f"{run.chunks_done} done, " + (f"{left} left, " if left else "") + count_failed(run)
    yield f"Run {run.id}: {outcome}{detail}, {counts}"
    yield from failure_lines(run, run.chunks_failed)
    if flags := flag_text(run.worked.flags):
        yield f"Flags: {flags}"
    yield from summarize_cost(build(run))
    if run.chunks_done:
        yield f"Transcripts in {run.output}; `batchscribe export SESSION` prints one"
    if settings.state_url:
        # A function's disk ends with its pass.
        yield f"Report: `batchscribe report`, from the ledger in {settings.state_url}"
    else:
        yield f"Report in {settings.reports_dir}, log in {settings.log_dir}"


def tick_document(
    ticked: Ticked,
    *,
    dry_run: bool = False,
    refused: BatchscribeError | None = None,
    total: StartSum | None = None,
    exit_code: int = 0,
    costs: CostBasis | None = None,
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
        "batch": _batch_document(batch, costs) if batch else None,
        "sum": total,
        "refused": str(refused) if refused else None,
        "runs": [build(run, costs=costs) for run in ticked.runs],
        "errors": [str(error) for error in ticked.errors],
        "exit_code": refused.exit_code if refused else exit_code,
    }


def _batch_document(batch: Batch, costs: CostBasis | None) -> dict[str, Any]:
    estimate = batch.estimate
    other = costs.run_costs(seconds=estimate.seconds, chunks=estimate.chunks) if costs else None
    return {
        "chunks": len(batch.chunks),
        "left": batch.left,
        "audio_seconds": round(estimate.audio_seconds, 1),
        "seconds": round(estimate.seconds, 1),
        "dollars": estimate.cost.dollars,
        "hourly_dollars": estimate.rate.per_hour.dollars,
        "price_source": estimate.rate.source,
        "price_as_of": estimate.rate.as_of,
        "other_costs": other,
        "fixed_costs": costs.fixed_costs() if costs else None,
        "keys": [chunk.key for chunk in batch.chunks[:20]],
    }
