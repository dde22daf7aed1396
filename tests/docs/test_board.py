"""The Grafana board under ops/: one that Grafana's own types read without a loss, of metrics that exist.

No Grafana runs here, as none can be installed from a package: that a browser draws it is not shown.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from fourfold.telemetry import Metrics

OPS = Path(__file__).resolve().parents[2] / "ops"
BOARD = json.loads((OPS / "grafana/dashboards/fourfold.json").read_text())
RULES = yaml.safe_load((OPS / "prometheus/rules.yml").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]


def lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Name what of *before* is missing or different in *after*; what *after* adds are defaults."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after[key], f"{path}/{key}") if key in after else [f"{path}/{key}"]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{path}/{number}")
    elif before != after:
        yield f"{path}: {before!r} became {after!r}"


def test_grafanas_own_types_know_every_field() -> None:
    """A misspelt option would be dropped without a word."""
    register_default_plugins()

    after = json.loads(JSONEncoder().encode(Dashboard.from_json(BOARD)))

    assert list(lost(BOARD, after)) == []


def test_every_panel_asks_the_data_source_of_the_variable() -> None:
    """Imported anywhere, whatever Prometheus is called there."""
    names = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    sources = [BOARD["templating"]["list"][1:], PANELS, *(panel["targets"] for panel in PANELS)]

    assert names["datasource"]["type"] == "datasource" and names["datasource"]["query"] == "prometheus"
    assert all(part["datasource"]["uid"] == "${datasource}" for parts in sources for part in parts)
    used = {name for expr in EXPRESSIONS for name in re.findall(r"\$(\w+)", expr)} - {"__rate_interval"}
    assert used <= set(names)


def test_panels_have_ids_of_their_own_titles_and_room() -> None:
    """None lies on another."""
    cells = [
        (x, y)
        for panel in BOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert all(panel["title"] and panel["description"] for panel in PANELS)


def test_every_metric_that_a_panel_or_a_rule_names_is_exposed() -> None:
    """By the name under which it is scraped."""
    metrics = Metrics("gateway")
    metrics.job_ended("succeeded", model_id="m")
    metrics.runs_models(["m"])
    metrics.watch_models(["m"], is_available=lambda _: True)
    metrics.observe_stage("submit", 1, model_id="m")
    metrics.watch_peers(up=lambda: 1, down=lambda: 0)
    families = text_string_to_metric_families(metrics.exposition().decode())
    exposed = {sample.name for family in families for sample in family.samples}
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    queries = [variable["query"] for variable in BOARD["templating"]["list"]]
    texts = [*EXPRESSIONS, *queries, *(rule["expr"] for rule in rules)]

    named = {name for text in texts for name in re.findall(r"(?<![\w:])fourfold_\w+", text)}
    assert named - exposed == set()
    assert {name for text in texts for name in re.findall(r"\w+:\w+:\w+", text)} <= recorded


def test_what_is_counted_is_on_the_board() -> None:
    """A metric that nobody looks at is a cost."""
    families = text_string_to_metric_families(Metrics("gateway").exposition().decode())

    assert [f.name for f in families if not any(f.name in expr for expr in EXPRESSIONS)] == []


def test_the_provisioning_files_are_grafanas() -> None:
    """Version 1, and a folder and an address to put right."""
    dashboards = yaml.safe_load((OPS / "grafana/provisioning/dashboards/fourfold.yaml").read_text())
    sources = yaml.safe_load((OPS / "grafana/provisioning/datasources/prometheus.yaml").read_text())

    assert dashboards["apiVersion"] == sources["apiVersion"] == 1
    assert dashboards["providers"][0]["type"] == "file" and dashboards["providers"][0]["options"]["path"]
    assert sources["datasources"][0]["type"] == "prometheus"
