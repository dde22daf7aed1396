"""Measure the memory that each embedded model needs: the numbers on the model cards come from here.

A fresh process loads the model and runs what needs most: the largest tiles that run in one go, in both number types,
then tiles that run in pieces. Memory is what the process holds beyond Python, numpy and OpenVINO themselves. Prints a
table, PASS or short for each card's formula, and a JSON line.

    .venv/bin/python bench/engine_memory.py [--models ID ...] [--threads N]

Some 10 minutes on two cores; it may be run beside other work, as it takes no times.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from fourfold.engine.base import EngineJob, JobFailed
from fourfold.engine.realesrgan import MODEL_TO_TUNING, tuning_of
from fourfold.engine.registry import card, load_engine
from fourfold.engine.settings import EngineSettings

MIDDLE: Final = (330, 200)  #: a tile that runs in pieces in either number type, width and height
STATUS: Final = Path("/proc/self/status")
FORGET_PEAK: Final = Path("/proc/self/clear_refs")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="*", default=list(MODEL_TO_TUNING))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.threads)))
        return
    print(f"{'':34} {'measured, MB':^27} | {'card, MB':^27}")
    print(f"{'model':34} " + " | ".join([f"{'idle':>8} {'running':>8} {'B/pixel':>9}"] * 2))
    results = []
    for model_id in options.models:
        command = [sys.executable, __file__, "--child", model_id, "--threads", str(options.threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        results.append(result)
        about = card(model_id)
        verdict = "PASS" if all(row["bytes"] <= about.peak_bytes(row["pixels"]) for row in result["runs"]) else "short"
        idle_is_enough = result["idle_bytes"] <= about.fixed_bytes
        print(
            f"{model_id:34} {result['idle_bytes'] / 1e6:>8.0f} {result['running_bytes'] / 1e6:>8.0f} "
            f"{result['bytes_per_pixel']:>9.0f} | {about.fixed_bytes / 1e6:>8.0f} {about.running_bytes / 1e6:>8.0f} "
            f"{about.bytes_per_input_pixel:>9}  {verdict if idle_is_enough else 'short'}",
            flush=True,
        )
    print(json.dumps({"bench": "engine_memory", "results": results}))


def measure(model_id: str, threads: int) -> dict[str, Any]:
    """Return what one model needs in this process: idle at most, while running, and for each pixel of a large tile."""
    import openvino  # noqa: F401 - so that it counts as there before the model

    tuning, about = tuning_of(model_id), card(model_id)
    before = resident_bytes()
    engine = load_engine(model_id, settings=EngineSettings(threads=threads, has_bf16=True))
    idle = [resident_bytes() - before]
    runs = []

    def run(name: str, width: int, height: int, kind: type[np.unsignedinteger[Any]], steps: int | None = None) -> None:
        image = np.zeros((height, width, 3), kind)
        FORGET_PEAK.write_text("5")
        engine.admit(EngineJob("a", image))
        taken = 0
        while engine.busy and taken != steps:
            if failed := [event for event in engine.step() if isinstance(event, JobFailed)]:
                raise failed[0].error
            taken += 1
        runs.append({"run": name, "pixels": width * height, "bytes": peak_bytes() - before})
        if engine.busy:
            engine.cancel("a")
        else:
            idle.append(resident_bytes() - before)

    small = tuning.small_pixels
    run("in one go, bfloat16", 256, small // 256, np.uint8)
    run("in one go, float32", 128, small // 256, np.uint16)
    run("in pieces, bfloat16", *MIDDLE, np.uint8)
    run("in pieces, float32", *MIDDLE, np.uint16)
    run("in pieces, bfloat16", *MIDDLE, np.uint8)
    pieces = runs[-2]["bytes"]
    # The second piece needs most: it holds what it makes, what it makes it of, and what a later one needs of the first.
    run("largest, float32, its first pieces", 1024, about.tile_pixels // 1024, np.uint16, steps=2)
    slope = (runs[-1]["bytes"] - pieces) / (runs[-1]["pixels"] - MIDDLE[0] * MIDDLE[1])
    return {
        "model": model_id,
        "idle_bytes": max(idle),
        "running_bytes": max(r["bytes"] - r["pixels"] * slope for r in runs) - max(idle),
        "bytes_per_pixel": slope,
        "runs": runs,
    }


def resident_bytes() -> int:
    return _status("VmRSS")


def peak_bytes() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
