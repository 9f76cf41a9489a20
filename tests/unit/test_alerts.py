"""Alert rules and the Grafana dashboard: they load, and name only metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from batchscribe.dashboard.metrics import METRICS, PREFIX, render_metrics
from batchscribe.ledger import FILE_NAME, Ledger
from batchscribe.settings import load
from support.ledgers import settled_run
from support.s3 import missing
from support.values import NOW

DEPLOY = resources.files("batchscribe.deploy")
RULES = Path(str(DEPLOY / "prometheus" / "rules.yml"))
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "batchscribe.json").read_text())
DATA = Path(__file__).parents[1] / "data"
NAMES = {f"{PREFIX}{each.name}" for each in METRICS}
LABELS = {f"{PREFIX}{each.name}": {*each.labels, "job"} for each in METRICS}


def list_expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


@pytest.fixture(scope="module")
def promtool() -> str:
    return shutil.which("promtool") or missing("promtool")


def run_promtool(promtool: str, *arguments: object, given: str = "") -> None:
    words = [promtool, *map(str, arguments)]
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_metrics_follow_the_rules_of_prometheus(promtool: str, tmp_path: Path) -> None:
    with Ledger(tmp_path / FILE_NAME) as ledger:
        ledger.save_run(settled_run("r1", NOW, 60), at=NOW)
        text = render_metrics(load({}, folder=tmp_path), ledger, NOW).decode()
    run_promtool(promtool, "check", "metrics", given=text)


def test_the_rules_are_valid_and_fire_when_they_should(promtool: str, tmp_path: Path) -> None:
    cases = tmp_path / "cases.yml"
    cases.write_text((DATA / "rules_test.yml").read_text().replace("NAME", str(RULES)))
    run_promtool(promtool, "check", "rules", "--lint-fatal", RULES)
    run_promtool(promtool, "test", "rules", cases)


def test_each_query_of_the_dashboard_is_valid(promtool: str, tmp_path: Path) -> None:
    rules = [{"record": f"panel:{n}", "expr": expr} for n, expr in enumerate(list_expressions())]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    run_promtool(promtool, "check", "rules", tmp_path / "rules.yml")


def test_rules_and_dashboard_name_metrics_and_labels_that_there_are() -> None:
    text = "\n".join([RULES.read_text(), *list_expressions()])
    assert set(re.findall(rf"\b{PREFIX}\w+", text)) <= NAMES
    for expr in list_expressions():
        (metric, *_) = re.findall(rf"\b{PREFIX}\w+", expr)
        used = re.findall(r"(\w+)=~?\"", expr) + re.findall(r"by \((\w+)\)", expr)
        assert set(used) <= LABELS[metric], expr


def test_each_promise_has_an_alert() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    tested = (DATA / "rules_test.yml").read_text()
    assert {
        "BatchscribeGpuNotProvedStopped",
        "BatchscribeChunkBeyondLimit",
        "BatchscribeBudgetSpent",
    } <= alerts
    assert [alert for alert in alerts if f'alertname="{alert}"' not in tested] == []


def test_the_dashboard_has_what_grafana_reads() -> None:
    """Its schema: each field survives Grafana's own models of a dashboard."""
    try:
        from grafana_foundation_sdk.cog.encoder import JSONEncoder
        from grafana_foundation_sdk.cog.plugins import register_default_plugins
        from grafana_foundation_sdk.models.dashboard import Dashboard
    except ImportError:
        missing("grafana-foundation-sdk")
    register_default_plugins()
    assert list_lost(DASHBOARD, json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))) == []


def list_lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """Paths of values that differ or are gone."""
    match given, kept:
        case dict(), dict():
            pairs = [(given[name], kept.get(name), f"{path}.{name}") for name in given]
        case list(), list() if len(given) == len(kept):
            pairs = [(a, b, f"{path}[{n}]") for n, (a, b) in enumerate(zip(given, kept, strict=True))]
        case _:
            return [] if given == kept else [path]
    return [lost for pair in pairs for lost in list_lost(*pair)]


def test_panels_do_not_overlap() -> None:
    taken = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
