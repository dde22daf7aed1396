"""The files under ops/ in a real Prometheus that watches a real network."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from fourfold.testing.pictures import png
from fourfold.testing.processes import Running
from fourfold.testing.running_network import FAST_MODEL, SLOW_MODEL, post, running_network, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "ops"
RULES = [
    rule for group in yaml.safe_load((OPS / "prometheus/rules.yml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
BOARD = json.loads((OPS / "grafana/dashboards/fourfold.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
COMMAND_S = 60


def tool(name: str) -> str:
    """Return the path of a program of Prometheus; skip where it is not."""
    unpacked = ROOT / ".venvs/prometheus/usr/bin" / name
    found = shutil.which(name) or (str(unpacked) if unpacked.exists() else None)
    if found is None:
        pytest.skip(f"{name} is not here: scripts/system.sh, which `make test` runs")
    return found


def promtool(*arguments: str, stdin: str = "") -> str:
    """Run promtool in the folder of the rules; fail with what it says."""
    command = [tool("promtool"), *arguments]
    done = subprocess.run(
        command, input=stdin, cwd=OPS / "prometheus", capture_output=True, text=True, timeout=COMMAND_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_rules_and_the_scrape_configuration_are_prometheus_own() -> None:
    """As promtool reads them, linted."""
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yml")
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")


def test_every_alert_fires_and_stays_silent_when_it_should() -> None:
    """By the unit tests of promtool; each alert has one of either kind."""
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")
    cases = [
        (case["alertname"], bool(case["exp_alerts"]))
        for test in yaml.safe_load((OPS / "prometheus/rules_test.yml").read_text())["tests"]
        for case in test.get("alert_rule_test", [])
    ]
    assert {(rule["alert"], fires) for rule in ALERTS for fires in (True, False)} == set(cases)


@dataclass(frozen=True)
class Watched:
    """A network, and the Prometheus that watches it."""

    network: Running
    api: str

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of Prometheus' HTTP API."""
        reply = httpx2.get(f"{self.api}/api/v1/{path}", params=parameters)
        assert reply.status_code == 200, reply.text
        return reply.json()["data"]

    def now(self, expr: str) -> list[dict[str, Any]]:
        """Return the series that *expr* gives now."""
        return list(self.ask("query", query=expr)["result"])


def is_answered(url: str) -> bool:
    """Whether anything but an error is at *url*."""
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Run the sample configuration, at the network's ports and faster; let the network do a little of everything."""
    prometheus, folder = tool("prometheus"), tmp_path_factory.mktemp("monitoring")
    with running_network(folder) as network:
        gateway, orchestrator = (network.ready[role].partition("://")[2] for role in ("gateway", "orchestrator"))
        text = (OPS / "prometheus/prometheus.yml").read_text()
        text = text.replace("127.0.0.1:9935", gateway).replace("127.0.0.1:8935", orchestrator).replace("15s", "200ms")
        settings = yaml.safe_load(text)
        settings["rule_files"] = [str(OPS / "prometheus/rules.yml")]
        verified = {**settings["scrape_configs"][1], "job_name": "verified"}
        verified["tls_config"] = {"ca_file": str(folder / "data/orchestrator/tls/certificate.pem")}
        settings["scrape_configs"].append(verified)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
        with (folder / "prometheus.log").open("wb") as log:
            process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            watched = Watched(network, f"http://{address}")
            wait_until(lambda: is_answered(f"{watched.api}/-/ready"))
            wait_until(lambda: len(watched.now("up == 1")) == 4)
            for times in (1, 2):  # a rate needs to see a series grow
                _use(network.ready["gateway"])
                done = f'fourfold_jobs_total{{role="worker", outcome="succeeded"}} == {times}'
                wait_until(lambda done=done: bool(watched.now(done)))
            yield watched
        finally:
            process.terminate()
            process.wait(COMMAND_S)


def _use(gateway: str) -> None:
    """A picture, a damaged one, and a model that its client made up."""
    assert post(gateway, png(24, 16)).status_code == 200
    assert post(gateway, png()[:60]).status_code == 400
    assert post(gateway, png(), model_id=f"made-up/{os.urandom(4).hex()}").status_code == 400


def test_every_role_is_scraped(watched: Watched) -> None:
    """The orchestrator by HTTPS, its certificate verified, too; its own worker through it."""
    up = {series["metric"]["job"] for series in watched.now("up == 1")}
    roles = {series["metric"]["role"] for series in watched.now("fourfold_build_info")}

    assert up == {"fourfold-gateway", "fourfold-orchestrator", "fourfold-own-worker", "verified"}
    assert roles == {"gateway", "orchestrator", "worker"}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_shows_something(watched: Watched, panel: dict[str, Any]) -> None:
    """Each of its queries, with the board's variables filled in as Grafana does."""
    values = {"$__rate_interval": "1m", "$instance": ".*", "$model": ".*"}
    for target in panel["targets"]:
        expr = target["expr"]
        for name, value in values.items():
            expr = expr.replace(name, value)
        found = watched.now(expr)

        assert found, expr
        labels = {label for label in target["legendFormat"].replace("}}", "{{").split("{{")[1::2]}
        assert all(labels <= set(series["metric"]) for series in found), expr


def test_every_rule_is_evaluated_without_an_error(watched: Watched) -> None:
    """All of them, on the network's real series; of the alerts none is raised by a healthy one."""

    def states() -> list[dict[str, Any]]:
        return [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] != "unknown" for rule in states()))

    assert len(states()) == len(RULES)
    assert [rule for rule in states() if rule["health"] != "ok" or rule.get("lastError")] == []
    assert [rule["name"] for rule in states() if rule.get("state") == "firing"] == []
    for rule in RULES:
        if "record" in rule:
            assert watched.now(rule["record"]), rule["record"]


def test_no_label_holds_what_a_client_wrote(watched: Watched) -> None:
    """Of models only those on sale, and "" where none was settled."""
    assert set(watched.ask("label/model_id/values")) == {FAST_MODEL, SLOW_MODEL}
    names = set(watched.ask("labels")) - {"__name__", "job", "instance"}
    assert names <= {"role", "model_id", "outcome", "code", "blame", "stage", "process", "state", "version", "le"} | {
        "alertname",
        "alertstate",
        "severity",
    }


def test_promtool_finds_nothing_wrong_with_the_pages(watched: Watched) -> None:
    """Names, types and help, of each role."""
    network = watched.network
    for url in (
        f"{network.ready['gateway']}/metrics",
        f"{network.ready['orchestrator']}/metrics",
        f"{network.ready['orchestrator']}/metrics/worker",
    ):
        page = httpx2.get(url, verify=False).text
        assert "fourfold_" in page
        promtool("check", "metrics", stdin=page)
