"""An 8192 x 8192 picture through a worker and its Lanczos engine: time, and the peak memory of each process.

``python bench/large.py [side]``. Needs about 15 bytes of disk for each pixel of the result in the temporary folder.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyvips

from fourfold.compose.worker import local_worker
from fourfold.config import Settings
from fourfold.worker.orders import WorkOrder

PHOTO = Path(__file__).parents[1] / "examples" / "photo.jpg"


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process has held, shared and mapped pages included."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def make(side: int, path: Path) -> None:
    """Write a PNG of *side* x *side*: the photo again and again, with noise on it."""
    photo = pyvips.Image.new_from_file(str(PHOTO))
    tiled = photo.replicate(-(-side // photo.width), -(-side // photo.height)).crop(0, 0, side, side)
    noise = pyvips.Image.gaussnoise(side, side, mean=0, sigma=4)
    (tiled + noise).cast("uchar").copy(interpretation="srgb").pngsave(str(path), compression=1)


async def run(source: Path, side: int) -> dict[str, object]:
    """Upscale *source*; return the numbers."""
    settings = Settings.model_validate(
        {"worker": {"limits": {"input_pixels": 100_000_000}, "job_timeout_s": 1800, "memory_bytes": 2**29}}
    )
    async with local_worker(settings, "fourfold/lanczos") as worker:
        with worker.admit("bench") as folder:
            started = time.monotonic()
            done = await worker.upscale(WorkOrder("bench", source, "fourfold/lanczos"), folder)
            seconds = time.monotonic() - started
            size = done.path.stat().st_size
        peaks = {"parent": peak_bytes(os.getpid())}
        for child in psutil.Process().children():
            name = next((part for part in child.cmdline() if part.startswith("fourfold.")), "other")
            peaks[name] = peak_bytes(child.pid)
    assert (done.width, done.height) == (4 * side, 4 * side)
    stages = {name: round(value, 1) for name, value in done.stages_s.items()}
    return {"side": side, "seconds": round(seconds, 1), "stages_s": stages, "result_bytes": size, "peak_bytes": peaks}


def main() -> None:
    """Print a table and a JSON line."""
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 8192
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.png"
        make(side, source)
        facts = asyncio.run(run(source, side))
    for name, peak in facts["peak_bytes"].items():  # type: ignore[attr-defined]
        print(f"{name:28s} {peak / 2**20:8.0f} MiB")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
