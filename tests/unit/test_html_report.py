"""The report as HTML: its numbers, its plots, and untrusted values."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscribe.cli.app import App
from batchscribe.cli.report import report
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.observation import Policy
from batchscribe.core.run.manifest import EngineTimeSummary
from batchscribe.core.run.period import period_of
from batchscribe.core.run.report import QueueSample
from batchscribe.core.run.runs import Run, RunState
from batchscribe.core.run.session_costs import SessionShare
from batchscribe.core.run.usage import make_history
from batchscribe.dashboard.pages import render_page
from batchscribe.dashboard.plots import MOST_BARS, MOST_POINTS, Plot
from batchscribe.dashboard.report import MOST_ROWS, make_values
from batchscribe.ledger import FILE_NAME, Ledger
from batchscribe.settings import load
from support.ledgers import make_days, settled_run
from support.values import NOW

DAY = timedelta(days=1)
LIMIT = timedelta(hours=24)
NAME = "20261123-120000-abcdef"


def make(
    runs: Sequence[Run], samples: Sequence[QueueSample] = (), until: datetime = NOW + 7 * DAY
) -> dict[str, object]:
    history = make_history(samples, runs, Policy())
    return make_values(period_of(runs, NOW, until, history=history), samples, LIMIT)


def plots_of(values: dict[str, object]) -> dict[str, Plot]:
    plots: list[Plot] = values["plots"]  # type: ignore[assignment]
    return {plot["title"]: plot for plot in plots}


def shown(values: dict[str, object]) -> str:
    return " ".join(
        re.sub(
            r"<script.*?</script>|<style.*?</style>|<[^>]*>", " ", page_of(values), flags=re.DOTALL
        ).split()
    )


def page_of(values: dict[str, object]) -> str:
    return render_page("report.html", "file", **values)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 500), st.booleans()), max_size=8))
def test_the_components_of_each_day_add_up_to_its_cost(rows: list[tuple[int, int, bool]]) -> None:
    runs = [
        settled_run(
            f"r{n}",
            NOW + hours * timedelta(hours=1),
            chunks,
            **({} if measured else {"worked": EngineTimeSummary()}),
        )
        for n, (hours, chunks, measured) in enumerate(rows)
    ]
    period = period_of(runs, NOW, NOW + 4 * DAY)
    assert all(sum(day.cost_parts_micros.values()) == day.cost_micros for day in period.days)
    assert sum(day.cost_micros for day in period.days) == period.totals.cost_micros


def test_the_plot_of_costs_has_each_component_of_the_day() -> None:
    run = settled_run(NAME, NOW + timedelta(hours=1), 100)
    plot = plots_of(make([run]))["Dollars per day, by component"]
    row = plot["labels"].index("2026-11-23")
    parts = {each["name"]: each["values"][row] for each in plot["series"]}
    assert set(parts) == {"GPU: boot", "GPU: model load", "GPU: work", "GPU: idle"}
    assert sum(filter(None, parts.values())) == pytest.approx(run.cost.dollars)


def test_an_empty_period_has_no_plot_and_one_sentence() -> None:
    values = make([])
    assert values["plots"] == []
    assert "No run was settled in this period, and none is open." in shown(values)


def test_one_run_is_shown_without_lines_of_one_point() -> None:
    values = make([settled_run(NAME, NOW, 3)])
    assert set(plots_of(values)) == {"Dollars per day, by component", "Dollars for the same audio"}
    assert NAME in shown(values)


def test_a_loss_is_shown_and_nothing_is_summed() -> None:
    text = shown(make([settled_run(NAME, NOW, 1)]))
    assert "Savings, at least -$" in text
    assert "Against an always-on GPU (upper bound)" in text
    assert re.search(r"Against Groq, Whisper large-v3-turbo \$\S+ \S+ -\$", text)
    assert "total savings" not in text.lower()


def test_an_unknown_baseline_is_no_number() -> None:
    text = shown(make([settled_run(NAME, NOW, 1)]))
    assert "Against one start per arrival – – – unknown: no arrivals recorded" in text


def test_a_year_stays_small() -> None:
    found = list(make_days(NOW, 365))
    runs = [each for each in found if isinstance(each, Run)]
    samples = [each for each in found if isinstance(each, QueueSample)]
    values = make_values(period_of(runs, NOW, NOW + 365 * DAY), samples, LIMIT)
    plots = plots_of(values)
    assert len(plots["Dollars per 4 days, by component"]["x"]) <= MOST_BARS
    assert len(plots["Backlog"]["x"]) <= MOST_POINTS
    assert max(filter(None, plots["Backlog"]["series"][0]["values"])) == max(
        [*(each.pending for each in samples), *(run.chunks_done for run in runs)]
    )
    assert len(values["runs"]) == MOST_ROWS
    assert f"The newest {MOST_ROWS} of {len(runs)}" in shown(values)


def test_values_of_records_are_escaped() -> None:
    hostile = '</script><img src=x onerror=alert(1)>"\u202e\x07' + "x" * 10_000
    run = settled_run(NAME, NOW, 2, instance_type=hostile, rate=Rate(per_hour=Usd(1), source=hostile))
    page = page_of(make([run, settled_run("r2", NOW + DAY, 2)]))
    assert "<img" not in page
    assert "\u202e" not in page
    assert "\x07" not in page
    specs = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert all(json.loads(spec)["series"] for spec in specs)


def test_an_open_run_is_listed_without_a_cost_by_component() -> None:
    run = replace(settled_run(NAME, NOW, 2), state=RunState.TRANSCRIBING, settled=None, outcome=None)
    values = make([run])
    assert "transcribing" in shown(values)
    assert "Dollars per day, by component" not in plots_of(values)


def test_sessions_are_listed_with_their_part_of_the_bills() -> None:
    share = SessionShare(
        run=NAME,
        session="<b>monday/",
        chunks=2,
        audio_seconds=120.0,
        cost_micros=12_000,
        waited_seconds=7200.0,
        longest_seconds=5400.0,
        late=1,
    )
    period = period_of([settled_run(NAME, NOW, 2)], NOW, NOW + DAY, shares=[share])
    text = shown(make_values(period, (), LIMIT))
    assert "&lt;b&gt;monday/ 1 2 0:02:00 $0.0120 $0.36 1.00 h 1.50 h 1" in text


def call(folder: Path, *arguments: str) -> tuple[int, str]:
    app = App()
    app.__dict__["settings"] = load({}, folder=folder)
    result = CliRunner().invoke(report, [*arguments], obj=app)
    return result.exit_code, result.output + (str(result.exception) if result.exception else "")


def test_the_command_writes_one_file_or_stdout(tmp_path: Path) -> None:
    with Ledger(tmp_path / ".batchscribe" / FILE_NAME) as ledger:
        ledger.save_run(settled_run(NAME, NOW, 3), at=NOW)
    file = tmp_path / "report.html"
    code, output = call(tmp_path, "--last", "9999w", "--format", "html", "-o", str(file))
    assert (code, output) == (0, f"wrote {file}, {file.stat().st_size / 1000:.1f} kB\n")
    assert NAME in file.read_text()
    assert call(tmp_path, "--last", "9999w", "--format", "html")[1].startswith("<!doctype html>")


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    code, output = call(tmp_path, "--format", "csv", "-o", str(tmp_path / "no" / "file.csv"))
    assert code == 1
    assert "the file was not written" in output


def test_a_table_is_for_a_terminal(tmp_path: Path) -> None:
    code, output = call(tmp_path, "-o", str(tmp_path / "file"))
    assert code == 2
    assert "--format html, csv or json" in output
