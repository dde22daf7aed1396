"""Transparency: taken off before the model runs, enlarged apart from the colours, and put back.

What lies under full transparency is often black or white and nobody's intention; a model would draw it into the visible
edge. So colour is first bled outward: nearby from the neighbours, further out from ever coarser means. All of it in
strips of rows from file to file, as a picture may be larger than memory.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fourfold.imaging.canvas import Canvas
from fourfold.imaging.resample import REACH, SCALE, Floats, lanczos_weights
from fourfold.imaging.resample import enlarge as enlarged

_STRIP_SAMPLES: Final = 4_000_000
_NEAR_PX: Final = 3  #: how far colour is taken from the pixels around; further out from coarse means
_COARSER: Final = 4
#: An edge of a hard mask rises over one input pixel when it is interpolated; this makes it one output pixel.
_STEEPNESS: Final = 4.0


def separate(rgba: Canvas, colour: Canvas, alpha: Canvas) -> str:
    """Split *rgba* into *colour*, bled outward under transparency, and *alpha*; return what the transparency is.

    Returns: "opaque" (then only *colour* is written), "hard" (only 0 and full) or "soft".
    """
    peak = np.iinfo(rgba.dtype).max
    kind, sums = _survey(rgba, peak)
    coarse = _fill(sums) if kind != "opaque" and sums[..., 3].any() else None
    with colour.write() as colours:
        for top, bottom in _strips(rgba):
            colours.put(0, top, _bled(rgba, top, bottom, coarse))
    if kind != "opaque":
        with alpha.write() as alphas:
            for top, bottom in _strips(rgba):
                alphas.put(0, top, rgba.rows(top, bottom)[..., 3:])
    return kind


def enlarge(small: Canvas, big: Canvas, *, is_hard: bool) -> None:
    """Fill *big*, four times *small*, one band, by Lanczos-3; the edges of a hard mask are made one pixel wide again.

    The grid is the models': output pixel 4 i + k lies (k + 0.5) / 4 into input pixel i; beyond the border it repeats.
    """
    peak = float(np.iinfo(small.dtype).max)
    weights = lanczos_weights()
    with big.write() as target:
        for top, bottom in _strips(small, grown=SCALE**2):
            rows = np.clip(np.arange(top - REACH, bottom + REACH), 0, small.height - 1)
            block = small.rows(int(rows[0]), int(rows[-1]) + 1)[rows - rows[0], :, 0]
            if block.min() == block.max():
                made = np.full(((bottom - top) * SCALE, big.width), block[0, 0], small.dtype)
            else:
                values = block.astype(np.float32) / np.float32(peak)
                wide = enlarged(values, weights)
                if is_hard:
                    wide = (wide - np.float32(0.5)) * np.float32(_STEEPNESS) + np.float32(0.5)
                made = np.rint(np.clip(wide, 0, 1) * np.float32(peak)).astype(small.dtype)
            target.put(0, top * SCALE, np.ascontiguousarray(made[..., None]))


def _strips(canvas: Canvas, *, grown: int = 4) -> Iterator[tuple[int, int]]:
    """Yield top and bottom of strips of about equal work."""
    rows = max(1, _STRIP_SAMPLES // (canvas.width * grown))
    for top in range(0, canvas.height, rows):
        yield top, min(top + rows, canvas.height)


def _survey(rgba: Canvas, peak: int) -> tuple[str, Floats]:
    """Return what the transparency is, and sums of colour x alpha and of alpha over cells of 4 x 4 pixels."""
    cells_high, cells_wide = -(-rgba.height // _COARSER), -(-rgba.width // _COARSER)
    sums = np.zeros((cells_high, cells_wide, 4), np.float32)
    is_opaque = is_hard = True
    for top, bottom in _strips(rgba):
        block = rgba.rows(top, bottom)
        alpha = block[..., 3]
        if alpha.min() < peak:
            is_opaque = False
            is_hard = is_hard and bool(((alpha == 0) | (alpha == peak)).all())
        weighted = _weighted(block, peak)
        rows = np.add.reduceat(weighted, np.arange(0, rgba.width, _COARSER), axis=1)
        np.add.at(sums, np.arange(top, bottom) // _COARSER, rows)
    return "opaque" if is_opaque else "hard" if is_hard else "soft", sums


def _weighted(block: NDArray[Any], peak: int) -> Floats:
    """Return colour x alpha and alpha of ``[h, w, 4]`` samples, both 0 .. 1 and so on."""
    weighted = block.astype(np.float32) / np.float32(peak)
    weighted[..., :3] *= weighted[..., 3:]
    return weighted


def _fill(sums: Floats) -> Floats:
    """Return the colour of every cell, 0 .. 1: its own mean, or where it has none that of coarser cells around it."""
    alpha = sums[..., 3:]
    mean = np.divide(sums[..., :3], alpha, out=np.zeros_like(sums[..., :3]), where=alpha > 0)
    if (alpha > 0).all() or max(sums.shape[:2]) == 1:
        return mean
    height, width = sums.shape[:2]
    coarser = np.add.reduceat(sums, np.arange(0, height, _COARSER), axis=0)
    coarser = np.add.reduceat(coarser, np.arange(0, width, _COARSER), axis=1)
    around = _interpolated(_fill(coarser), np.arange(height), width)
    return np.where(alpha > 0, mean, around)


def _interpolated(coarse: Floats, rows: NDArray[Any], width: int) -> Floats:
    """Return *rows* of *coarse* enlarged by four to *width*, linearly."""
    down = np.clip((rows + 0.5) / _COARSER - 0.5, 0, coarse.shape[0] - 1)
    across = np.clip((np.arange(width) + 0.5) / _COARSER - 0.5, 0, coarse.shape[1] - 1)
    upper, left = down.astype(int), across.astype(int)
    lower, right = np.minimum(upper + 1, coarse.shape[0] - 1), np.minimum(left + 1, coarse.shape[1] - 1)
    v = (down - upper).astype(np.float32)[:, None, None]
    u = (across - left).astype(np.float32)[None, :, None]
    first, last = int(upper[0]), int(lower[-1]) + 1
    band = coarse[first:last]
    columns = band[:, left] * (1 - u) + band[:, right] * u
    made: Floats = columns[upper - first] * (1 - v) + columns[lower - first] * v
    return made


def _bled(rgba: Canvas, top: int, bottom: int, coarse: Floats | None) -> NDArray[Any]:
    """Return the colours of some rows, those of fully transparent pixels replaced."""
    first, last = max(0, top - _NEAR_PX), min(rgba.height, bottom + _NEAR_PX)
    block = rgba.rows(first, last)
    inner = slice(top - first, bottom - first)
    colours = np.ascontiguousarray(block[inner, :, :3])
    hidden = block[inner, :, 3] == 0
    if coarse is None or not hidden.any():
        return colours
    peak = np.iinfo(rgba.dtype).max
    near = _box_sums(_weighted(block, peak), _NEAR_PX)[inner]
    far = _interpolated(coarse, np.arange(top, bottom), rgba.width)
    alpha = near[..., 3:]
    has_neighbours = alpha > 0.5 / peak
    found = np.where(has_neighbours, near[..., :3] / np.where(has_neighbours, alpha, 1), far)
    colours[hidden] = np.rint(np.clip(found[hidden], 0, 1) * np.float32(peak)).astype(rgba.dtype)
    return colours


def _box_sums(values: Floats, radius: int) -> Floats:
    """Return, for each pixel, the sum over the square of *radius* around it, as far as the array goes."""
    for axis in (0, 1):
        padded = np.pad(values, [(radius, radius) if a == axis else (0, 0) for a in range(values.ndim)])
        total = np.zeros_like(values)
        for shift in range(2 * radius + 1):
            total += (
                padded[shift : shift + values.shape[0]] if axis == 0 else padded[:, shift : shift + values.shape[1]]
            )
        values = total
    return values
