"""deploy/ray-cluster.yaml, by the schema in Ray's package, and what the adapter and the docs count on."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from batchscribe.core.run.instances import STOP_PATIENCE_SECONDS
from support.s3 import missing

REPOSITORY = Path(__file__).parents[2]
LABEL = "batchscribe.autoscaled"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / "deploy" / "ray-cluster.yaml").read_text())
    return loaded


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    spec = find_spec("ray")
    if spec is None or spec.origin is None:
        missing("Ray")
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"idle_timeout": 3}, schema)


def test_gpu_nodes_exist_only_while_there_is_work(config: dict[str, Any]) -> None:
    gpu = config["available_node_types"]["gpu"]
    assert (gpu["min_workers"], gpu["resources"]["GPU"]) == (0, 1)
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert config["idle_timeout_minutes"] * 60 < STOP_PATIENCE_SECONDS


def test_gpu_nodes_have_the_label_by_which_the_stop_is_verified(config: dict[str, Any]) -> None:
    adapter = (REPOSITORY / "src" / "batchscribe" / "adapters" / "ray" / "capacity.py").read_text()
    assert f'AUTOSCALED = "{LABEL}"' in adapter
    assert config["available_node_types"]["gpu"]["labels"] == {LABEL: "true"}
    assert f"--labels={LABEL}=true" in config["worker_start_ray_commands"][-1]


def test_every_node_asks_for_the_token(config: dict[str, Any]) -> None:
    starts = [config[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker")]
    assert all("RAY_AUTH_MODE=token" in start for start in starts)
