"""Measure the embedded networks on a GPU, eager and compiled, against what the GPU can multiply in the same run.

Megapixels are of the input; a picture's time is that of the engine, from its array to the enlarged one, transfers
included, a warm median. The share is of the float16 matrix product's rate, counted as direct convolutions. Prints a
table and, last, a JSON line. Minutes, most of them compiling; the GPU must be idle. ``--cpu-smoke`` tries every path on
a CPU with one small picture: its numbers mean nothing.

    .venv/bin/python bench/realesrgan_gpu.py [--models ...] [--size 1024 768] [--repeats 5] [--float32] [--cpu-smoke]
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fourfold.engine import registry
from fourfold.engine.base import EngineJob, JobDone, Precision, RegionDone, UpscaleEngine
from fourfold.engine.ncnn_files import Convolution, NearestUpscale, PixelShuffle, read_network
from fourfold.engine.pieces import join
from fourfold.engine.realesrgan_torch import load_realesrgan_engine
from fourfold.engine.settings import EngineSettings
from fourfold.engine.tiles_torch import TorchTilesEngine
from fourfold.engine.weights import read_weights

MODELS = (
    "fourfold/realesrgan-x4plus",
    "fourfold/realsr-df2k",
    "fourfold/realesr-animevideov3",
    "fourfold/realesrgan-x4plus-anime",
)


def flops_per_pixel(model_id: str) -> float:
    """Return the floating-point operations for one input pixel."""
    network = join(read_network(*(read_weights(file) for file in registry.card(model_id).weights)))
    blob_to_scale, flops = {network.picture: 1}, 0.0
    for layer in network.layers:
        scale = blob_to_scale[layer.inputs[0]]
        if isinstance(layer, Convolution):
            flops += 2 * layer.weights.size * scale**2
        elif isinstance(layer, NearestUpscale | PixelShuffle):
            scale *= layer.factor
        blob_to_scale[layer.outputs[0]] = scale
    return flops


class Bench:
    """Timing on one device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.is_gpu = not options.cpu_smoke
        self.device = "cuda:0" if self.is_gpu else "cpu"
        self.dtype = torch.float16 if self.is_gpu else torch.float32
        width, height = options.size
        noise = np.random.default_rng(0).integers(0, 40, (height, width, 3))
        y, x = np.mgrid[0:height, 0:width]
        self.image = (np.stack([x + y, 255 - y, x // 2], axis=-1) % 216 + noise).astype(np.uint8)

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return the warm median."""
        work()
        times = []
        for _ in range(self.options.repeats):
            self.sync()
            started = time.monotonic()
            work()
            self.sync()
            times.append(time.monotonic() - started)
        return statistics.median(times)

    def sync(self) -> None:
        """Wait for the GPU."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def matmul_rate(self) -> float:
        """Return the matrix product's rate, TFLOP/s, in the type that 8-bit pictures are computed in."""
        side = 8192 if self.is_gpu else 256
        a = torch.randn((side, side), device=self.device, dtype=self.dtype)
        return 2 * side**3 / self.seconds(lambda: a @ a) / 1e12

    def engine(self, model_id: str, compiler: str | None) -> TorchTilesEngine:
        """Load a model's engine."""
        settings = EngineSettings(
            threads=1,
            device=self.device,
            compiler=compiler,
            precision=Precision.FLOAT32 if self.options.float32 else Precision.AUTO,
        )
        made = load_realesrgan_engine(registry.card(model_id), settings=settings)
        assert isinstance(made, TorchTilesEngine)
        return made

    def model(self, model_id: str, rate: float) -> dict[str, Any]:
        """Compare a model's eager kernels with its compiled ones."""
        pixels = self.image.shape[0] * self.image.shape[1]
        row: dict[str, Any] = {"model": model_id, "flops_per_pixel": flops_per_pixel(model_id)}
        made: dict[str, Any] = {}
        for kernels, compiler in (("eager", None), ("compiled", "inductor" if self.is_gpu else "eager")):
            engine = self.engine(model_id, compiler)
            started = time.monotonic()
            upscale(engine, self.image)
            first = time.monotonic() - started
            engine._kernels.settle()
            row[f"{kernels}_ready_s"] = time.monotonic() - started
            spent = self.seconds(lambda engine=engine: upscale(engine, self.image))  # type: ignore[misc]
            if self.is_gpu:
                torch.cuda.reset_peak_memory_stats()
            made[kernels], notes = upscale(engine, self.image)
            if notes["kernels"] != kernels:
                raise SystemExit(f"{model_id}: {notes}, {engine._kernels.remarks()}")
            row |= {"precision": notes["precision"], "tiles": notes["tiles"], f"{kernels}_first_s": first}
            row[f"{kernels}_mp_per_s"] = pixels / 1e6 / spent
            row[f"{kernels}_of_matmul"] = pixels * row["flops_per_pixel"] / spent / 1e12 / rate
            row[f"{kernels}_peak_bytes"] = torch.cuda.max_memory_allocated() if self.is_gpu else 0
            row["card_bytes"] = engine.card.peak_bytes(min(pixels, engine.card.tile_pixels))
            engine.close()
        error = made["compiled"].astype(float) - made["eager"]
        row["most_levels_apart"] = float(np.abs(error).max())
        row["psnr_db"] = 10 * math.log10(255**2 / max(1e-9, float(np.mean(error**2))))
        return row


def upscale(engine: UpscaleEngine, image: Any) -> tuple[Any, dict[str, Any]]:
    """Return the picture and the job's notes."""
    engine.admit(EngineJob("a", image))
    whole = np.zeros((image.shape[0] * 4, image.shape[1] * 4, 3), image.dtype)
    notes: dict[str, Any] = {}
    while engine.busy:
        for event in engine.step():
            if isinstance(event, RegionDone):
                height, width = event.pixels.shape[:2]
                whole[event.y : event.y + height, event.x : event.x + width] = event.pixels
            elif isinstance(event, JobDone):
                notes = event.notes
    return whole, notes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--size", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), default=(1024, 768))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--float32", action="store_true", help="for the share, too, of the float16 rate")
    parser.add_argument("--cpu-smoke", action="store_true")
    options = parser.parse_args()
    if options.cpu_smoke:
        torch.set_num_threads(1)
        options.models, options.size, options.repeats = MODELS[2:3], (128, 96), 1
    elif not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --cpu-smoke tries the benchmark without one")
    bench = Bench(options)
    rate = bench.matmul_rate()
    print(
        f"{'model':35} {'eager MP/s':>10} {'compiled':>9} {'ratio':>6} {'of matmul':>14} {'ready s':>8} {'peak GB':>8}"
    )
    rows = []
    for model_id in options.models:
        row = bench.model(model_id, rate)
        rows.append(row)
        eager, compiled = row["eager_mp_per_s"], row["compiled_mp_per_s"]
        print(
            f"{model_id:35} {eager:10.2f} {compiled:9.2f} {compiled / eager:6.2f} {row['eager_of_matmul']:6.2f} "
            f"{row['compiled_of_matmul']:7.2f} {row['compiled_ready_s']:8.1f} {row['compiled_peak_bytes'] / 1e9:8.2f}"
        )
    report = {
        "bench": "realesrgan_gpu",
        "smoke": options.cpu_smoke,
        "gpu": torch.cuda.get_device_name() if bench.is_gpu else "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "size": list(options.size),
        "matmul_tflops": rate,
        "models": rows,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
