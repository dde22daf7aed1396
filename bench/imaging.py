"""Decode, canonical form and encode, by our codec and by Pillow doing the same: time and peak memory.

A JPEG with transparency laid apart is what few have; so the picture is what most have, a JPEG from a camera with an
orientation and a Display-P3 profile: turned upright, converted to sRGB, enlarged by nearest neighbour (not timed: it
stands for the model), converted back, written as PNG with the profile. ``python bench/imaging.py``.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PHOTO = Path(__file__).parents[1] / "examples" / "photo.jpg"
#: Millions of pixels of the result.
SIZES = (1, 16, 64)


def make(megapixels: int, path: Path) -> None:
    """Write the camera's JPEG whose result has *megapixels*."""
    import pyvips
    from PIL import Image

    side = round((megapixels * 1e6) ** 0.5 / 4 / 8) * 8
    with Image.open(PHOTO) as photo:
        large = photo.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    icc = bytes(pyvips.Operation.call("profile_load", "p3"))
    large.save(path, "jpeg", quality=92, exif=exif, icc_profile=icc)


def ours(source: Path, folder: Path, target: Path) -> float:
    """Return the seconds of our way; the pixels pass through files, as they do between our processes."""
    import numpy as np
    import pyvips

    from fourfold.config import LimitSettings
    from fourfold.imaging import Canvas, files

    pyvips.cache_set_max(0)
    pyvips.concurrency_set(1)
    started = time.perf_counter()
    opened = files.open_canvas(source, folder, LimitSettings())
    seconds = time.perf_counter() - started
    small = opened.canvas
    big = Canvas(folder / "output.raw", small.width * 4, small.height * 4)
    with big.write() as writer:
        for top in range(0, small.height, 16):
            rows = small.rows(top, min(top + 16, small.height))
            writer.put(0, top * 4, np.repeat(np.repeat(rows, 4, 0), 4, 1))
    started = time.perf_counter()
    files.encode(big, opened.recipe, target)
    return seconds + time.perf_counter() - started


def pillow(source: Path, folder: Path, target: Path) -> float:
    """Return the seconds of Pillow's way."""
    import io

    from PIL import Image, ImageCms, ImageOps

    started = time.perf_counter()
    image = Image.open(source)
    icc = image.info["icc_profile"]
    upright = ImageOps.exif_transpose(image)
    p3, srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    canonical = ImageCms.profileToProfile(upright, p3, srgb, renderingIntent=1, flags=flags)
    assert canonical is not None
    seconds = time.perf_counter() - started
    big = canonical.resize((canonical.width * 4, canonical.height * 4), Image.Resampling.NEAREST)
    started = time.perf_counter()
    result = ImageCms.profileToProfile(big, srgb, p3, renderingIntent=1, flags=flags)
    assert result is not None
    result.save(target, "png", icc_profile=icc, compress_level=3)
    return seconds + time.perf_counter() - started


def child(name: str, source: str, folder: str) -> None:
    """Do one way in this process; print its seconds, its peak memory and the size of the result."""
    target = Path(folder) / f"{name}.png"
    seconds = {"ours": ours, "pillow": pillow}[name](Path(source), Path(folder), target)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "result_bytes": target.stat().st_size}))


def main() -> None:
    """Print a table and a JSON line."""
    rows = []
    for megapixels in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "in.jpg"
            make(megapixels, source)
            facts: dict[str, object] = {"result_megapixels": megapixels}
            for name in ("ours", "pillow"):
                command = [sys.executable, __file__, name, str(source), folder]
                runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)]
                best = min(runs, key=lambda run: run["seconds"])
                facts[name] = best
                print(
                    f"{megapixels:3d} MP  {name:6s}  {best['seconds']:7.2f} s  {best['peak_bytes'] / 2**20:7.0f} MiB  "
                    f"{best['result_bytes'] / 2**20:6.1f} MiB written"
                )
            rows.append(facts)
    print(json.dumps(rows))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(*sys.argv[1:4])
    else:
        main()
