"""compose.yaml: what the Compose specification allows, safe, and its three services a network."""

import json
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from fourfold import __version__
from fourfold.config import GatewaySettings, OrchestratorSettings, WorkerSettings
from fourfold.testing.pictures import png, png_size

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
ROLES = {"gateway": GatewaySettings, "orchestrator": OrchestratorSettings, "worker": WorkerSettings}


def read(text: str) -> compose_spec.PyCompose:
    """Read *text* as the Compose specification has it; the shell's variables at their defaults."""
    options = compose_spec.PyOptions()
    options.apply_merge = True
    compose = options.from_yaml(re.sub(r"\$\{\w+:-([\w.]+)\}", r"\1", text))
    compose.validate()
    return compose


def test_it_is_what_the_specification_allows() -> None:
    """Every key and type, and that what a service uses is declared."""
    assert set(read(TEXT).service_names()) == set(ROLES)
    declared = set(yaml.safe_load(TEXT)["volumes"])
    assert {v.partition(":")[0] for s in SERVICES.values() for v in s["volumes"] if v[0] != "."} == declared


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("read_only", "read_onli"), ("pids_limit: 512", "pids_limit: few"), ("networks: [works]", "networks: [shop]")],
)
def test_the_check_finds_what_is_wrong(right: str, wrong: str) -> None:
    """Else it would be none."""
    with pytest.raises(ValueError, match=wrong.rpartition(": ")[2].strip("[]")):
        read(TEXT.replace(right, wrong))


def test_the_linter_finds_nothing() -> None:
    """But that the image has no digest, which only a registry gives it."""
    lint = Path(sys.executable).with_name("compose-lint")
    command = [lint, "check", "--format", "json", "compose.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    findings = json.loads(done.stdout)["findings"]
    assert {finding["rule_id"] for finding in findings} == {"CL-0019"}


@pytest.mark.parametrize("role", ROLES)
def test_each_service_may_do_little_and_has_time_to_drain(role: str) -> None:
    """Read-only, no capabilities, no root; killed only after its own patience is over."""
    service = SERVICES[role]

    assert service["read_only"] and service["init"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"] and "user" not in service
    assert service["image"] == f"fourfold:{__version__}"
    assert int(service["stop_grace_period"].removesuffix("s")) > ROLES[role]().drain_s + 10
    assert service["healthcheck"]["test"] == ["CMD", "fourfold", "health", role]
    assert [port.rsplit(":", 2)[0] for port in service.get("ports", [])] == ["127.0.0.1"] * (role == "gateway")


def test_the_services_are_a_network(image, run_container, tmp_path: Path) -> None:
    """Each by its own command, variables, files and health check; they find each other by their names."""
    hosts = tmp_path / "hosts"
    hosts.write_text("".join(f"127.0.0.1 {name}\n" for name in ("localhost", *ROLES)))
    with ExitStack() as stack:
        containers: dict[str, Any] = {}
        for role in ("worker", "orchestrator", "gateway"):
            service = SERVICES[role]
            files = {"/etc/hosts": hosts}
            for source, target, mode in (v.split(":") for v in service["volumes"] if v.startswith("./")):
                assert mode == "ro"
                files[target] = ROOT / source
            containers[role] = stack.enter_context(
                run_container(
                    image,
                    tmp_path / role,
                    service["command"],
                    environ={**service.get("environment", {}), "FOURFOLD_WORKER__THREADS": "1"},
                    files=files,
                    network_of=containers.get("worker"),
                )
            )
        for role, container in containers.items():
            container.wait_healthy(*SERVICES[role]["healthcheck"]["test"][1:])
        gateway = containers["gateway"]
        (tmp_path / "gateway/data/in.png").write_bytes(png(24, 16))
        line = "fourfold upscale /data/in.png -o /data/out.png --json --model fourfold/lanczos --gateway http://gateway:9935"
        made = gateway.exec(*shlex.split(line))
        assert made.returncode == 0, made.stderr
        assert '"url": "http://gateway:9935/stream/' in made.stdout  # under the address that the client used
        assert png_size((tmp_path / "gateway/data/out.png").read_bytes()) == (96, 64)

        # As `docker compose stop` does: those that depend on others first.
        statuses = {role: containers[role].stop(45) for role in ("gateway", "orchestrator", "worker")}

    assert statuses == dict.fromkeys(ROLES, 0)
