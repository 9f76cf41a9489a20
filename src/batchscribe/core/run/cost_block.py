"""The "Cost Tracking" block of a run or an estimate."""

from __future__ import annotations

from datetime import datetime

from batchscribe.core.decide.fixed import (
    SCHEDULER_HOST,
    CostBasis,
    FixedCosts,
    RunCosts,
    describe_volume,
    fixed_lines,
    run_cost_lines,
)
from batchscribe.core.decide.hosted import format_savings, make_savings
from batchscribe.core.decide.money import MINIMUM_BILLED_SECONDS, Usd, units_per_dollar
from batchscribe.core.decide.packing import Estimate
from batchscribe.core.decide.prices import describe_origin
from batchscribe.core.figures import Line, format_hours
from batchscribe.core.run.bill_parts import describe_parts
from batchscribe.core.run.report import Gpu, RunReport

_HOUR = 3600.0


def cost_block(report: RunReport) -> list[Line]:
    """Lines of the "Cost Tracking" block, as (label, value)."""
    gpu, now = report.gpu, report.timestamps.created
    seconds = report.transcription.audio_seconds
    cost, rate = Usd(gpu.cost_micros), Usd(gpu.rate_micros)
    billed = _explain_bill(gpu)
    gpu_lines = [
        ("GPU Type", gpu.type or gpu.provider),
        ("Hourly Rate", f"${rate.text(3)} ({describe_origin(gpu.source, gpu.as_of, now)})"),
        ("GPU Time", f"at most {_format_time(gpu.seconds)}{billed}"),
        ("GPU Cost", f"at most {cost}{describe_parts(report.billed)}"),
    ]
    yields = [
        ("Chunks/Dollar", _chunks_per_dollar(report.transcription.done, cost)),
        ("$/Audio Hour", _per_audio_hour(cost, seconds)),
        ("Savings", format_savings(report.savings, now)),
    ]
    return _add_other_costs(gpu_lines, yields, report.other_costs, report.fixed_costs)


def summarize_cost(report: RunReport) -> list[str]:
    """Two lines of the same: cost and savings."""
    gpu, audio = report.gpu, report.transcription.audio_seconds
    cost, rate = Usd(gpu.cost_micros), Usd(gpu.rate_micros)
    billed = _explain_bill(gpu)
    each = cost.per(audio / _HOUR)
    yielded = "" if each is None else f"; {each} per audio hour, {format_hours(audio)} of audio"
    used = f"{gpu.seconds:.0f} s of {gpu.type or gpu.provider} at ${rate.text(3)}/h{billed}"
    savings = format_savings(report.savings, report.timestamps.created)
    return [f"Cost: at most {cost}: {used}{yielded}", f"Savings: {savings}"]


def estimate_block(
    estimate: Estimate, instance_type: str, now: datetime, costs: CostBasis | None = None
) -> list[Line]:
    """The same lines for a planned run."""
    rate = estimate.rate
    billed = _explain_minimum(rate.per_hour, estimate.seconds)
    savings = make_savings(estimate.cost, estimate.audio_seconds / _HOUR)
    origin = describe_origin(rate.source, rate.as_of, now)
    gpu_lines = [
        ("GPU Type", instance_type),
        ("Hourly Rate", f"${rate.per_hour.text(3)} ({origin})"),
        ("Estimated Time", f"{_format_time(estimate.seconds)}{billed}"),
        ("Estimated Cost", str(estimate.cost)),
    ]
    yields = [
        ("Chunks/Dollar", _chunks_per_dollar(estimate.chunks, estimate.cost)),
        ("$/Audio Hour", _per_audio_hour(estimate.cost, estimate.audio_seconds, "about ", "about ")),
        ("Savings", format_savings(savings, now, "about ")),
    ]
    other = costs.run_costs(seconds=estimate.seconds, chunks=estimate.chunks) if costs else None
    return _add_other_costs(gpu_lines, yields, other, costs.fixed_costs() if costs else None)


def _add_other_costs(
    gpu: list[Line], yields: list[Line], other: RunCosts | None, fixed: FixedCosts | None
) -> list[Line]:
    """Puts the costs beside the GPU's between both groups of lines.

    The host is the last line: without it, the block has the ten lines that `grep -A10` shows.
    """
    found = fixed_lines(fixed) | run_cost_lines(other)
    host = [(SCHEDULER_HOST, found.pop(SCHEDULER_HOST))] if SCHEDULER_HOST in found else []
    volume = f"; fixed costs: {describe_volume(fixed)}" if fixed and fixed.per_month_micros else ""
    summed = [(label, f"{value}{volume}" if label == "$/Audio Hour" else value) for label, value in yields]
    return [*gpu, *found.items(), *summed, *host]


def _format_time(seconds: float) -> str:
    return f"{seconds / _HOUR:.3f} hours ({seconds:.0f} s)"


def _explain_bill(gpu: Gpu) -> str:
    if gpu.was_running:
        return ""
    if any(0 < machine.seconds < MINIMUM_BILLED_SECONDS for machine in gpu.machines):
        return f", each start billed as {MINIMUM_BILLED_SECONDS} s at least"
    return "" if gpu.machines else _explain_minimum(Usd(gpu.rate_micros), gpu.seconds)


def _explain_minimum(rate: Usd, seconds: float) -> str:
    """Explains a bill above the product of rate and time, if any."""
    if not rate.micros or not 0 < seconds < MINIMUM_BILLED_SECONDS:
        return ""
    return f", billed as {MINIMUM_BILLED_SECONDS} s: the minimum of a start"


def _chunks_per_dollar(chunks: int, cost: Usd) -> str:
    each = units_per_dollar(chunks, cost)
    return "no cost" if each is None else f"~{each:.0f}"


def _per_audio_hour(cost: Usd, seconds: float, bound: str = "at most ", guess: str = "") -> str:
    """`guess`: the word for an audio length that is estimated."""
    each = cost.per(seconds / _HOUR)
    return "no audio" if each is None else f"{bound}{each}, {guess}{format_hours(seconds)} of audio"
