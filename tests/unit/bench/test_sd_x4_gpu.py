"""The GPU benchmark's own logic, which runs where nobody can mend it: failing parts, partial results, verdicts."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[3] / "bench"

#: A part that finds something, then breaks; one that is well; one that never ends.
PARTS = """
import sys, threading
part = sys.argv[sys.argv.index("--part") + 1]
print("@@ {\\"load_from_disk_s\\": 4.0}", flush=True)
if part == "start":
    raise RuntimeError("the GPU is on fire")
if part == "strict":
    threading.Event().wait()
print("seen by people only")
print("@@ {\\"seconds\\": 0.7, \\"peak\\": {\\"allocated_bytes\\": 2147483648}}")
"""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark with parts of our own, and a model that is there."""
    module = load("sd_x4_gpu")
    script = tmp_path / "parts.py"
    script.write_text(PARTS)
    (tmp_path / "model_index.json").touch()
    monkeypatch.setattr(module, "PARTS_SCRIPT", script)
    monkeypatch.setattr(module, "machine", lambda options: {"gpu": "none"})
    for name in ("TORCHINDUCTOR_CACHE_DIR", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "told")
    return module


def options(folder: Path, **told: Any) -> argparse.Namespace:
    usual = {"folder": folder, "json": folder / "r.json", "part": None, "seconds": None}
    return argparse.Namespace(**usual | {"eager": False, "cpu_smoke": True} | told)


def test_a_part_that_fails_is_told_with_what_it_found_and_the_others_go_on(
    bench: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status = bench.measure(options(tmp_path, part=["start", "decode"]))
    told = capfd.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())

    assert status == 1
    assert report["parts"]["start"]["load_from_disk_s"] == 4.0
    assert "the GPU is on fire" in report["parts"]["start"]["failed"]
    assert report["parts"]["decode"]["seconds"] == 0.7
    lines = {line["what"]: line["met"] for line in report["goals"]}
    assert lines["load from disk, s"] is True
    assert lines["512 -> 2048, decode, s"] is False
    assert lines["512 -> 2048, decode, GiB"] is True
    assert lines["first answer while compiling, s"] is None
    assert "NOT MET" in told and "not measured" in told and "seen by people only" in told
    assert json.loads(told.splitlines()[-1])["goals"] == report["goals"]


def test_a_part_without_time_is_not_begun_one_that_overruns_is_ended_and_what_is_done_is_kept(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "PART_TO_SECONDS", {"decode": 0, "strict": 0, "memory": 1000})
    bench.measure(options(tmp_path, part=["decode"]))
    assert bench.measure(options(tmp_path, seconds=0.5)) == 1
    parts = json.loads((tmp_path / "r.json").read_text())["parts"]
    assert "too long" in parts["strict"]["failed"]
    assert "memory" not in parts

    monkeypatch.setattr(bench, "run_part", lambda name, *_, **__: {"took_s": 1.0, "again": name})
    bench.measure(options(tmp_path))
    parts = json.loads((tmp_path / "r.json").read_text())["parts"]
    assert ["again" in parts[name] for name in ("decode", "strict", "memory")] == [False, True, True]


@pytest.mark.parametrize(("held_gib", "runs"), [(20, False), (25, True)])
def test_the_other_allocator_is_tried_where_memory_did_not_suffice(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_gib: int, runs: bool
) -> None:
    found = {name: {"held_bytes": held_gib * 2**30, "retries": 0, "tiles": 1} for name in ("whole", "tiled")}
    monkeypatch.setattr(bench, "PART_TO_SECONDS", {"memory": 0, "memory-expandable": 0})
    monkeypatch.setattr(bench, "run_part", lambda *_, **__: found)
    bench.measure(options(tmp_path))

    assert ("memory-expandable" in json.loads((tmp_path / "r.json").read_text())["parts"]) is runs


def test_every_goal_belongs_to_a_part_and_every_part_is_there(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers", reason="needs the [diffusion] extra")
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    parts = load("sd_x4_gpu_parts").PARTS

    assert set(parts) == {"machine", *bench.PART_TO_SECONDS}
    assert {goal.part for goal in bench.goals()} <= set(parts)
