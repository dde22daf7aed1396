"""Damage pictures at random and have a codec process decode them: ``python scripts/fuzz_imaging.py [count] [seed]``.

A seeded mutator over every format that is read, those of the extras [heic] and [jxl] included. Each file must be taken
or refused with one of our errors, in bounded time and memory; a codec process that dies is replaced, and counted.
Prints what happened as one JSON line.
"""

import asyncio
import collections
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyjpegxl
from PIL import Image

from fourfold.config import LimitSettings
from fourfold.errors import FourfoldError
from fourfold.imaging import Codec

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "examples" / "photo.jpg"
HEIC = ROOT / "tests" / "unit" / "imaging" / "heic"  #: made elsewhere: what reads HEIC here cannot write it
EXPECTED = {"invalid_image", "unsupported_format", "image_too_large", "out_of_memory"}
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


def seeds(folder: Path) -> list[bytes]:
    """Return a sound picture in every format and several modes."""
    with Image.open(PHOTO) as photo:
        small = photo.convert("RGB").resize((64, 48))
    made = []
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, modes in {
        "png": ("RGB", "RGBA", "L", "P", "I;16"),
        "jpeg": ("RGB", "L", "CMYK"),
        "webp": ("RGB", "RGBA"),
        "gif": ("P",),
        "tiff": ("RGB", "L", "CMYK"),
        "avif": ("RGB", "RGBA"),
        "bmp": ("RGB", "L", "P"),
    }.items():
        for mode in modes:
            path = folder / f"seed-{mode.replace(';', '')}.{kind}"
            image = small.convert("L").convert(mode) if mode == "I;16" else small.convert(mode)
            options = {} if kind in ("gif", "bmp") else {"exif": exif}
            image.save(path, kind, **options)
            made.append(path.read_bytes())
    made += [pyjpegxl.encode_from_numpy(np.asarray(small), lossless=is_lossless) for is_lossless in (True, False)]
    return made + [path.read_bytes() for path in sorted(HEIC.glob("*.heic"))]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return *data* with some damage of one or several kinds."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(changed)) if rng.random() < 0.5 else rng.randrange(min(len(changed), 200))
        match rng.randrange(7):
            case 0:
                changed[at] = rng.randrange(256)
            case 1:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                changed[at : at + 4] = rng.choice(INTERESTING).to_bytes(1, "big") * 4
            case 3:
                del changed[at : at + rng.randrange(1, 64)]
            case 4:
                changed[at:at] = rng.randbytes(rng.randrange(1, 64))
            case 5:
                piece = changed[at : at + rng.randrange(1, 256)]
                changed[at:at] = piece * rng.randrange(1, 4)
            case _:
                del changed[rng.randrange(len(changed)) :]
        if not changed:
            return b"\0"
    return bytes(changed)


async def fuzz(count: int, seed: int, folder: Path) -> dict[str, object]:
    """Try *count* damaged files; return what happened."""
    rng = random.Random(seed)
    originals = seeds(folder)
    outcomes: collections.Counter[str] = collections.Counter()
    started, slowest_s, peak = time.monotonic(), 0.0, 0
    pids = set()
    async with Codec(timeout_s=20, memory_bytes=2**30) as codec:
        for number in range(count):
            work = folder / f"{number}"
            work.mkdir()
            (work / "in").write_bytes(mutate(rng.choice(originals), rng))
            began = time.monotonic()
            try:
                await codec.prepare(work / "in", work, LimitSettings())
                outcomes["taken"] += 1
            except FourfoldError as exc:
                assert exc.code in EXPECTED, (number, exc)
                outcomes[exc.code + (" (process died)" if "codec process" in exc.message else "")] += 1
            slowest_s = max(slowest_s, time.monotonic() - began)
            for path in work.iterdir():
                path.unlink()
            work.rmdir()
            if number % 50 == 0:
                for child in psutil.Process().children():
                    pids.add(child.pid)
                    peak = max(peak, child.memory_info().rss)
    return {
        "count": count,
        "seed": seed,
        "outcomes": dict(outcomes),
        "processes": len(pids),
        "slowest_s": round(slowest_s, 2),
        "peak_mb": peak // 2**20,
        "seconds": round(time.monotonic() - started, 1),
    }


if __name__ == "__main__":
    count, seed = ([int(text) for text in sys.argv[1:]] + [10_000, 1][len(sys.argv) - 1 :])[:2]
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(asyncio.run(fuzz(count, seed, Path(place)))))
