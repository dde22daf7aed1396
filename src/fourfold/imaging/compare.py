"""Two pictures side by side, and how alike they are: PSNR and SSIM."""

import math
from pathlib import Path
from typing import Any, Final

import pyvips

from fourfold.imaging import colour, formats, writing
from fourfold.imaging.values import Compared, Limits

_BEST_DB: Final = 99.0
_GAP_PX: Final = 8
_WINDOW_PX: Final = 7
# Wang, Bovik, Sheikh, Simoncelli (2004), for 8 bits.
_C1: Final = (0.01 * 255) ** 2
_C2: Final = (0.03 * 255) ** 2
_LUMA: Final = (0.2126, 0.7152, 0.0722)
_LABEL_PX: Final = 40


def compare(a: Path, b: Path, target: Path, limits: Limits) -> Compared:
    """Write *a* and *b* side by side to the PNG *target*, each under its name; return how alike they are.

    The smaller one is enlarged to the larger one's size by Lanczos; transparency is laid on white.

    Raises: InvalidImageError, UnsupportedFormatError, ImageTooLargeError, StorageFullError.
    """
    try:
        left, right = _open(a, limits), _open(b, limits)
        width, height = max((left.width, left.height), (right.width, right.height), key=math.prod)
        left, right = _at_size(left, width, height), _at_size(right, width, height)
        error = ((left.cast("float") - right.cast("float")) ** 2).avg()
        psnr = min(_BEST_DB, 10 * math.log10(255**2 / error)) if error > 0 else _BEST_DB
        ssim = _ssim(_luma(left), _luma(right))
        sides = [_labelled(image, path.name) for image, path in ((left, a), (right, b))]
        together = sides[0].join(sides[1], "horizontal", shim=_GAP_PX, background=[255.0], expand=True)
        together.pngsave(str(target), compression=3, filter="up", keep="none")
    except pyvips.Error as exc:
        target.unlink(missing_ok=True)
        writing.raise_for(exc)
    return Compared(width, height, psnr, ssim)


def _open(path: Path, limits: Limits) -> Any:
    """Return the picture upright, in 8-bit sRGB, on white, in memory: it is read several times."""
    image = formats.open_picture(path, formats.inspect(path, limits).format)[0].copy_memory().autorot()
    mask = image.extract_band(image.bands - 1) if image.hasalpha() else None
    plain = image.extract_band(0, n=image.bands - 1) if mask is not None else image
    srgb, _ = colour.to_srgb(plain, 8)
    if mask is not None:
        joined = srgb.bandjoin(colour.at_depth(mask, 8)).copy(interpretation="srgb")
        srgb = joined.flatten(background=255.0)
    return srgb.copy_memory()


def _at_size(image: Any, width: int, height: int) -> Any:
    if (image.width, image.height) == (width, height):
        return image
    made = image.resize(width / image.width, vscale=height / image.height, kernel="lanczos3")
    return made.gravity("north-west", width, height, extend="copy").copy_memory()


def _luma(image: Any) -> Any:
    return image.recomb(pyvips.Image.new_from_array([list(_LUMA)]))


def _ssim(x: Any, y: Any) -> float:
    """Return the mean SSIM over square windows."""
    side = min(_WINDOW_PX, x.width, x.height)
    window = pyvips.Image.new_from_array([[1.0] * side] * side, scale=side * side)

    def mean(image: Any) -> Any:
        return image.conv(window, precision="float")

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    values = ((2 * mx * my + _C1) * (2 * vxy + _C2)) / ((mx * mx + my * my + _C1) * (vx + vy + _C2))
    return float(values.avg())


def _labelled(image: Any, name: str) -> Any:
    """Return *image* with its *name* above it; without one where this machine has no font."""
    height = max(12, min(_LABEL_PX, image.width // 8))
    safe = "".join(c for c in name if c.isprintable()).replace("&", "&amp;").replace("<", "&lt;")
    try:
        text = pyvips.Image.text(safe, width=image.width - 4, height=height - 4)
    except pyvips.Error:
        return image
    dark = (255 - text).gravity("centre", image.width, height, extend="white")
    return dark.bandjoin([dark, dark]).copy(interpretation="srgb").join(image, "vertical")
