"""`fourfold doctor` and `fourfold config show`."""

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fourfold.cli import machine  # noqa: F401  # adds its commands
from fourfold.cli.app import app
from fourfold.compose.doctor import Verdict, examine
from fourfold.config import Settings


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout


def test_every_setting_is_shown_with_its_origin_and_secrets_as_stars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in force, and why."""
    file = tmp_path / "fourfold.toml"
    file.write_text("[worker]\nauth_token = 'hush'\nthreads = 1\n")
    monkeypatch.setenv("FOURFOLD_GATEWAY__PORT", "7")

    status, text = run("config", "show", "--origin", "--config", str(file))
    rows = json.loads(run("config", "show", "--origin", "--json", "--config", str(file))[1])

    assert status == 0 and "hush" not in text and "hush" not in json.dumps(rows)
    assert rows["gateway.port"] == {"value": 7, "origin": "environment FOURFOLD_GATEWAY__PORT"}
    assert rows["worker.threads"] == {"value": 1, "origin": f"file {file}"}
    assert rows["gateway.limits.steps"] == {"value": 150, "origin": "default"}


def test_the_doctor_looks_at_everything(tmp_path: Path) -> None:
    """And finds this machine fit."""
    file = tmp_path / "fourfold.toml"
    file.write_text(f"data_dir = '{tmp_path}'\n[gateway]\nport = 0\n[orchestrator]\nport = 0\n")

    status, text = run("doctor", "--json", "--config", str(file))

    rows = {row["subject"]: row["verdict"] for row in json.loads(text)}
    subjects = {"python", "cores", "bf16", "memory", "gateway's port", "disk", "fourfold/realesrgan-x4plus"}
    assert status == 0 and subjects <= set(rows)
    assert "fail" not in rows.values()
    assert "python" in run("doctor", "--config", str(file))[1]


def test_the_doctor_tells_what_is_wrong_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A taken port, too many threads, too large a budget, missing weights."""
    monkeypatch.setattr("fourfold.engine.weights.metadata.files", lambda _name: [])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings.model_validate(
            {
                "data_dir": tmp_path,
                "gateway": {"port": taken.getsockname()[1]},
                "worker": {"threads": 999, "memory_bytes": 2**50},
            }
        )
        found = {finding.subject: finding for finding in examine(settings)}

    assert found["gateway's port"].verdict is Verdict.WARN
    assert found["cores"].verdict is Verdict.WARN
    assert found["memory"].verdict is Verdict.FAIL
    assert found["fourfold/realesrgan-x4plus"].verdict is Verdict.FAIL
    assert found["fourfold/lanczos"].verdict is Verdict.OK
    assert all(f.advice for f in found.values() if f.verdict is not Verdict.OK)


def test_a_small_budget_is_told_by_model(tmp_path: Path) -> None:
    """Before a job fails for it."""
    settings = Settings.model_validate({"data_dir": tmp_path, "worker": {"memory_bytes": 2**28}})

    subjects = {finding.subject for finding in examine(settings)}

    assert "memory for fourfold/realesrgan-x4plus" in subjects
