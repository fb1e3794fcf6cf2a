"""The dashboard and the alerts ask for metrics, labels and reasons that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane import events
from controlplane.lifecycle.history import EVICTIONS
from controlplane.observability.metrics import Metrics
from tests.unit.test_metrics import Memory, finish, view, waiting

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/modelmora.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((DEPLOY / "prometheus/modelmora.yml").read_text(encoding="utf-8"))
# Prometheus' own: of the scrape, and of histograms.
THEIR_NAMES = {"up"}
THEIR_LABELS = {"job", "instance", "le"}

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = {
    **{
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in PANELS
        for target in panel["targets"]
    },
    **{rule["alert"]: rule["expr"] for group in RULES["groups"] for rule in group["rules"]},
    **{each["name"]: each["expr"] for each in DASHBOARD["annotations"]["list"]},
    "variable model": DASHBOARD["templating"]["list"][1]["query"]["query"],
}


def exposed() -> dict[str, set[str]]:
    """Names of samples and their labels, with something of everything in them."""
    bus, memory = events.EventBus(), Memory()
    metrics = Metrics(bus, memory, version="9.9")
    told: dict[str, Any] = {"model_id": "a/b", "version": "main"}
    bus.publish(events.ModelLoaded(memory_mb=1, load_seconds=1, **told))
    bus.publish(events.ModelHealthChanged(previous_state="loaded", new_state="unhealthy", **told))
    bus.publish(events.ModelLoaded(memory_mb=1, load_seconds=1, **told))
    bus.publish(events.ModelUnloaded(reason="manual", uptime_seconds=1, **told))
    bus.publish(events.ModelLoadFailed(error_message="x", **told))
    bus.publish(events.TritonRestored())
    finish(bus, status="error", error_code="INFERENCE_FAILED")
    memory.views = (view("a/b", last_used_at=events.utc_now()),)
    memory.queue = (waiting("a/b", 1),)
    found: dict[str, set[str]] = {}
    for line in metrics.text().decode().splitlines():
        if sample := re.match(r"(\w+)(?:\{(.*)\})? ", line):
            labels = set(re.findall(r'(\w+)="', sample[2] or ""))
            found.setdefault(sample[1], set()).update(labels)
    return found


EXPOSED = exposed()


def test_there_is_something_to_check() -> None:
    assert len(PANELS) > 15
    assert len(RULES["groups"][0]["rules"]) >= 9


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_metrics_exist(name: str) -> None:
    used = set(re.findall(r"\b(modelmora_\w+)", EXPRESSIONS[name]))
    assert used or "up{" in EXPRESSIONS[name]
    assert used - EXPOSED.keys() == set()


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_labels_exist(name: str) -> None:
    expression = EXPRESSIONS[name]
    for metric, selector in re.findall(r"\b(\w+)\{([^}]*)\}", expression):
        known = THEIR_LABELS if metric in THEIR_NAMES else EXPOSED[metric] | THEIR_LABELS
        assert set(re.findall(r"(\w+)\s*[=!]~?=?\s*\"", selector)) <= known
    labels = {label for metric in EXPOSED.values() for label in metric} | THEIR_LABELS
    for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {label.strip() for label in grouped.split(",")} <= labels
    legends = re.findall(r"\$labels\.(\w+)", json.dumps(RULES))
    assert set(legends) <= labels


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_brackets_are_balanced(name: str) -> None:
    text, pairs = EXPRESSIONS[name], {")": "(", "]": "[", "}": "{"}
    opened: list[str] = []
    for char in re.sub(r'"[^"]*"', '""', text):
        if char in pairs.values():
            opened.append(char)
        elif char in pairs:
            assert opened.pop() == pairs[char]
    assert opened == []


def test_reasons_that_alerts_name_exist() -> None:
    (alert,) = (r for r in RULES["groups"][0]["rules"] if r["alert"] == "ModelMoraThrashing")
    (named,) = re.findall(r'reason=~"([^"]*)"', alert["expr"])
    assert set(named.split("|")) <= EVICTIONS


def test_every_alert_is_explained() -> None:
    page = (DEPLOY.parent / "docs/observability.md").read_text(encoding="utf-8")
    alerts = [rule["alert"] for group in RULES["groups"] for rule in group["rules"]]
    assert [alert for alert in alerts if f"`{alert}`" not in page] == []


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_metric_is_documented() -> None:
    page = (DEPLOY.parent / "docs/observability.md").read_text(encoding="utf-8")
    ours = {name for name in EXPOSED if name.startswith("modelmora_")}
    bases = {re.sub(r"_(bucket|sum|count|created|info)$", "", name) for name in ours}
    documented = set(re.findall(r"^\| `(modelmora_\w+)` \|", page, re.MULTILINE))
    created = {name for name in bases if f"{name}_total" in bases}  # of a counter's birth
    assert bases - created == {name.removesuffix("_info") for name in documented}
