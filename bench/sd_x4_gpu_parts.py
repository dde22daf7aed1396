"""The parts of `sd_x4_gpu.py`, each in a process of its own: what one part breaks, the next does not notice.

A part prints what it finds; lines that begin with ``@@`` are its numbers as JSON, as soon as they are there.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from sd_x4_gpu_tools import (
    GIB,
    Bench,
    Profile,
    counting_waits,
    drop_from_page_cache,
    ends_of,
    profiled,
    psnr,
)

from fourfold.engine.base import EngineEvent, EngineJob, Mode
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.engine.sd_x4_decode import DecodeLimits
from fourfold.errors import OutOfMemoryError
from fourfold.testing.sd_x4 import REAL, TINY
from fourfold.testing.sd_x4_counts import MetaModel, teraflops
from fourfold.testing.sd_x4_stock import job, notes, picture, pixels, run, upscale

Numbers = Iterator[dict[str, Any]]


def machine(bench: Bench) -> Numbers:
    """What runs here?"""
    facts = {"torch": torch.__version__, "diffusers": diffusers.__version__, "python": platform.python_version()}
    yield {**facts, "transformers": transformers.__version__, "cpus": os.cpu_count()}
    if bench.is_gpu:
        gpu = torch.cuda.get_device_properties(0)
        yield {"gpu": gpu.name, "gpu_bytes": gpu.total_memory, "cuda": torch.version.cuda}
        yield {"cudnn": torch.backends.cudnn.version()}


def start(bench: Bench) -> Numbers:
    """How soon is a model there, and the first picture, while its kernels are compiled?"""
    if bench.is_gpu:
        torch.zeros(1, device=bench.device)  # the driver's own start is not the model's
    drop_from_page_cache(bench.folder)
    for name in ("load_from_disk_s", "load_from_page_cache_s"):
        started = time.monotonic()
        engine = bench.engine(is_eager=True)
        bench.sync()
        yield {name: time.monotonic() - started}
    each = job("a", picture(bench.side(128), bench.side(128)), steps=bench.steps)
    upscale(engine, each)
    yield {"eager_s": bench.seconds_of(lambda: upscale(engine, each))}
    engine.close()
    kernels = bench.folder / "kernels"
    yield {"kernel_cache": "warm" if kernels.is_dir() and any(kernels.iterdir()) else "empty"}
    engine, started = bench.engine(), time.monotonic()
    events = bench.run(engine, each)
    yield {"first_s": time.monotonic() - started, "first_kernels": notes(events)["kernels"]}
    engine._kernels.settle()
    yield {"compiled_after_s": time.monotonic() - started}
    yield {"then_kernels": bench.warm(engine, each), "then_s": bench.seconds_of(lambda: upscale(engine, each))}


def kernels(bench: Bench) -> Numbers:
    """Compile all further shapes at once, a process each, so that the parts below find them on disk."""
    shapes = (
        [(1, 256, 256), (1, 512, 512), (1, 768, 768), (8, 128, 128), (4, 64, 64)] if bench.is_gpu else [(1, 64, 64)]
    )
    started = time.monotonic()
    command = [sys.executable, *sys.argv, "--part", "compile", "--shape"]
    children = [(shape, subprocess.Popen([*command, *map(str, shape)])) for shape in shapes]
    for shape, child in children:
        if child.wait() != 0:
            bench.problems.append(f"compiling {shape} failed")
    yield {"shapes": shapes, "seconds": time.monotonic() - started}


def compile_one(bench: Bench, shape: tuple[int, int, int]) -> Numbers:
    """Compile one shape."""
    rows, height, width = shape
    engine = bench.engine((rows,))
    bench.run(engine, job("a", picture(width, height), steps=1))
    engine._kernels.settle()
    yield {"kernels": bench.warm(engine, job("a", picture(width, height)))}


def steps(bench: Bench) -> Numbers:
    """What does a denoising step of 128 px cost the host, and does it ever wait for the GPU?"""
    side, count = bench.side(128), 20 if bench.is_gpu else 2
    for name in ("eager", "compiled"):
        engine = bench.engine(is_eager=name == "eager")
        each = job("a", picture(side, side), steps=count + 2)
        found = bench.warm(engine, each)
        engine.admit(each)
        engine.step()
        bench.sync()
        spent, started = time.thread_time(), time.monotonic()
        for _ in range(count):
            engine.step()
        spent, launched = time.thread_time() - spent, time.monotonic() - started
        bench.sync()
        whole = time.monotonic() - started
        engine.cancel("a")
        row: dict[str, Any] = {"kernels": found, "host_ms": spent / count * 1000, "step_ms": whole / count * 1000}
        row["launched_ms"] = launched / count * 1000
        row["waits"] = _waits(bench, engine, each)
        seen = _profiled_steps(bench, engine, each)
        row |= {"profile": _facts(seen), "gpu_busy_share": seen.gpu_ms / 5 / row["step_ms"] if bench.is_gpu else None}
        print(f"\n128 px, {name}, five steps:\n{seen.table}")
        yield {name: row}
        engine.close()
    # Tiles of 128 px with 64 shared, as a canvas beyond the memory has them.
    engine = bench.engine(is_eager=True, core_px=side // 2, margin_px=side // 4, tile_pixels=side**2)
    tiled = job("a", picture(side * 3, side), steps=3)
    bench.warm(engine, tiled)
    yield {"tiled_waits": _waits(bench, engine, tiled)}


def _waits(bench: Bench, engine: StableDiffusionX4Engine, each: EngineJob) -> int:
    """Return how many operations of a job's denoising, after its first step, waited for the GPU."""
    engine.admit(each)
    (running,) = engine._running
    while running.at < 1:
        engine.step()
    with counting_waits(bench) as told:
        while not running.is_denoised:
            engine.step()
    engine.cancel(each.job_id)
    return len(told)


def _profiled_steps(bench: Bench, engine: StableDiffusionX4Engine, each: EngineJob) -> Profile:
    engine.admit(each)
    for _ in range(2 if bench.is_gpu else 1):
        engine.step()

    def work() -> None:
        for _ in range(5 if bench.is_gpu else 1):
            engine.step()

    seen = profiled(bench, work)
    engine.cancel(each.job_id)
    return seen


def _facts(seen: Profile) -> dict[str, Any]:
    return {"host_ms": seen.host_ms, "gpu_ms": seen.gpu_ms, "launches": seen.launches, "waits": seen.waits}


def speed(bench: Bench, size: int) -> Numbers:
    """How fast is a whole picture, against stock and against what the GPU multiplies?"""
    side = bench.side(size)
    each = job("a", picture(side, side), steps=bench.steps)
    rate, tera = bench.matmul_tflops(), _teraflops(bench, side)
    yield {"px": side, "matmul_bf16_tflops": rate, "teraflops": tera}
    found: dict[str, Any] = {}
    for numbers in _ours(bench, each):
        found |= numbers
        yield numbers
    yield {"of_matmul_rate": tera["ours"] / found["ours_s"] / rate}
    if size == 128:
        yield from _variants(bench, each)
    try:
        stock = bench.stock()
        stock.image(job("a", each.image, steps=2))  # every kernel and every allocation of a whole run
        theirs = bench.seconds_of(lambda: stock.image(each))
    except torch.OutOfMemoryError as exc:
        yield {"stock_failed": str(exc)[:200]}
        return
    yield {"stock_s": theirs, "ratio": theirs / found["ours_s"], "fast_ratio": theirs / found["fast_s"]}


def _ours(bench: Bench, each: EngineJob) -> Numbers:
    engine = bench.engine()
    fast = job("a", each.image, steps=None if bench.is_gpu else 2, mode=Mode.FAST)
    yield {"kernels": bench.warm(engine, each)}
    yield {"ours_s": bench.seconds_of(lambda: upscale(engine, each))}
    bench.warm(engine, fast)
    yield {"fast_s": bench.seconds_of(lambda: upscale(engine, fast))}
    yield {"peak": bench.peak_of(lambda: upscale(engine, each))}
    seen = profiled(bench, lambda: upscale(engine, job("a", each.image, steps=3)))
    yield {"profile": _facts(seen)}
    print(f"\n{each.image.shape[0]} px, three steps and the decode:\n{seen.table}")
    engine.close()


def _teraflops(bench: Bench, side: int) -> dict[str, float]:
    """Return the least work of a picture: what both ways share counts once, text and timesteps not at all."""
    model = MetaModel.make(REAL if bench.is_gpu else TINY)
    decode = teraflops(model.decode(side, side, limits=DecodeLimits(strip_pixels=2**40, attention_queries=2**40)))
    step, stock = teraflops(model.step(side, side)), teraflops(model.stock_step(side, side))
    counts = {"step": step, "decode": decode, "ours": step * bench.steps + decode}
    return counts | {"stock": stock * bench.steps + decode}


def _variants(bench: Bench, each: EngineJob) -> Numbers:
    """Try what else could be faster: eager kernels, and cuDNN measuring its own for the compiled ones."""
    for name in ("eager", "cudnn_benchmark"):
        torch.backends.cudnn.benchmark = name == "cudnn_benchmark"
        engine = bench.engine(is_eager=name == "eager")
        bench.warm(engine, each)
        yield {f"{name}_s": bench.seconds_of(lambda engine=engine: upscale(engine, each))}
        engine.close()
    torch.backends.cudnn.benchmark = False


def exact(bench: Bench) -> Numbers:
    """How near is the picture to the one of float32 throughout, by the stock pipeline, without TF32?"""
    for size in (128, 256) if bench.is_gpu else (64,):
        each, engine = job("a", picture(size, size), steps=bench.steps), bench.engine()
        kernels = bench.warm(engine, each)
        ours, theirs = upscale(engine, each), bench.stock().image(each)
        torch.backends.cudnn.allow_tf32 = False
        expected = bench.stock(torch.float32).image(each)
        torch.backends.cudnn.allow_tf32 = True
        found = {"psnr_db": psnr(ours, expected), "stock_psnr_db": psnr(theirs, expected)}
        yield {str(size): found | {"kernels": kernels, "contrast": float(expected.std())}}


def decode(bench: Bench) -> Numbers:
    """How long does the last part of a picture take, from latents to pixels in the host's memory, and in how much?"""
    side = bench.side(512)
    each, engine = job("a", picture(side, side), steps=1), bench.engine(is_eager=True)

    def denoise() -> None:
        engine.admit(each)
        while not engine._running[0].is_denoised:
            engine.step()
        bench.sync()

    upscale(engine, each)
    times = []
    for _ in range(3 if bench.is_gpu else 1):
        denoise()
        started = time.monotonic()
        run(engine)
        times.append(time.monotonic() - started)
    yield {"px": side, "seconds": sorted(times)[len(times) // 2]}
    denoise()
    yield {"peak": bench.peak_of(lambda: run(engine))}
    denoise()
    seen = profiled(bench, lambda: run(engine))
    yield {"profile": _facts(seen)}
    print(f"\nThe decode of {side} px:\n{seen.table}")


def memory(bench: Bench) -> Numbers:
    """Does 1024 x 1024 whole and 2048 x 2048 in tiles fit a card of 24 GiB, the driver's context included?"""
    context, limit = 0, 24 * GIB
    if bench.is_gpu:
        torch.zeros(1, device=bench.device)
        free, total = torch.cuda.mem_get_info()
        context = total - free - torch.cuda.memory_reserved()
        torch.cuda.set_per_process_memory_fraction(min(1.0, (limit - context) / total))
    yield {"context_bytes": context, "limit_bytes": limit}
    engine = bench.engine(budget=limit - GIB)  # as a worker's child has on such a card
    for name, size, count in (("whole", 1024, 2), ("tiled", 2048, 1)):
        each = job(name, picture(bench.side(size), bench.side(size)), steps=count)
        started, events = time.monotonic(), list[EngineEvent]()
        try:
            peak = bench.peak_of(lambda each=each, events=events: events.extend(bench.run(engine, each)))
        except OutOfMemoryError as exc:
            yield {name: {"failed": str(exc)}}
            continue
        told = notes(events, name)
        found = {"px": bench.side(size), "seconds": time.monotonic() - started, "tiles": told["tiles"], "peak": peak}
        found["held_bytes"] = context + (torch.cuda.max_memory_reserved() if bench.is_gpu else 0)
        yield {name: found | {"retries": told.get("out_of_memory_retries", 0), "warnings": told.get("warnings", [])}}


def batch(bench: Bench) -> Numbers:
    """How many pictures of 128 px come from 8 requests at once, and how long does the last one wait?"""
    side = bench.side(128)
    jobs = [job(str(i), picture(side, side, seed=i), seed=i, steps=bench.steps) for i in range(8)]
    engine = bench.engine()
    yield {"kernels_alone": bench.warm(engine, jobs[0]), "kernels_together": bench.warm(engine, *jobs)}
    alone = bench.seconds_of(lambda: upscale(engine, jobs[0]))
    rounds = [ends_of(engine, jobs) for _ in range(3 if bench.is_gpu else 1)]
    together = sorted(ends[-1] for ends in rounds)[len(rounds) // 2]
    ends = sorted(end for each in rounds for end in each)
    p95 = ends[max(0, -(-95 * len(ends) // 100) - 1)]
    yield {"alone_s": alone, "together_s": together, "of_sequential": 8 * alone / together, "p95_of_solo": p95 / alone}
    short = [job(each.job_id, each.image, seed=each.seed, steps=3) for each in jobs]
    seen = profiled(bench, lambda: run(engine, *short))
    yield {"profile": _facts(seen)}
    print(f"\n8 of {side} px, three steps and the decodes:\n{seen.table}")
    stock = bench.stock()
    stock.image(job("a", jobs[0].image, steps=2))
    theirs = bench.seconds_of(lambda: stock.image(jobs[0]))
    yield {"stock_s": theirs, "of_stock": 8 * theirs / together}


def strict(bench: Bench) -> Numbers:
    """Do neighbours ever change a bit, with compiled kernels at one size, with eager ones at any?"""
    mixes = 50 if bench.is_gpu else 2
    sides = (64, 96, 128, 160, 192) if bench.is_gpu else (64,)
    for name in ("compiled", "eager"):
        rng, engine = random.Random(5), bench.engine((4,), is_eager=name == "eager")
        sizes = [(64, 64)] * 4 if name == "compiled" else [(rng.choice(sides), rng.choice(sides)) for _ in range(6)]
        jobs = [job(str(i), picture(*size, seed=i), seed=i, steps=i + 2) for i, size in enumerate(sizes)]
        found = bench.warm(engine, jobs[0])
        alone = {each.job_id: upscale(engine, each) for each in jobs}
        wrong = 0
        for _ in range(mixes):
            events: list[Any] = []
            for each in rng.sample(jobs, len(jobs)):
                engine.admit(each)
                for _ in range(rng.randrange(4)):
                    events += engine.step()
            events += run(engine)
            wrong += any(not np.array_equal(pixels(events, key), image) for key, image in alone.items())
        yield {name: {"kernels": found, "mixes": mixes, "sizes": len(set(sizes)), "differ": wrong}}
        engine.close()


PARTS: Mapping[str, Callable[[Bench], Numbers]] = {
    "machine": machine,
    "start": start,
    "kernels": kernels,
    "steps": steps,
    **{f"speed-{size}": lambda bench, size=size: speed(bench, size) for size in (128, 256, 512, 768)},
    "exact": exact,
    "decode": decode,
    "memory": memory,
    "memory-expandable": memory,
    "batch": batch,
    "strict": strict,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--cpu-smoke", action="store_true")
    parser.add_argument("--part", required=True)
    parser.add_argument("--shape", type=int, nargs=3)
    options = parser.parse_args()
    bench = Bench.from_options(options)
    if not bench.is_gpu:
        torch.set_num_threads(1)
    if options.part == "compile":
        list(compile_one(bench, tuple(options.shape)))
        sys.exit("; ".join(bench.problems) or 0)
    for numbers in PARTS[options.part](bench):
        told = numbers | ({"problems": bench.problems} if bench.problems else {})
        print(f"@@ {json.dumps(told)}", flush=True)


if __name__ == "__main__":
    main()
