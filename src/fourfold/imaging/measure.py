"""How near a result stays to its input, and how much fine structure it adds: read once, in strips of rows."""

import math
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyvips
from numpy.typing import NDArray

from fourfold.errors import BadResultError
from fourfold.imaging import resample
from fourfold.imaging.canvas import Canvas
from fourfold.imaging.fidelity import Measures
from fourfold.imaging.resample import REACH, SCALE, Floats

#: What a strip needs stays in a processor's cache.
_STRIP_PIXELS: Final = 131_072
#: Fine structure is looked at in strips spread over the picture, of this many pixels of the result together.
_DETAIL_PIXELS: Final = 750_000
_BEST_DB: Final = 99.0
_LUMA: Final = np.array([0.2126, 0.7152, 0.0722], np.float32)
#: Of 255: a bicubic enlargement with less structure than this is flat, and a ratio to it says nothing.
_FLAT: Final = 0.05
#: Levels of 255. A result is blank where it has no more contrast than this ...
_BLANK_CONTRAST: Final = 1.0
#: ... the input has more than this, and the result's one colour is farther than this from the input's mean.
_PLAIN_CONTRAST: Final = 32.0


class Rows(Protocol):
    """Pixels by rows, each read once, in order."""

    @property
    def width(self) -> int:
        """Pixels."""

    @property
    def height(self) -> int:
        """Pixels."""

    def rows(self, top: int, bottom: int) -> NDArray[Any]:
        """Return ``[bottom - top, width, 3]``, uint8 or uint16."""


class ImageRows:
    """The rows of an image that libvips decodes as they are asked for. Raises pyvips.Error where it is damaged."""

    def __init__(self, image: Any) -> None:
        image = image.extract_band(0, n=3) if image.bands > 3 else image
        image = image.extract_band(0).bandjoin([image.extract_band(0)] * 2) if image.bands < 3 else image
        self._image = image
        self._region = pyvips.Region.new(image)
        self._dtype = np.uint16 if image.format == "ushort" else np.uint8
        self.width: int = image.width
        self.height: int = image.height

    def rows(self, top: int, bottom: int) -> NDArray[Any]:
        """Return some rows."""
        data = self._region.fetch(0, top, self.width, bottom - top)
        return np.frombuffer(data, self._dtype).reshape(bottom - top, self.width, 3)


def measure(original: Canvas, result: Rows) -> Measures:
    """Compare *result* with the picture four times smaller that it was made of, reading all of it.

    Raises: BadResultError if *result* is one plain colour that is not the picture's, as a failed model leaves it.
    """
    strip = max(1, _STRIP_PIXELS // (result.width * SCALE))
    tops = range(0, original.height, strip)
    every = max(1, math.ceil(result.width * result.height / _DETAIL_PIXELS))
    cubic = resample.cubic_weights()
    error, ours, theirs, seen = 0.0, 0.0, 0.0, 0
    colour: Floats | None = None
    is_blank = True
    bits = 8
    for number, top in enumerate(tops):
        bottom = min(top + strip, original.height)
        large = result.rows(top * SCALE, bottom * SCALE)
        bits = 8 * large.dtype.itemsize
        averaged = _averaged(large)
        colour = averaged[0, 0] if colour is None else colour
        is_blank = is_blank and float(np.abs(averaged - colour).max()) <= _BLANK_CONTRAST
        difference = averaged - _levels(original.rows(top, bottom))
        error += float(np.square(difference).sum(dtype=np.float64))
        if number % every == every // 2 or len(tops) <= every // 2:
            ours += _structure(_luma(large))
            theirs += _structure(_bicubic(_around(original, top, bottom), cubic))
            seen += large.shape[0] * large.shape[1]
    if is_blank and colour is not None:
        _refuse_blank(original, colour)
    mean = error / (original.width * original.height * 3)
    psnr = min(_BEST_DB, 10 * math.log10(255**2 / mean)) if mean > 0 else _BEST_DB
    is_flat = seen == 0 or theirs / seen < _FLAT
    return Measures(lr_psnr_db=psnr, detail_ratio=None if is_flat else ours / theirs, bits=bits)


def _refuse_blank(original: Canvas, colour: Floats) -> None:
    """Raise BadResultError if *original* is no picture of whose upscale only *colour* could be left.

    Args: *colour*, ``float32[3]``, 0 .. 255.
    """
    low, high, total = np.full(3, np.inf), np.full(3, -np.inf), np.zeros(3)
    strip = max(1, _STRIP_PIXELS // original.width)
    for top in range(0, original.height, strip):
        small = _levels(original.rows(top, min(top + strip, original.height))).reshape(-1, 3)
        low, high = np.minimum(low, small.min(axis=0)), np.maximum(high, small.max(axis=0))
        total += small.sum(axis=0, dtype=np.float64)
    contrast = float((high - low).max())
    distance = float(np.abs(total / (original.width * original.height) - colour).max())
    if contrast > _PLAIN_CONTRAST and distance > _PLAIN_CONTRAST:
        raise BadResultError(f"expected an upscale of the picture, got one plain colour, {distance:.0f} levels from it")


def as_canvas(image: Any, path: Path) -> Canvas:
    """Write *image* to *path* as raw RGB; return the canvas. Raises: pyvips.Error where it is damaged."""
    if image.bands != 3:
        image = image.extract_band(0, n=3) if image.bands > 3 else image.extract_band(0).bandjoin([image[0]] * 2)
    canvas = Canvas(path, image.width, image.height, 16 if image.format == "ushort" else 8)
    image.rawsave(str(path))
    return canvas


def _averaged(large: NDArray[Any]) -> Floats:
    """Return the means over squares of 4 x 4 pixels, 0 .. 255."""
    height, width = large.shape[0] // SCALE, large.shape[1] // SCALE
    wide = np.uint32 if large.dtype == np.uint16 else np.uint16
    # Slices added up: numpy's own sum over a short axis takes five times as long.
    lines = large.reshape(height, SCALE, width * SCALE * 3)
    down: NDArray[Any] = lines[:, 0].astype(wide)
    for i in range(1, SCALE):
        down += lines[:, i]
    cells = down.reshape(height, width, SCALE, 3)
    sums: NDArray[Any] = cells[:, :, 0].copy()
    for i in range(1, SCALE):
        sums += cells[:, :, i]
    scale = SCALE**2 * (257 if large.dtype == np.uint16 else 1)
    means: Floats = sums.astype(np.float32) / np.float32(scale)
    return means


def _levels(samples: NDArray[Any]) -> Floats:
    levels: Floats = samples.astype(np.float32)
    if samples.dtype == np.uint16:
        levels /= np.float32(257)
    return levels


def _luma(samples: NDArray[Any]) -> Floats:
    luma: Floats = _levels(samples) @ _LUMA
    return luma


def _around(original: Canvas, top: int, bottom: int) -> NDArray[Any]:
    """Return rows with three more on either side; beyond the picture its edge is repeated."""
    wanted = np.clip(np.arange(top - REACH, bottom + REACH), 0, original.height - 1)
    seen = original.rows(int(wanted[0]), int(wanted[-1]) + 1)
    return np.asarray(seen[wanted - wanted[0]])


def _bicubic(around: NDArray[Any], weights: Floats) -> Floats:
    """Return the luma of the bicubic enlargement, rounded as a picture is: in a smooth one that is most structure."""
    planes = np.ascontiguousarray(np.moveaxis(_levels(around), -1, 0))
    made = resample.enlarge(planes, weights)
    if around.dtype == np.uint8:
        np.rint(made, out=made)
    np.clip(made, 0, 255, out=made)
    luma: Floats = np.tensordot(_LUMA, made, axes=1)
    return luma


def _structure(luma: Floats) -> float:
    """Return the sum of the absolute Laplacian: how much neighbouring pixels differ beyond a slope."""
    if min(luma.shape) < 3:
        return 0.0
    inner = luma[1:-1, 1:-1]
    laplacian = 4 * inner
    for neighbour in (luma[:-2, 1:-1], luma[2:, 1:-1], luma[1:-1, :-2], luma[1:-1, 2:]):
        laplacian -= neighbour
    np.abs(laplacian, out=laplacian)
    return float(laplacian.sum(dtype=np.float64))
