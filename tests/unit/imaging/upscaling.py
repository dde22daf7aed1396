"""The whole way of a picture but for the processes: decode, Lanczos engine, encode."""

from pathlib import Path

import numpy as np

from fourfold.config import LimitSettings
from fourfold.engine.lanczos import read_around
from fourfold.engine.lanczos import upscale as lanczos
from fourfold.engine.tiling import Box
from fourfold.imaging import Canvas, OutputOptions, Written, files
from fourfold.imaging.values import Opened

LIMITS = LimitSettings(input_pixels=100_000_000)


def enlarged(image: np.ndarray) -> np.ndarray:
    """Return uint8 or uint16 ``[h, w, 3]`` four times as large, by the Lanczos engine."""
    height, width = image.shape[:2]
    made = np.empty((height * 4, width * 4, 3), image.dtype)
    lanczos(read_around(image, Box(0, 0, width, height)), made)
    return made


def upscale(
    source: Path, target: Path, options: OutputOptions | None = None, *, wrap_px: int = 0
) -> tuple[Opened, Written]:
    """Upscale *source* to *target*; return what was opened and what was written."""
    folder = target.with_suffix(".work")
    folder.mkdir(exist_ok=True)
    opened = files.open_canvas(source, folder, LIMITS, wrap_px=wrap_px)
    canvas = opened.canvas
    big = Canvas(folder / "output.raw", canvas.width * 4, canvas.height * 4, canvas.bits)
    with big.write() as writer:
        writer.put(0, 0, enlarged(np.array(canvas.read())))
    return opened, files.encode(big, opened.recipe, target, options or OutputOptions())
