"""Send thousands of pictures through a whole network and watch its memory and open files: they must not grow.

Sizes, formats and clients vary by a seed; some uploads are damaged and some clients leave. Prints a table, one line for
each tenth of the run, and a JSON line; the exit status is 1 if something grew.

    .venv/bin/python bench/soak.py [--requests 5000] [--clients 4] [--seed 1]
"""

import argparse
import io
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
from PIL import Image

from fourfold.testing.processes import Running
from fourfold.testing.running_network import FAST_MODEL, post, result_size, running_network

#: Growth from the end of the first fifth to the end, beyond which something leaks.
MOST_GROWTH_MIB, MOST_GROWTH_FILES = 40.0, 10
#: The store of results is bounded, so that a long run does not fill a disk.
SETTINGS = "[gateway]\nresult_bytes = 50_000_000\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), options.requests, options.clients, options.seed)
    print(json.dumps(report))
    sys.exit(0 if report["is_flat"] else 1)


def soak(folder: Path, requests: int, clients: int, seed: int) -> dict[str, Any]:
    """Run the network and the clients; return what was seen."""
    pictures = make_pictures(seed)
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()
    numbers = iter(range(requests))

    def client(number: int) -> None:
        dice = random.Random(seed * 1000 + number)
        while True:
            with lock:
                if next(numbers, None) is None:
                    return
            outcome = one_request(network.ready["gateway"], dice, pictures)
            with lock:
                outcomes[outcome] += 1

    samples: list[dict[str, Any]] = []
    with running_network(folder, SETTINGS, models=(FAST_MODEL,)) as network:
        began = time.monotonic()
        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for tenth in range(1, 11):
            while sum(outcomes.values()) < requests * tenth // 10 and any(thread.is_alive() for thread in threads):
                time.sleep(0.05)
            samples.append(sample(network, sum(outcomes.values()), time.monotonic() - began))
            print(", ".join(f"{name} {value}" for name, value in samples[-1].items()), flush=True)
        for thread in threads:
            thread.join()
    growth = {name: round(samples[-1][name] - samples[1][name], 1) for name in samples[0] if name not in ("done", "s")}
    is_flat = all(
        grown <= (MOST_GROWTH_FILES if name.endswith("files") else MOST_GROWTH_MIB) for name, grown in growth.items()
    )
    is_sound = not any(name.startswith(("5", "no answer", "wrong")) for name in outcomes)
    print(f"outcomes: {dict(outcomes)}; growth: {growth}: {'flat' if is_flat else 'NOT flat'}")
    return {
        "bench": "soak",
        "requests": requests,
        "seconds": samples[-1]["s"],
        "outcomes": dict(outcomes),
        "growth": growth,
        "is_flat": is_flat and is_sound,
    }


def make_pictures(seed: int) -> Mapping[str, tuple[bytes, tuple[int, int] | None]]:
    """Return uploads by name, each with the size of its result, None where it is to be refused."""
    dice = np.random.default_rng(seed)
    found: dict[str, tuple[bytes, tuple[int, int] | None]] = {}
    for kind in ("png", "jpeg", "webp"):
        for width, height in ((16, 16), (64, 48), (200, 133)):
            stream = io.BytesIO()
            Image.fromarray(dice.integers(0, 256, (height, width, 3), np.uint8)).save(stream, kind)
            found[f"{kind} {width}"] = stream.getvalue(), (4 * width, 4 * height)
    found["cut"] = found["png 64"][0][:500], None
    found["noise"] = dice.bytes(2000), None
    return found


def one_request(gateway: str, dice: random.Random, pictures: Mapping[str, tuple[bytes, tuple[int, int] | None]]) -> str:
    """Send one picture, or leave in the middle; return what came of it."""
    upload, expected = pictures[dice.choice(list(pictures))]
    try:
        if dice.random() < 0.03:
            post(gateway, upload, timeout_s=0.02)
            return "left"
        reply = post(gateway, upload)
        if expected is None:
            return str(reply.status_code) if reply.status_code != 200 else "wrong success"
        if reply.status_code == 200 and result_size(reply) != expected:
            return "wrong size"
        return str(reply.status_code)
    except httpx2.TimeoutException:
        return "left"
    except httpx2.TransportError as exc:
        return f"no answer: {type(exc).__name__}"


def sample(network: Running, done: int, seconds: float) -> dict[str, Any]:
    """Return memory (MiB) and open files of each role, its children included."""
    found: dict[str, Any] = {"done": done, "s": round(seconds, 1)}
    for role in ("gateway", "orchestrator", "worker"):
        process = network.descendants(role, "--supervised")[0]
        family = [process, *(child for child in process.children() if "--supervised" not in child.cmdline())]
        memory = 0
        for member in family:
            try:
                memory += member.memory_full_info().uss
            except psutil.Error:
                continue
        found[f"{role}_mib"] = round(memory / 2**20, 1)
        found[f"{role}_files"] = process.num_fds()
    return found


if __name__ == "__main__":
    main()
