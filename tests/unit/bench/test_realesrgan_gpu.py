"""The benchmark of the embedded networks, tried where there is no GPU: it counts right, and reports."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [diffusion] extra")

BENCH = Path(__file__).resolve().parents[3] / "bench" / "realesrgan_gpu.py"


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("realesrgan_gpu", BENCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_work_is_counted_at_the_size_that_it_is_done_at(bench: Any) -> None:
    """The compact network at the picture's size only: 2 x its weights. x4plus has two convolutions at 16 times that."""
    assert bench.flops_per_pixel("fourfold/realesr-animevideov3") == 2 * 619_200
    large = 64 * 64 * 9
    tail = 2 * (large * 4 + large * 16 + large * 16 + 3 * 64 * 9 * 16)
    assert bench.flops_per_pixel("fourfold/realesrgan-x4plus") == 2 * (16_684_416 - 3 * large - 3 * 64 * 9) + tail


@pytest.mark.slow
def test_every_path_runs_on_a_cpu(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(BENCH), "--cpu-smoke"])
    bench.main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])

    (row,) = report["models"]
    assert report["smoke"]
    assert row["compiled_mp_per_s"] > 0 and row["eager_mp_per_s"] > 0
    assert row["most_levels_apart"] == 0
