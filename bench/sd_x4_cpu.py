"""Compare the diffusion engine with the stock pipeline on the CPU: time and peak memory, in one run.

Random weights at the real model's widths (3.5 GB are written to the folder for temporary files), float32, 64 x 64
pixels, a few steps. Each side runs in a process of its own, so that its peak is its own; of two runs the second counts.
Prints a table and a JSON line.

    .venv/bin/python bench/sd_x4_cpu.py [--size 64] [--steps 2] [--threads 2] [--tiny]
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fourfold.engine import registry
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.engine.settings import EngineSettings
from fourfold.testing.sd_x4 import REAL, TINY, write_pipe
from fourfold.testing.sd_x4_stock import Stock, job, picture, upscale

MODEL = "stabilityai/stable-diffusion-x4-upscaler"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="2 MB of weights: tries the benchmark, measures nothing")
    parser.add_argument("--side", choices=["stock", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_pipe(Path(folder), TINY if options.tiny else REAL)
        sides = {side: in_a_process(side, folder) for side in ("stock", "ours")}
        pictures = [np.load(Path(folder) / f"{side}.npy").astype(int) for side in sides]
    levels = int(np.abs(pictures[0] - pictures[1]).max())
    print(f"{'':>6} {'seconds':>8} {'CPU s':>8} {'peak GB':>8} {'load s':>7}")
    for side, numbers in sides.items():
        times = f"{numbers['seconds']:8.2f} {numbers['cpu_seconds']:8.2f}"
        print(f"{side:>6} {times} {numbers['peak_bytes'] / 1e9:8.2f} {numbers['load_seconds']:7.2f}")
    ratio, cpu_ratio = (sides["stock"][what] / sides["ours"][what] for what in ("seconds", "cpu_seconds"))
    print(
        f"ours is {ratio:.2f} times as fast; by processors' time, which a busy machine asks for, {cpu_ratio:.2f} times"
    )
    print(f"the pictures differ by at most {levels} of 255")
    facts = {"size": options.size, "steps": options.steps, "threads": options.threads, "tiny": options.tiny}
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    print(
        json.dumps(
            {
                "bench": "sd_x4_cpu",
                **facts,
                **machine,
                **sides,
                "ratio": ratio,
                "cpu_ratio": cpu_ratio,
                "max_levels": levels,
            }
        )
    )


def in_a_process(side: str, folder: str) -> dict[str, Any]:
    """Measure one side alone."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    numbers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load, run twice, keep the picture."""
    torch.set_num_threads(options.threads)
    each = job("a", picture(options.size, options.size), steps=options.steps)
    started = time.monotonic()
    if options.side == "stock":
        stock = Stock(options.folder)
        run = stock.image
    else:
        settings = EngineSettings(threads=options.threads)
        engine = StableDiffusionX4Engine(registry.card(MODEL), settings=settings, folder=options.folder)

        def run(each: Any) -> Any:
            return upscale(engine, each)

    loaded = time.monotonic()
    run(each)
    warm, spent = time.monotonic(), time.process_time()
    made = run(each)
    seconds, cpu_seconds = time.monotonic() - warm, time.process_time() - spent
    np.save(options.folder / f"{options.side}.npy", made)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak, "load_seconds": loaded - started}


if __name__ == "__main__":
    main()
