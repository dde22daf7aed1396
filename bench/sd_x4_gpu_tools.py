"""What the parts of the diffusion benchmark share: a model's engines, times, memory, and torch's profile."""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from fourfold.engine import registry
from fourfold.engine.base import EngineEvent, EngineJob, JobDone, JobFailed, Remark
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.engine.settings import EngineSettings
from fourfold.testing.sd_x4_stock import Stock, notes, run

MODEL = "stabilityai/stable-diffusion-x4-upscaler"
GIB = 2**30
#: Calls by which a thread waits for the GPU.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaFree")


@dataclass(slots=True)
class Bench:
    """One model on one device."""

    folder: Path
    is_gpu: bool = True
    is_eager: bool = False
    repeats: int = 5
    #: A measurement is repeated until it has taken this long, but for `repeats` times at the most.
    seconds: float = 8.0
    problems: list[str] = field(default_factory=list)  #: why kernels are not compiled, why a job failed

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> "Bench":
        """Return what the command line asks for."""
        is_gpu = not options.cpu_smoke
        return cls(options.folder, is_gpu, options.eager, *((5, 8.0) if is_gpu else (1, 0.0)))

    @property
    def device(self) -> str:
        """Torch's name of it."""
        return "cuda:0" if self.is_gpu else "cpu"

    @property
    def steps(self) -> int:
        """Denoising steps of a whole picture."""
        return 75 if self.is_gpu else 2

    @property
    def compiler(self) -> str | None:
        """torch.compile's backend; a CPU only tries the way."""
        return None if self.is_eager else "inductor" if self.is_gpu else "eager"

    def side(self, side: int) -> int:
        """Return a picture's side: on a CPU the least."""
        return side if self.is_gpu else 64

    def engine(
        self, rows: tuple[int, ...] = (1, 2, 4, 8), *, is_eager: bool = False, budget: int | None = None, **card: Any
    ) -> StableDiffusionX4Engine:
        """Load our engine."""
        settings = EngineSettings(
            threads=1,
            device=self.device,
            batch_rows=rows,
            compiler=None if is_eager else self.compiler,
            memory_budget_bytes=budget,
        )
        return StableDiffusionX4Engine(replace(registry.card(MODEL), **card), settings=settings, folder=self.folder)

    def stock(self, dtype: torch.dtype | None = None) -> Stock:
        """Load the stock pipeline: float16 with its float32 decode; on a CPU float32."""
        return Stock(self.folder, device=self.device, dtype=dtype or (torch.float16 if self.is_gpu else torch.float32))

    def run(self, engine: StableDiffusionX4Engine, *jobs: EngineJob) -> list[EngineEvent]:
        """Run jobs to their end, and note what went wrong."""
        events = run(engine, *jobs)
        for event in events:
            if isinstance(event, Remark) and event.name == "compile_failed":
                self.problems.append(f"compile_failed: {event.facts.get('why')}")
            if isinstance(event, JobFailed):
                raise event.error
        return events

    def warm(self, engine: StableDiffusionX4Engine, *jobs: EngineJob) -> str:
        """Have the jobs' kernels compiled and recorded; return which they are: "compiled" or "eager"."""
        short = [replace(each, num_inference_steps=2) for each in jobs]
        self.run(engine, *short)
        engine._kernels.settle()
        self.run(engine, *short)
        return str(notes(self.run(engine, *short), short[0].job_id)["kernels"])

    def sync(self) -> None:
        """Wait for the GPU."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def seconds_of(self, work: Callable[[], Any]) -> float:
        """Return the median time of *work*, which is warm already."""
        times: list[float] = []
        while len(times) < self.repeats and (not times or sum(times) < self.seconds):
            self.sync()
            started = time.monotonic()
            work()
            self.sync()
            times.append(time.monotonic() - started)
        return statistics.median(times)

    def peak_of(self, work: Callable[[], Any]) -> dict[str, int]:
        """Return the most memory that *work* held beyond what was held before; 0 on a CPU, which does not say."""
        if not self.is_gpu:
            work()
            return {"allocated_bytes": 0, "reserved_bytes": 0}
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        work()
        self.sync()
        return {
            "allocated_bytes": torch.cuda.max_memory_allocated() - allocated,
            "reserved_bytes": torch.cuda.max_memory_reserved() - reserved,
        }

    def matmul_tflops(self) -> float:
        """Return the rate of a large bf16 product of random numbers; zeros would be faster than any picture."""
        side, count = (8192, 20) if self.is_gpu else (256, 1)
        a, b = (torch.randn((side, side), device=self.device, dtype=torch.bfloat16) for _ in range(2))

        def work() -> None:
            for _ in range(count):
                a @ b

        work()
        return count * 2 * side**3 / self.seconds_of(work) / 1e12


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of some work went."""

    host_ms: float
    gpu_ms: float  #: that the GPU was busy, kernels side by side counted twice
    launches: int  #: kernels
    waits: dict[str, int]  #: how often this process waited for the GPU, by call
    table: str


def profiled(bench: Bench, work: Callable[[], Any]) -> Profile:
    """Run *work* under torch's profiler."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.is_gpu else [])]
    bench.sync()
    with profile(activities=activities) as seen:
        with record_function("measured"):
            work()
        bench.sync()
    events = seen.events()
    whole = next(event for event in events if event.name == "measured" and "CPU" in str(event.device_type))
    within = [event for event in events if whole.time_range.start <= event.time_range.start <= whole.time_range.end]
    waits = {name: sum(event.name == name for event in within) for name in WAITS}
    # Marks of our own and of compiled regions appear on the GPU as well, as long as what they enclose.
    on_gpu = [event for event in events if "CUDA" in str(event.device_type)]
    kernels = [
        event for event in on_gpu if not (event.name == "measured" or getattr(event, "is_user_annotation", False))
    ]
    averages = seen.key_averages()
    order = "self_device_time_total" if bench.is_gpu else "self_cpu_time_total"
    return Profile(
        host_ms=(whole.time_range.end - whole.time_range.start) / 1000,
        gpu_ms=sum(event.time_range.end - event.time_range.start for event in kernels) / 1000,
        launches=len(kernels),
        waits={name: count for name, count in waits.items() if count},
        table=averages.table(sort_by=order, row_limit=20, max_name_column_width=70),
    )


@contextmanager
def counting_waits(bench: Bench) -> Any:
    """Yield a list that afterwards has torch's warning for every operation that waited for the GPU."""
    told: list[str] = []
    if not bench.is_gpu:
        yield told
        return
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield told
        finally:
            torch.cuda.set_sync_debug_mode("default")
        # Setting the mode itself warns, that it is a prototype.
        told += [str(each.message) for each in seen if "synchronizing CUDA" in str(each.message)]


def ends_of(engine: StableDiffusionX4Engine, jobs: Sequence[EngineJob]) -> list[float]:
    """Return when each of *jobs*, admitted together, was done."""
    started, ends = time.monotonic(), []
    for each in jobs:
        engine.admit(each)
    while engine.busy:
        done = [event for event in engine.step() if isinstance(event, JobDone)]
        ends += [time.monotonic() - started] * len(done)
    return sorted(ends)


def psnr(made: Any, expected: Any) -> float:
    """Return the peak signal to noise ratio of 8-bit pictures, dB; of equal ones 160."""
    error = float(np.mean((made.astype(float) - expected) ** 2))
    return 10 * float(np.log10(255**2 / max(error, 255**2 / 1e16)))


def drop_from_page_cache(folder: Path) -> int:
    """Have the system forget what it keeps of the files in *folder*; return their bytes."""
    total = 0
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            total += path.stat().st_size
    return total
