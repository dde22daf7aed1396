"""`fourfold doctor` and `fourfold config show`."""

import asyncio
import json
import shutil
import socket
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from fourfold.cli import machine  # noqa: F401  # adds its commands
from fourfold.cli.app import app
from fourfold.compose.doctor import Verdict, _bf16, _disk, _gpu, _offers, examine
from fourfold.compose.network import run_up
from fourfold.config import Settings
from fourfold.errors import ConfigError


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


def test_a_port_that_is_taken_is_told_with_the_flag_that_changes_it(tmp_path: Path) -> None:
    """`up` has one for each role."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for flag, ports in (("--port", (port, 0)), ("--orchestrator-port", (0, port))):
            settings = Settings.model_validate(
                {"data_dir": tmp_path, "gateway": {"port": ports[0]}, "orchestrator": {"port": ports[1]}}
            )
            with pytest.raises(ConfigError, match=f"{port}: .*choose another with {flag}, 0 takes"):
                asyncio.run(run_up(settings, asyncio.Event()))


@pytest.mark.parametrize(
    ("device", "tool", "torch", "expected"),
    [
        ("auto", None, None, {"gpu": Verdict.OK}),
        ("cuda:0", None, "2.13.0", {"gpu": Verdict.FAIL}),
        ("auto", "NVIDIA H100, 81559, 81000", "2.13.0+cu129", {"torch": Verdict.OK, "gpu 0": Verdict.OK}),
        ("auto", "NVIDIA H100, 81559, 81000", "2.13.0+cpu", {"torch": Verdict.WARN, "gpu 0": Verdict.OK}),
        ("auto", "NVIDIA H100, 81559, 81000", None, {"torch": Verdict.WARN, "gpu 0": Verdict.OK}),
        ("cuda", "NVIDIA H100, 81559, 81000", None, {"torch": Verdict.FAIL, "gpu 0": Verdict.OK}),
        (
            "cuda:1",
            "NVIDIA H100, 81559, 81000",
            "2.13.0",
            {"torch": Verdict.OK, "gpu": Verdict.FAIL, "gpu 0": Verdict.OK},
        ),
        ("auto", "NVIDIA T400, 2048, 2000", "2.13.0", {"torch": Verdict.OK, "gpu 0": Verdict.WARN}),
        ("auto", "garbage", "2.13.0", {"torch": Verdict.OK, "gpu 0": Verdict.WARN}),
        ("auto", "", "2.13.0", {"gpu": Verdict.WARN}),
    ],
)
def test_a_gpu_is_looked_at_together_with_what_would_use_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    tool: str | None,
    torch: str | None,
    expected: dict[str, Verdict],
) -> None:
    """The driver's own program says what is there; a stand-in of it does here."""
    if tool is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\n" + (f"echo '{tool}'\n" if tool else "exit 9\n"))
        program.chmod(0o755)

    def version(name: str) -> str:
        if torch is None:
            raise metadata.PackageNotFoundError(name)
        return torch

    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / name) if tool is not None else None)
    monkeypatch.setattr("fourfold.compose.doctor.metadata.version", version)
    found = list(_gpu(device))

    assert {finding.subject: finding.verdict for finding in found} == expected
    assert all(finding.advice for finding in found if finding.verdict is not Verdict.OK)


@pytest.mark.parametrize("folder", ["/proc/nowhere", "file/below", "file"])
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, folder: str) -> None:
    """By trying, as root may write everywhere and cannot."""
    (tmp_path / "file").touch()
    disk = _disk(tmp_path / folder)

    assert disk.verdict is Verdict.FAIL and "cannot be written: " in disk.found


def test_a_folder_that_nobody_may_look_into_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finding, not a traceback."""

    def refused(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refused)

    assert _disk(tmp_path / "below").found.endswith("cannot be written: Permission denied")


def test_little_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a result is lost."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**29))

    assert (_disk(tmp_path).verdict, "0.5 GiB free" in _disk(tmp_path).found) == (Verdict.WARN, True)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_the_number_type_is_told(monkeypatch: pytest.MonkeyPatch, has_bf16: bool) -> None:
    """Neither is a fault."""
    monkeypatch.setattr("fourfold.compose.doctor.has_bf16", lambda: has_bf16)

    finding = _bf16()

    assert finding.verdict is Verdict.OK and ("twice as fast" in finding.found) is has_bf16


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"orchestrator": {"models": "nowhere.json"}}, "nowhere.json"),
        ({"worker": {"models": ["no/such"]}}, "no/such"),
        ({"worker": {"model_paths": {"fourfold/lanczos": "/x"}}}, "'fourfold/lanczos' takes no folder"),
        ({"worker": {"model_paths": {"stability/typo": "/x"}}}, "stabilityai/stable-diffusion-x4-upscaler does"),
        ({"worker": {"pipeline": "text-to-image"}}, "text-to-image"),
    ],
)
def test_what_is_to_be_sold_is_checked(settings: dict[str, object], words: str) -> None:
    """What a role would refuse at its start."""
    (models,) = _offers(Settings.model_validate(settings))

    assert models.verdict is Verdict.FAIL and words in models.found


def test_what_is_sold_and_cannot_be_loaded_yet_is_told(tmp_path: Path) -> None:
    """By entry of the file, with the reason; nothing else suffers by it."""
    model_id = "stabilityai/stable-diffusion-x4-upscaler"
    entries = [{"pipeline": "upscale", "model_id": model_id, "path": str(tmp_path / "nothing")}]
    entries.append({"pipeline": "upscale", "model_id": "fourfold/lanczos"})
    (tmp_path / "m.json").write_text(json.dumps(entries))

    sold, missing = _offers(Settings.model_validate({"orchestrator": {"models": tmp_path / "m.json"}}))

    assert (sold.verdict, sold.found) == (Verdict.OK, "1 on sale: fourfold/lanczos")
    assert (missing.subject, missing.verdict) == (model_id, Verdict.WARN)
    assert "nothing does not exist" in missing.found or "not installed" in missing.found


@pytest.mark.parametrize(("typed", "offered"), [("fourfold do", "doctor"), ("fourfold doctor --js", "--json")])
def test_the_shell_completes_commands_and_options(typed: str, offered: str) -> None:
    """By typer's own completion, as bash asks for it."""
    asked = {"_FOURFOLD_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}

    done = CliRunner().invoke(app, env=asked, prog_name="fourfold")

    assert done.stdout.split() == [offered]


def test_a_small_budget_is_told_by_model(tmp_path: Path) -> None:
    """Before a job fails for it."""
    settings = Settings.model_validate({"data_dir": tmp_path, "worker": {"memory_bytes": 2**28}})

    subjects = {finding.subject for finding in examine(settings)}

    assert "memory for fourfold/realesrgan-x4plus" in subjects
