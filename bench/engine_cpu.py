"""Measure the embedded models on this processor, against the ncnn wheel and the processor's own limit, in one run.

Each number comes from a fresh process: best time of several runs while nothing else used the machine, peak of its
resident memory. Prints a table with PASS or short for each goal, and a JSON line.

    .venv/bin/python bench/engine_cpu.py [--threads N] [--quick]

Some 15 minutes on two cores. ncnn and torch (which only multiplies matrices here) are installed into .venvs/bench, on
the first run, and stay out of ours. The machine must be idle: runs that others disturbed are repeated, then marked (*).
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
BENCH_PYTHON: Final = ROOT / ".venvs" / "bench" / "bin" / "python"
BENCH_PACKAGES: Final = ("ncnn==1.0.20261020", "numpy==2.4.6", "torch==2.13.0")

PHOTO: Final = "fourfold/realesrgan-x4plus"
OTHERS: Final = (
    ("fourfold/realsr-df2k", 128),
    ("fourfold/realesrgan-x4plus-anime", 128),
    ("fourfold/realesrgan-x4plus-anime", 256),
    ("fourfold/realesr-animevideov3", 128),
    ("fourfold/realesr-animevideov3", 256),
)
SHARE_OF_OTHERS: Final = 0.1
"""A run counts as undisturbed if other processes used less than this share of the cores meanwhile."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the default model at 128 px only")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child[0]](*options.child[1:])))
        return
    install()
    bound = {kind: max(run_sgemm(kind, options.threads), key=lambda r: r["gflops"]) for kind in ("bf16", "f32")}
    for kind, best in bound.items():
        print(f"{kind} matrix product: {best['gflops']:.0f} GFLOP/s, by {best['by']}")
    rows = []
    sides = (128,) if options.quick else (128, 256)
    for model_id, side in [(PHOTO, side) for side in sides] + ([] if options.quick else list(OTHERS)):
        rows += measure(model_id, side, options.threads)
    print_rows(rows, bound)
    goals = [goal for side in sides for goal in judge(rows, bound, side)]
    print()
    for goal in goals:
        print(f"{'PASS ' if goal['met'] else 'short'} {goal['text']}")
    machine = {"processor": processor_name(), "threads": options.threads, "platform": platform.platform()}
    print(json.dumps({"bench": "engine_cpu", "machine": machine, "bound": bound, "rows": rows, "goals": goals}))


def install() -> None:
    """Make .venvs/bench, once."""
    if not BENCH_PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(BENCH_PYTHON.parent.parent)], check=True)
    probe = [str(BENCH_PYTHON), "-c", "import ncnn, torch"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        subprocess.run([str(BENCH_PYTHON), "-m", "pip", "install", "-q", *BENCH_PACKAGES], check=True)


def measure(model_id: str, side: int, threads: int) -> list[dict[str, Any]]:
    """Return one row for each way to run the model at *side* x *side* pixels, untiled."""
    rows = []
    for python, child, precision in (
        (BENCH_PYTHON, "ncnn", "float32"),
        (BENCH_PYTHON, "ncnn", "bf16 storage"),
        (sys.executable, "fourfold", "float32"),
        (sys.executable, "fourfold", "bf16"),
    ):
        files = [str(path) for path in weight_paths(model_id)] if child == "ncnn" else []
        result = run_child(python, child, model_id, precision, str(side), str(threads), *files)
        rows.append({"model": model_id, "side": side, "by": child, "precision": precision, **result})
        print(f"  measured {model_id} {side} {child} {precision}: {result['seconds']:.3f} s", flush=True)
    return rows


def run_sgemm(kind: str, threads: int) -> list[dict[str, Any]]:
    return [
        run_child(BENCH_PYTHON, "torch_matmul", kind, str(threads)),
        run_child(sys.executable, "openvino_matmul", kind, str(threads)),
    ]


def run_child(python: Path | str, *arguments: str) -> dict[str, Any]:
    command = [str(python), str(Path(__file__).resolve()), "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def weight_paths(model_id: str) -> list[Path]:
    from fourfold.engine.registry import card
    from fourfold.engine.weights import locate

    return [locate(file) for file in card(model_id).weights]


def flops(model_id: str, side: int) -> float:
    """Return the work of a direct computation: two for each weight at each pixel that it is applied to."""
    from fourfold.engine.ncnn_files import Convolution, NearestUpscale, PixelShuffle, read_network

    scale, total = 1, 0.0
    param, weights = (path.read_bytes() for path in weight_paths(model_id))
    for layer in read_network(param, weights):
        if isinstance(layer, Convolution):
            total += 2.0 * layer.weights.size * (side * scale) ** 2
        elif isinstance(layer, NearestUpscale | PixelShuffle):
            scale *= layer.factor
    return total


def timed(run: Callable[[], Any], *, at_least: int, longest_s: float) -> dict[str, Any]:
    """Return the best of the undisturbed runs; of all, and marked so, if there was none."""
    started, best = time.perf_counter(), {True: float("inf"), False: float("inf")}
    done = 0
    while done < at_least or (best[True] == float("inf") and time.perf_counter() - started < longest_s):
        others_s, t = others_busy_s(), time.perf_counter()
        run()
        elapsed = time.perf_counter() - t
        is_quiet = others_busy_s() - others_s < SHARE_OF_OTHERS * elapsed
        best[is_quiet] = min(best[is_quiet], elapsed)
        done += 1
    is_disturbed = best[True] == float("inf")
    return {"seconds": best[not is_disturbed], "disturbed": is_disturbed, "runs": done}


def others_busy_s() -> float:
    """Return the seconds that the cores have spent on anything but this process; 0 where the system does not say."""
    try:
        words = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq = (int(word) for word in words[:7])
    ours = resource.getrusage(resource.RUSAGE_SELF)
    return (user + nice + system + irq + softirq) / 100 - ours.ru_utime - ours.ru_stime


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def picture(side: int) -> Any:
    import numpy as np

    y, x = np.mgrid[:side, :side]
    unit = np.stack([0.5 + 0.4 * np.sin(x / 9 + y / 17), 0.5 + 0.4 * np.cos(y / 7), x / side], axis=-1)
    unit += np.random.default_rng(0).normal(0, 0.05, unit.shape)
    return np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)


def child_fourfold(model_id: str, precision: str, side: str, threads: str) -> dict[str, Any]:
    from fourfold.engine.base import EngineJob, JobFailed, Precision
    from fourfold.engine.registry import load_engine
    from fourfold.engine.settings import EngineSettings, has_bf16

    if precision == "bf16" and not has_bf16():
        raise SystemExit("this processor does not multiply bfloat16")
    settings = EngineSettings(
        threads=int(threads),
        precision=Precision.AUTO if precision == "bf16" else Precision.FLOAT32,
        has_bf16=precision == "bf16",
    )
    t = time.perf_counter()
    engine = load_engine(model_id, settings=settings)
    load_s = time.perf_counter() - t
    job = EngineJob("bench", picture(int(side)))

    def run() -> None:
        engine.admit(job)
        while engine.busy:
            for event in engine.step():
                if isinstance(event, JobFailed):
                    raise event.error

    t = time.perf_counter()
    run()
    first_s = time.perf_counter() - t
    times = timed(run, at_least=5 if int(side) <= 128 else 3, longest_s=120)
    return {**times, "load_s": load_s, "first_s": first_s, "peak_mb": peak_mb()}


def child_ncnn(model_id: str, precision: str, side: str, threads: str, param: str, weights: str) -> dict[str, Any]:
    import ncnn
    import numpy as np

    t = time.perf_counter()
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = int(threads)
    net.opt.use_bf16_storage = precision == "bf16 storage"
    if net.load_param(param) or net.load_model(weights):
        raise SystemExit("ncnn cannot load the network")
    load_s = time.perf_counter() - t
    image = picture(int(side))

    def run() -> None:
        # As much as our engine does: from levels to levels.
        planes = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / np.float32(255)
        entering = ncnn.Mat(planes)  # does not keep the array alive: `planes` must outlive it
        extractor = net.create_extractor()
        extractor.input("data", entering)
        code, made = extractor.extract("output")
        if code:
            raise SystemExit("ncnn cannot run the network")
        np.rint(np.clip(np.array(made).transpose(1, 2, 0), 0, 1) * 255).astype(np.uint8)

    t = time.perf_counter()
    run()
    first_s = time.perf_counter() - t
    times = timed(run, at_least=5 if int(side) <= 128 else 3, longest_s=120)
    return {**times, "load_s": load_s, "first_s": first_s, "peak_mb": peak_mb()}


MATRIX_SIDES: Final = (1024, 2048, 4096)


def child_torch_matmul(kind: str, threads: str) -> dict[str, Any]:
    import torch

    torch.set_num_threads(int(threads))
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    results = []
    for n in MATRIX_SIDES:
        a, b = (torch.rand(n, n).to(dtype) for _ in range(2))
        seconds = timed(lambda a=a, b=b: a @ b, at_least=10, longest_s=30)["seconds"]  # type: ignore[misc]
        results.append(2 * n**3 / seconds / 1e9)
    return {"gflops": max(results), "by": f"torch {torch.__version__}, {MATRIX_SIDES[results.index(max(results))]}^3"}


def child_openvino_matmul(kind: str, threads: str) -> dict[str, Any]:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # as fourfold.engine does, and for its reasons
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    results = []
    for n in MATRIX_SIDES:
        rng = np.random.default_rng(0)
        entering = ops.parameter([n, n], np.float32)
        product = ops.matmul(entering, ops.constant(rng.random((n, n), dtype=np.float32)), False, True)
        model = ov.Model([ops.reduce_max(product, np.array([0, 1]), False)], [entering])
        properties = {"INFERENCE_PRECISION_HINT": kind, "INFERENCE_NUM_THREADS": int(threads), "NUM_STREAMS": 1}
        request = ov.Core().compile_model(model, "CPU", properties).create_infer_request()
        inputs = {0: rng.random((n, n), dtype=np.float32)}
        times = timed(lambda r=request, i=inputs: r.infer(i, share_inputs=True), at_least=10, longest_s=30)  # type: ignore[misc]
        results.append(2 * n**3 / times["seconds"] / 1e9)
    return {
        "gflops": max(results),
        "by": f"OpenVINO {ov.__version__.split('-')[0]}, {MATRIX_SIDES[results.index(max(results))]}^3",
    }


CHILDREN: Final = {
    "fourfold": child_fourfold,
    "ncnn": child_ncnn,
    "torch_matmul": child_torch_matmul,
    "openvino_matmul": child_openvino_matmul,
}


def print_rows(rows: list[dict[str, Any]], bound: dict[str, Any]) -> None:
    print()
    header = ("model", "px", "by", "precision", "s", "us/px", "GFLOP/s", "of bound", "peak MB", "load s", "first s")
    print(f"{header[0]:33} {header[1]:>4} {header[2]:9} {header[3]:13} " + " ".join(f"{h:>8}" for h in header[4:]))
    for row in rows:
        rate = flops(row["model"], row["side"]) / row["seconds"] / 1e9
        share = rate / bound["bf16" if row["precision"] == "bf16" else "f32"]["gflops"]
        mark = "*" if row["disturbed"] else " "
        print(
            f"{row['model']:33} {row['side']:>4} {row['by']:9} {row['precision']:13} {row['seconds']:>7.3f}{mark} "
            f"{row['seconds'] / row['side'] ** 2 * 1e6:>8.1f} {rate:>8.0f} {share:>8.0%} {row['peak_mb']:>8.0f} "
            f"{row['load_s']:>8.2f} {row['first_s']:>8.2f}"
        )


def judge(rows: list[dict[str, Any]], bound: dict[str, Any], side: int) -> list[dict[str, Any]]:
    """Return each goal for the default model with what was measured."""

    def pick(by: str, precision: str) -> dict[str, Any]:
        key = PHOTO, side, by, precision
        return next(r for r in rows if (r["model"], r["side"], r["by"], r["precision"]) == key)

    bf16, float32 = pick("fourfold", "bf16"), pick("fourfold", "float32")
    goals = []
    for storage in ("float32", "bf16 storage"):
        ncnn = pick("ncnn", storage)
        speed, memory = ncnn["seconds"] / bf16["seconds"], bf16["peak_mb"] / ncnn["peak_mb"]
        goals.append((f"bf16 at {speed:.2f} times the speed of ncnn {storage} (goal 1.7)", speed >= 1.7))
        goals.append((f"bf16 in {memory:.2f} of the memory of ncnn {storage} (goal 0.5)", memory <= 0.5))
    share = flops(PHOTO, side) / bf16["seconds"] / 1e9 / bound["bf16"]["gflops"]
    goals.append((f"bf16 at {share:.0%} of the bf16 matrix product (goal 90 %)", share >= 0.9))
    slower = float32["seconds"] / pick("ncnn", "float32")["seconds"]
    goals.append((f"float32 in {slower:.2f} times the time of ncnn float32 (goal 1.25)", slower <= 1.25))
    return [{"text": f"{PHOTO} {side} px: {text}", "met": met} for text, met in goals]


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
