"""Dashboard and alerts ask for metrics that a run exports, and ports that pods really have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dopsd.kuberay.pods import HEAD_PORTS, PORTS
from dopsd.library.report.gauges import LibraryGauges
from dopsd.run_folder.trackers import RayMetrics
from tests.deploy.policy import violations
from tests.helpers.paths import ROOT

FOLDER = ROOT / "cluster" / "monitoring"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Labels of each metric, by its name in Prometheus."""
    found: dict[str, set[str]] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] = ()) -> None:
            found[f"ray_{name}"] = set(tag_keys)

    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    RayMetrics()
    LibraryGauges()
    return found


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
    return [rule for group in document["spec"]["groups"] for rule in group["rules"]]


def test_every_query_names_a_metric_that_a_run_exports(exported: dict[str, set[str]]) -> None:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    asked = [
        (target["expr"], target["legendFormat"])
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    asked += [(rule["expr"], rule["annotations"]["summary"]) for rule in rules()]
    asked += [(v["query"], "") for v in dashboard["templating"]["list"] if v["type"] == "query"]
    seen = set()
    for expression, shown in asked:
        (name,) = set(re.findall(r"\bray_[a-z_]+\b", expression)) - {"ray_io_cluster"}
        assert name in exported, expression
        seen.add(name)
        labels = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", shown))
        assert labels <= exported[name] | {"ray_io_cluster"}, shown
    assert seen == exported.keys(), "everything a run exports is shown"


def test_panels_do_not_lie_on_each_other() -> None:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}
    assert len(places) == len({p["id"] for p in panels}) == len(panels)


def test_alerts_have_a_time_a_severity_and_a_way_on() -> None:
    for rule in rules():
        assert re.fullmatch(r"\d+m", rule["for"]) and rule["labels"]["severity"]
        assert rule["annotations"]["description"]


def test_the_monitor_knows_every_port_of_metrics() -> None:
    (monitor,) = yaml.safe_load_all((FOLDER / "podmonitor.yaml").read_text())
    ports = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    assert ports == {name for name in HEAD_PORTS if "metrics" in name} and PORTS.keys() <= ports
    labels = {
        label.replace(".", "_").replace("/", "_") for label in monitor["spec"]["podTargetLabels"]
    }
    assert "ray_io_cluster" in labels, "by which dashboard and alerts tell runs apart"


def test_models_are_fetched_where_pods_look_for_them() -> None:
    claim, job = yaml.safe_load_all((ROOT / "cluster" / "models.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    assert violations(pod) == []
    assert claim["metadata"]["name"] == "dopsd-models"
    (container,) = pod["containers"]
    assert container["command"][-2:] == ["--to", "/cache/huggingface"]
    assert Path(container["command"][2]).is_relative_to("/etc/dopsd")
