"""The operations of a codec process: from file to file, in bounded memory."""

from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import pyvips
from numpy.typing import NDArray

from fourfold.config import LimitSettings
from fourfold.errors import BadResultError, InvalidImageError, StorageFullError, UnsupportedFormatError
from fourfold.imaging import formats
from fourfold.imaging.canonical import from_canonical, to_canonical
from fourfold.imaging.canvas import Canvas
from fourfold.imaging.values import Opened, Prepared, Recipe

#: Level 3 with one fixed filter: a third of the time of libvips' own default at the same size.
_PNG_RESULT: Final = {"compression": 3, "filter": "up", "strip": True}
#: A hop inside the network: speed counts, size hardly.
_PNG_HOP: Final = {"compression": 1, "filter": "up", "strip": True}
_VERIFY_LIMITS: Final = LimitSettings(input_pixels=100_000_000, side_px=2**17)


def prepare(source: Path, folder: Path, limits: LimitSettings) -> Prepared:
    """Bring *source* to canonical form, encoded; a file that is canonical already passes untouched.

    Every pixel is decoded, so that damage shows here and not at a worker.

    Raises: InvalidImageError, UnsupportedFormatError, ImageTooLargeError: see :func:`formats.inspect`; damaged pixels.
        StorageFullError: *folder* cannot take the copy.
    """
    header = formats.inspect(source, limits)
    image, recipe = _canonical(source, header.format, folder)
    if _is_canonical(source, header.format, recipe):
        _decode_all(image)
        return Prepared(source, header.width, header.height, recipe)
    target = folder / "canonical.png"
    _save_png(image, target, _PNG_HOP)
    return Prepared(target, header.width, header.height, recipe)


def open_canvas(source: Path, folder: Path, limits: LimitSettings) -> Opened:
    """Bring *source* to canonical form, decoded into ``folder/input.raw``. Raises: as :func:`prepare`."""
    header = formats.inspect(source, limits)
    image, recipe = _canonical(source, header.format, folder)
    canvas = Canvas(folder / "input.raw", header.width, header.height)
    try:
        image.rawsave(str(canvas.path))
    except pyvips.Error as exc:
        _raise_for(exc)
    return Opened(canvas, recipe)


def encode(canvas: Canvas, recipe: Recipe, target: Path) -> None:
    """Write *canvas* as a PNG, with what *recipe* took away put back. Raises: StorageFullError."""
    image = pyvips.Image.rawload(str(canvas.path), canvas.width, canvas.height, 3).copy(interpretation="srgb")
    _save_png(from_canonical(image, recipe), target, _PNG_RESULT)


def finish(source: Path, recipe: Recipe, target: Path) -> None:
    """Write the upscaled *source* as a PNG with what *recipe* took away put back.

    Raises: BadResultError if *source* cannot be decoded; StorageFullError.
    """
    try:
        image = formats.load(source, formats.sniff(source))
        _save_png(from_canonical(image, recipe), target, _PNG_RESULT)
    except InvalidImageError as exc:
        raise BadResultError(f"the upscaled picture cannot be read: {exc}") from exc


def verify(source: Path, width: int, height: int) -> None:
    """Decode the whole of *source*. Raises: BadResultError if it is no sound picture of *width* x *height*."""
    try:
        kind = formats.sniff(source)
        if kind == "png":
            formats.check_png_chunks(source)
        image = formats.load(source, kind)
        if (image.width, image.height) != (width, height):
            raise BadResultError(f"expected {width} x {height} pixels, got {image.width} x {image.height}")
        _decode_all(image)
    except (InvalidImageError, UnsupportedFormatError) as exc:
        raise BadResultError(f"expected a picture of {width} x {height} pixels: {exc}") from exc


def thumbnail(canvas: Canvas, side_px: int) -> NDArray[np.uint8]:
    """Return the canvas shrunk to fit *side_px*, uint8 ``[h, w, 3]``; the aspect is kept."""
    image = pyvips.Image.rawload(str(canvas.path), canvas.width, canvas.height, 3).copy(interpretation="srgb")
    small = image.thumbnail_image(side_px, height=side_px, size="down")
    return np.asarray(small.numpy(), dtype=np.uint8).reshape(small.height, small.width, 3)


def _canonical(source: Path, kind: str, folder: Path) -> tuple[Any, Recipe]:
    """Open *source* and bring it to canonical form, lazily."""
    try:
        return to_canonical(
            formats.load(source, kind), folder / "alpha.png", scan_alpha=lambda: formats.load(source, kind)
        )
    except pyvips.Error as exc:
        _raise_for(exc)


def _is_canonical(source: Path, kind: str, recipe: Recipe) -> bool:
    """Whether the file's own bytes may travel on: opaque upright 8-bit RGB without a profile, PNG or JPEG."""
    if kind not in ("png", "jpeg") or not recipe.is_identity:
        return False
    image = formats.load(source, kind)
    plain = image.interpretation == "srgb" and image.format == "uchar" and image.bands == 3
    upright = "orientation" not in image.get_fields() or image.get("orientation") == 1
    return plain and upright and not image.get_typeof("icc-profile-data")


def _decode_all(image: Any) -> None:
    """Read every pixel and keep none."""
    try:
        image.avg()
    except pyvips.Error as exc:
        _raise_for(exc)


def _save_png(image: Any, target: Path, options: dict[str, Any]) -> None:
    try:
        image.pngsave(str(target), **options)
    except pyvips.Error as exc:
        target.unlink(missing_ok=True)
        _raise_for(exc)


def _raise_for(exc: pyvips.Error) -> NoReturn:
    """Tell a full disk, by the system's own words, from a damaged picture."""
    detail = exc.detail.lower()
    if "no space left" in detail or "quota exceeded" in detail or "file too large" in detail:
        raise StorageFullError("the picture cannot be kept: no space left; try again later") from exc
    formats.refuse(exc)
