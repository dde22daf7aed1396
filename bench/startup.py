"""Measure how long `fourfold up` takes to be ready, and what each role holds in memory while nothing happens.

Prints a table and a JSON line. Ready is the ready line; the first picture by the fast model comes right after it.

    .venv/bin/python bench/startup.py [--runs 5]
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from fourfold.testing.pictures import png
from fourfold.testing.processes import kind_of, running
from fourfold.testing.running_network import post

TARGET_S = 3.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    times = []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            times.append(one_start(Path(folder)))
            print(", ".join(f"{name} {value}" for name, value in times[-1].items() if name != "memory_mib"), flush=True)
    ready_s = statistics.median(run["ready_s"] for run in times)
    memory = times[-1]["memory_mib"]
    for kind, mib in memory.items():
        print(f"{kind:>14} {mib:>7.0f} MiB")
    print(f"ready after {ready_s:.2f} s (median); target {TARGET_S:g}: {'met' if ready_s <= TARGET_S else 'NOT met'}")
    print(json.dumps({"bench": "startup", "ready_s": ready_s, "runs": times, "load": psutil.getloadavg()[0]}))


def one_start(folder: Path) -> dict[str, Any]:
    """Start a network with the defaults, use it once and look at it."""
    began = time.perf_counter()
    with running("up", "--data-dir", str(folder), "--port", "0", "--orchestrator-port", "0") as network:
        ready_s = time.perf_counter() - began
        assert post(network.ready["gateway"], png()).status_code == 200
        first_s = time.perf_counter() - began
        time.sleep(5)  # idle: the warm model is loaded, the first picture forgotten
        memory: dict[str, float] = {}
        for process in [psutil.Process(network.process.pid), *network.descendants()]:
            kind = kind_of(process)
            memory[kind] = round(memory.get(kind, 0) + process.memory_full_info().uss / 2**20, 1)
    return {"ready_s": round(ready_s, 2), "first_picture_s": round(first_s, 2), "memory_mib": memory}


if __name__ == "__main__":
    main()
