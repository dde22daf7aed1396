"""Measure the diffusion engine on a GPU against the stock pipeline, warm, in one run, and against what the GPU can do.

Random weights at the real widths. Stock is diffusers in float16 with its float32 decode and SDPA; 75 DDIM steps,
guidance 9. Prints tables and, last, a JSON line. ``--cpu-smoke`` tries every path on a CPU with a tiny model: its
numbers mean nothing.

    .venv/bin/python bench/sd_x4_gpu.py [--sizes 128 256 512 768] [--repeats 5] [--eager] [--cpu-smoke]
"""

import argparse
import json
import math
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fourfold.engine import registry
from fourfold.engine.base import EngineJob, JobDone, Mode
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.engine.sd_x4_decode import decode
from fourfold.engine.settings import EngineSettings
from fourfold.testing.sd_x4 import REAL, TINY, write_pipe
from fourfold.testing.sd_x4_stock import Stock, job, picture, pixels, run, upscale

MODEL = "stabilityai/stable-diffusion-x4-upscaler"
#: FLOPs of a CFG step and of the decode at the real widths, counted on torch's meta device.
STEP_TERA = {128: 2.26, 256: 9.06, 384: 20.5, 512: 36.8, 768: 85.2, 1024: 157.2}
DECODE_TERA = {128: 3.09, 256: 18.98, 384: 67.4, 512: 181.5, 768: 804.0, 1024: 2415.0}
GOAL_RATIO = {128: 2.5, 256: 1.9, 512: 2.8, 768: 4.0}


class Bench:
    """One model on one device, ours and stock."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.options = options
        self.is_gpu = not options.cpu_smoke
        self.device = "cuda:0" if self.is_gpu else "cpu"
        self.folder = folder
        self.steps = 75 if self.is_gpu else 2
        self.compiler = None if options.eager else "inductor" if self.is_gpu else "eager"
        started = time.monotonic()
        self.engine = self.make((1, 2, 4, 8))
        self.load_seconds = time.monotonic() - started
        first = job("a", picture(options.sizes[0], options.sizes[0]), steps=self.steps)
        started = time.monotonic()
        upscale(self.engine, first)
        self.first_seconds = time.monotonic() - started  # while its kernels are compiled
        self.engine._kernels.settle()
        self.compile_seconds = time.monotonic() - started

    def make(self, rows: tuple[int, ...]) -> StableDiffusionX4Engine:
        """Load our engine with some batch sizes."""
        settings = EngineSettings(threads=1, device=self.device, batch_rows=rows, compiler=self.compiler)
        return StableDiffusionX4Engine(registry.card(MODEL), settings=settings, folder=self.folder)

    def stock(self) -> Stock:
        """Load the stock pipeline."""
        return Stock(self.folder, device=self.device, dtype=torch.float16 if self.is_gpu else torch.float32)

    def sync(self) -> None:
        """Wait for the GPU."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return the warm median, of compiled kernels where they are compiled."""
        work()
        self.engine._kernels.settle()
        times = []
        for _ in range(self.options.repeats):
            self.sync()
            started = time.monotonic()
            work()
            self.sync()
            times.append(time.monotonic() - started)
        return statistics.median(times)

    def peak_bytes(self, work: Callable[[], Any]) -> int:
        """Return the most memory that *work* held beyond what was held before; 0 on a CPU, which does not say."""
        if not self.is_gpu:
            work()
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated() - before)

    def matmul_rate(self) -> float:
        """Return the bf16 matrix product's rate, TFLOP/s."""
        side = 8192 if self.is_gpu else 256
        a = torch.randn((side, side), device=self.device, dtype=torch.bfloat16)
        return 2 * side**3 / self.seconds(lambda: a @ a) / 1e12

    def whole_runs(self, rate: float) -> list[dict[str, Any]]:
        """Compare whole pictures, size by size."""
        stock, rows = self.stock(), []
        print(f"{'px':>5} {'stock s':>8} {'ours s':>8} {'ratio':>6} {'goal':>5} {'of matmul':>9} {'fast s':>7}")
        for size in self.options.sizes:
            each = job("a", picture(size, size), steps=self.steps)
            fast = job("a", picture(size, size), steps=None if self.is_gpu else 2, mode=Mode.FAST)
            theirs = self.seconds(lambda each=each: stock.image(each))
            ours = self.seconds(lambda each=each: upscale(self.engine, each))
            quick = self.seconds(lambda fast=fast: upscale(self.engine, fast))
            tera = STEP_TERA.get(size, 0.0) * self.steps + DECODE_TERA.get(size, 0.0)  # 0: not counted
            row = {"px": size, "stock_s": theirs, "ours_s": ours, "ratio": theirs / ours, "goal": GOAL_RATIO.get(size)}
            row |= {"of_matmul_rate": tera / ours / rate, "fast_s": quick, "fast_ratio": theirs / quick}
            row["peak_bytes"] = self.peak_bytes(lambda each=each: upscale(self.engine, each))
            rows.append(row)
            share = row["of_matmul_rate"]
            print(
                f"{size:5} {theirs:8.3f} {ours:8.3f} {row['ratio']:6.2f} {row['goal']!s:>5} {share:9.2f} {quick:7.3f}"
            )
        return rows

    def psnr(self) -> float:
        """Compare with our own loop in float32, which the tests hold to the stock pipeline: dB."""
        each = job("a", picture(self.options.sizes[0], self.options.sizes[0]), steps=self.steps)
        settings = EngineSettings(threads=torch.get_num_threads())
        exact = StableDiffusionX4Engine(registry.card(MODEL), settings=settings, folder=self.folder)
        error = upscale(exact, each).astype(float) - upscale(self.engine, each)
        return 10 * math.log10(255**2 / max(1e-12, float(np.mean(error**2))))

    def decode_512(self) -> dict[str, float]:
        """Time the decode alone, and its memory."""
        side = 512 if self.is_gpu else 32
        modules = self.engine._modules
        latents = torch.randn((1, 4, side, side), device=self.device)

        def work() -> None:
            going = decode(modules.vae, latents, dtype=modules.decode_dtype)
            with torch.inference_mode():
                while True:
                    try:
                        next(going)
                    except StopIteration as end:
                        for _, strip in end.value:
                            strip.cpu()
                        return

        return {"px": side, "seconds": self.seconds(work), "peak_bytes": self.peak_bytes(work)}

    def throughput(self) -> dict[str, float]:
        """Run 8 pictures of 128 px at once, one after another, and by the stock pipeline."""
        side = 128 if self.is_gpu else 64
        jobs = [job(str(i), picture(side, side, seed=i), seed=i, steps=self.steps) for i in range(8)]
        together = self.seconds(lambda: run(self.engine, *jobs))
        ends = self._ends(jobs)
        alone = self.seconds(lambda: upscale(self.engine, jobs[0]))
        stock = self.stock()
        theirs = self.seconds(lambda: stock.image(jobs[0]))
        return {
            "of_sequential": 8 * alone / together,
            "of_stock": 8 * theirs / together,
            "p95_of_solo": ends[-1] / alone,
        }

    def _ends(self, jobs: list[EngineJob]) -> list[float]:
        """Return when each of *jobs*, admitted together, was done."""
        started, ends = time.monotonic(), []
        for each in jobs:
            self.engine.admit(each)
        while self.engine.busy:
            done = [event for event in self.engine.step() if isinstance(event, JobDone)]
            ends += [time.monotonic() - started] * len(done)
        return sorted(ends)

    def host_ms_per_step(self) -> float:
        """Return this thread's own time for one denoising step of 128 px, ms."""
        each = job("a", picture(64, 64), steps=20 if self.is_gpu else 4)
        upscale(self.engine, each)
        self.engine._kernels.settle()
        self.engine.admit(each)
        self.engine.step()
        started, count = time.thread_time(), 0
        (running,) = self.engine._running
        while not running.is_denoised:
            self.engine.step()
            count += 1
        spent = time.thread_time() - started
        self.engine.cancel("a")
        return spent / count * 1000

    def strict_mixes(self) -> int:
        """Return how many of some random mixes changed a bit of a picture."""
        engine, rng = self.make((4,)), random.Random(0)
        mixes = 50 if self.is_gpu else 2
        jobs = [job(str(i), picture(64, 64, seed=i), seed=i, steps=i + 1) for i in range(4)]
        upscale(engine, jobs[0])
        engine._kernels.settle()
        alone = {each.job_id: upscale(engine, each) for each in jobs}
        wrong = 0
        for _ in range(mixes):
            events: list[Any] = []
            for each in rng.sample(jobs, len(jobs)):
                engine.admit(each)
                for _ in range(rng.randrange(4)):
                    events += engine.step()
            events += run(engine)
            wrong += any(not np.array_equal(pixels(events, name), image) for name, image in alone.items())
        return wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="*", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--cpu-smoke", action="store_true")
    options = parser.parse_args()
    if not options.cpu_smoke and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --cpu-smoke tries the benchmark without one")
    options.sizes = options.sizes or ([64] if options.cpu_smoke else [128, 256, 512, 768])
    options.repeats = 1 if options.cpu_smoke else options.repeats
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(write_pipe(Path(folder), TINY if options.cpu_smoke else REAL, half=True), options)
        rate = bench.matmul_rate()
        report = {
            "bench": "sd_x4_gpu",
            "smoke": options.cpu_smoke,
            "gpu": torch.cuda.get_device_name() if bench.is_gpu else "none",
            "torch": torch.__version__,
            "python": platform.python_version(),
            "kernels": bench.compiler or "eager",
            "load_s": bench.load_seconds,
            "first_answer_s": bench.first_seconds,
            "compiled_after_s": bench.compile_seconds,
            "matmul_bf16_tflops": rate,
            "sizes": bench.whole_runs(rate),
            "psnr_db": bench.psnr(),
            "decode": bench.decode_512(),
            "throughput": bench.throughput(),
            "host_ms_per_step": bench.host_ms_per_step(),
            "strict_mixes_that_differ": bench.strict_mixes(),
        }
    for name in (
        "load_s",
        "first_answer_s",
        "compiled_after_s",
        "matmul_bf16_tflops",
        "psnr_db",
        "decode",
        "throughput",
        "host_ms_per_step",
    ):
        print(f"{name:>20}: {report[name]}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
