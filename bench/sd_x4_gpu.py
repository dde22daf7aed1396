"""Measure the diffusion engine on a GPU against the stock pipeline, warm, in one run, and against what the GPU can do.

Random weights at the real widths (5.3 GB). Stock is diffusers in float16 with its float32 decode and SDPA; 75 DDIM
steps, guidance 9. Parts run one after another, each in a process of its own; one that fails is told and the others go
on. At the end every goal has a line: what was measured, and whether it is met. On an H100 with 16 cores all of it takes
some 25 minutes, half of that the first compilation of each shape; with ``--seconds`` no part begins that would
probably not end in that time, and the same command with the same ``--json`` and ``--folder`` then goes on.

The GPU must be idle. ``--cpu-smoke`` tries every path on a CPU with a tiny model: its numbers mean nothing.

    .venv/bin/python bench/sd_x4_gpu.py [--part NAME ...] [--seconds N] [--json FILE] [--folder FOLDER] [--eager]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fourfold.engine.devices import prepare_environment

PARTS_SCRIPT = Path(__file__).with_name("sd_x4_gpu_parts.py")
GIB = 2**30
#: The parts in the order of their running, and about how long each takes on an H100 at its first time, seconds.
PART_TO_SECONDS: Mapping[str, int] = {
    "start": 200,
    "kernels": 300,
    "steps": 90,
    "speed-128": 100,
    "speed-512": 180,
    "decode": 50,
    "batch": 90,
    "exact": 120,
    "memory": 180,
    "memory-expandable": 180,
    "speed-256": 90,
    "speed-768": 220,
    "strict": 150,
}
#: The goals of a whole picture: times faster than stock, share of the bf16 matrix product's rate.
SIZE_TO_GOALS = {128: (2.5, 0.55), 256: (1.9, 0.60), 512: (2.8, 0.65), 768: (4.0, 0.65)}

Report = dict[str, dict[str, Any]]


class Goal(NamedTuple):
    """A line of the issue."""

    part: str
    what: str
    goal: str
    measured: Callable[[dict[str, Any]], Any]  #: of the part's numbers; KeyError: not measured
    is_met: Callable[[Any], bool]


def goals() -> Iterator[Goal]:
    """Yield every goal, by part."""
    for size, (ratio, share) in SIZE_TO_GOALS.items():
        part = f"speed-{size}"
        yield _at_least(part, f"{size} px, exact, times stock", ratio, lambda found: found["ratio"])
        yield _at_least(part, f"{size} px, share of matmul rate", share, lambda found: found["of_matmul_rate"])
        if size in (128, 512):
            yield _at_least(part, f"{size} px, fast mode, times stock", 5, lambda found: found["fast_ratio"])
    for size in (128, 256):
        key = str(size)
        yield _at_least("exact", f"{size} px, PSNR to float32, dB", 50, lambda found, key=key: found[key]["psnr_db"])
    yield _at_most("decode", "512 -> 2048, decode, s", 0.6, lambda found: found["seconds"])
    yield _at_most("decode", "512 -> 2048, decode, GiB", 5, lambda found: found["peak"]["allocated_bytes"] / GIB)
    for name, what in (("whole", "1024 px whole"), ("tiled", "2048 px in tiles")):
        held: Callable[[Any], Any] = lambda found, name=name: found[name]["held_bytes"] / GIB  # noqa: E731
        yield _at_most("memory", f"{what}, all of the card, GiB", 24, held)
        tries: Callable[[Any], Any] = lambda found, name=name: found[name]["retries"]  # noqa: E731
        yield _at_most("memory", f"{what}, times out of memory", 0, tries)
    yield Goal("memory", "1024 px, tiles", "1", lambda found: found["whole"]["tiles"], lambda tiles: tiles == 1)
    yield _at_least("batch", "8 at once, times one by one", 1.5, lambda found: found["of_sequential"])
    yield _at_least("batch", "8 at once, times stock", 3.5, lambda found: found["of_stock"])
    yield _at_most("batch", "8 at once, p95, times solo", 2.5, lambda found: found["p95_of_solo"])
    yield _at_most("steps", "128 px, host, ms a step", 1, lambda found: found["compiled"]["host_ms"])
    for name in ("compiled", "eager"):
        waits: Callable[[Any], Any] = lambda found, name=name: (  # noqa: E731
            found[name]["waits"] + sum(found[name]["profile"]["waits"].values())
        )
        yield _at_most("steps", f"128 px, {name}, waits for the GPU", 0, waits)
    yield _at_most("steps", "tiles, waits for the GPU", 0, lambda found: found["tiled_waits"])
    yield _at_most("start", "load from disk, s", 5, lambda found: found["load_from_disk_s"])
    yield Goal(
        "start",
        "first answer while compiling, s",
        "before compiled",
        lambda found: (round(found["first_s"], 2), round(found["compiled_after_s"], 2)),
        lambda seconds: seconds[0] < seconds[1],
    )
    for name in ("compiled", "eager"):
        wrong: Callable[[Any], Any] = lambda found, name=name: found[name]["differ"]  # noqa: E731
        yield _at_most("strict", f"of 50 mixes, {name}, that differ", 0, wrong)


def _at_least(part: str, what: str, least: float, measured: Callable[[Any], Any]) -> Goal:
    return Goal(part, what, f">= {least:g}", measured, lambda value: value >= least)


def _at_most(part: str, what: str, most: float, measured: Callable[[Any], Any]) -> Goal:
    return Goal(part, what, f"<= {most:g}", measured, lambda value: value <= most)


def verdicts(report: Report) -> list[dict[str, Any]]:
    """Return a line for each goal: measured, and met or not; None where nothing was measured."""
    lines = []
    for goal in goals():
        try:
            value = goal.measured(report[goal.part])
        except KeyError:
            value = None
        is_met = None if value is None else bool(goal.is_met(value))
        lines.append({"part": goal.part, "what": goal.what, "goal": goal.goal, "measured": value, "met": is_met})
    return lines


def show(lines: list[dict[str, Any]]) -> None:
    """Print the verdicts."""
    print(f"\n{'':34} {'goal':>16} {'measured':>16}")
    for line in lines:
        value = line["measured"]
        text = "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
        word = {None: "not measured", True: "met", False: "NOT MET"}[line["met"]]
        print(f"{line['what']:34} {line['goal']:>16} {text:>16} {word}")


def run_part(name: str, options: argparse.Namespace, *, limit_s: float | None) -> dict[str, Any]:
    """Run a part in a process of its own, show what it says, and return its numbers, also those before a failure."""
    command = [sys.executable, "-u", str(PARTS_SCRIPT), "--part", name, "--folder", str(options.folder)]
    command += ["--eager"] * options.eager + ["--cpu-smoke"] * options.cpu_smoke
    # What torch may do against gaps between its allocations; the name that all versions know.
    expandable = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} if name.endswith("-expandable") else {}
    found: dict[str, Any] = {}
    print(f"\n== {name}", flush=True)
    started = time.monotonic()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, **pipes, text=True, env=os.environ | expandable) as child:
        assert child.stdout is not None
        timer = threading.Timer(limit_s, child.kill) if limit_s else None
        if timer:
            timer.start()
        last: list[str] = []
        for line in child.stdout:
            if line.startswith("@@ "):
                found |= json.loads(line[3:])
            print(line, end="", flush=True)
            last = [*last[-19:], line]
        status = child.wait()
        if timer:
            timer.cancel()
    found["took_s"] = time.monotonic() - started
    if status != 0:
        why = "it took too long and was ended" if status < 0 and timer else f"it ended with status {status}"
        found["failed"] = f"{why}: {''.join(last)[-1500:]}"
    return found


def prepare(options: argparse.Namespace) -> None:
    """Write the model where it is not yet."""
    if (options.folder / "model_index.json").is_file():
        return
    from fourfold.testing.sd_x4 import REAL, TINY, write_pipe

    started = time.monotonic()
    partial = options.folder / "partial"
    write_pipe(partial, TINY if options.cpu_smoke else REAL, half=True)
    for path in partial.iterdir():
        path.rename(options.folder / path.name)
    print(f"the model was written in {time.monotonic() - started:.0f} s", flush=True)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the numbers depend on beside the code; asked in a process of its own, as asking takes GPU memory."""
    facts = run_part("machine", options, limit_s=None)
    if "failed" in facts:
        raise SystemExit("without a GPU, --cpu-smoke tries the benchmark")
    return {"kernels": "eager" if options.eager else "compiled", "smoke": options.cpu_smoke, **facts}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", nargs="*", choices=[*PART_TO_SECONDS], help="these only, again where they are done")
    parser.add_argument("--seconds", type=float, help="begin no part that would probably end later")
    parser.add_argument("--json", type=Path, help="the results, written after each part; parts in it are not run again")
    parser.add_argument("--folder", type=Path, help="of the model and of compiled kernels; kept")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--cpu-smoke", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options.folder = options.folder or Path(folder)
        options.folder.mkdir(parents=True, exist_ok=True)
        sys.exit(measure(options))


def measure(options: argparse.Namespace) -> int:
    """Run what is to be run; return 1 if a part failed, else 0."""
    started = time.monotonic()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(options.folder / "kernels"))
    prepare_environment(os.environ)  # as a worker's child does
    facts = machine(options)
    prepare(options)
    report: Report = {}
    if options.json and options.json.is_file():
        report = json.loads(options.json.read_text())["parts"]
    failed = False
    for name, usual_s in PART_TO_SECONDS.items():
        if not is_wanted(name, report, options.part):
            continue
        left_s = options.seconds - (time.monotonic() - started) if options.seconds else None
        if left_s is not None and left_s < usual_s:
            print(f"\n== {name}: not begun, as it takes some {usual_s} s and {left_s:.0f} are left")
            continue
        report[name] = run_part(name, options, limit_s=left_s)
        failed = failed or "failed" in report[name]
        if options.json:
            write(options.json, facts, report)
    lines = verdicts(report)
    for name, found in report.items():
        for problem in [*found.get("problems", []), *([found["failed"]] if "failed" in found else [])]:
            print(f"\n{name}: {problem}")
    show(lines)
    print(json.dumps({"bench": "sd_x4_gpu", **facts, "goals": lines, "parts": report}))
    return int(failed)


def is_wanted(name: str, report: Report, parts: list[str] | None) -> bool:
    """Whether a part is to be run: as told, else where it has not been, or not to its end."""
    if parts:
        return name in parts
    if name == "memory-expandable" and all(line["met"] for line in verdicts(report) if line["part"] == "memory"):
        return False
    return name not in report or "failed" in report[name]


def write(path: Path, facts: Mapping[str, Any], report: Report) -> None:
    """Write all that is known so far; a reader never sees half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(
        json.dumps({"bench": "sd_x4_gpu", **facts, "goals": verdicts(report), "parts": report}, indent=1)
    )
    partial.rename(path)


if __name__ == "__main__":
    main()
