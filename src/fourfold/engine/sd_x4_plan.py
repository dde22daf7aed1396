"""What a job will compute, decided before anything runs: padding, tiles, memory. Pure.

A picture is padded at its right and lower edge to a multiple of 64, which keeps all four levels of the UNet even and
gives few shapes; a side below 64 is padded to 128, the least that the authors allow. Where the whole canvas does not
fit the memory, each denoising step predicts overlapping tiles of it and takes their weighted mean, on one canvas of
noise: the tiles agree after every step, so there is no seam to blend away at the end.

Source: the authors' demo ``scripts/gradio/superresolution.py`` (padding); MultiDiffusion (the mean at each step).
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fourfold.engine.base import EngineCard
from fourfold.engine.tiling import Box
from fourfold.errors import OutOfMemoryError

MULTIPLE_PX: Final = 64
SMALL_SIDE_PX: Final = 64
"""Sides below this are padded to `LEAST_SIDE_PX`."""
LEAST_SIDE_PX: Final = 128
_GRID_PX: Final = 8
"""Tiles begin at multiples of this: the UNet's deepest level is 1/8."""


@dataclass(frozen=True, slots=True)
class JobPlan:
    """The canvas and its parts, in input pixels, which are latent pixels as well."""

    height: int  #: of the padded canvas
    width: int
    tiles: tuple[Box, ...]  #: of one denoising step, all of one size, in canonical order; one = the whole canvas
    decode_tiles: tuple[Box, ...]
    overlap_px: int  #: what neighbouring tiles share at least


def padded_side(side: int) -> int:
    """Return how long the canvas is for a picture's side."""
    return LEAST_SIDE_PX if side < SMALL_SIDE_PX else -(-side // MULTIPLE_PX) * MULTIPLE_PX


def plan_canvas(card: EngineCard, width: int, height: int, *, budget_bytes: int | None) -> JobPlan:
    """Return the plan for a picture.

    Args:
        card: its numbers are for one row of this device's number type; core and margin give the tile.
        width: the picture's, pixels.
        height: the picture's, pixels.
        budget_bytes: the model and the running part stay below it; None = as the card says.

    Raises:
        OutOfMemoryError: not even one tile fits.
    """
    canvas_width, canvas_height = padded_side(width), padded_side(height)
    most = card.tile_pixels if budget_bytes is None else min(card.tile_pixels, card.tile_pixels_within(budget_bytes))
    whole = Box(0, 0, canvas_width, canvas_height)
    overlap = 2 * card.margin_px
    if canvas_width * canvas_height <= most:
        return JobPlan(canvas_height, canvas_width, (whole,), (whole,), overlap)
    tile = card.core_px + overlap
    tile_width, tile_height = min(tile, canvas_width), min(tile, canvas_height)
    if tile_width * tile_height > most:
        raise OutOfMemoryError(
            f"a picture of {width}x{height} needs {card.peak_bytes(tile_width * tile_height)} bytes even in tiles of "
            f"{tile_width}x{tile_height}; the memory budget is {budget_bytes} bytes, enough for {largest_side(most)} "
            f"px square"
        )
    # Decoding has no steps between which tiles could agree, so its tiles are as large as fits.
    side = max(tile, math.isqrt(most) // MULTIPLE_PX * MULTIPLE_PX)
    decode_width = min(side, canvas_width)
    decode_height = min(most // decode_width // MULTIPLE_PX * MULTIPLE_PX, canvas_height)
    return JobPlan(
        canvas_height,
        canvas_width,
        cut(canvas_width, canvas_height, tile_width, tile_height, overlap),
        cut(canvas_width, canvas_height, decode_width, decode_height, overlap),
        overlap,
    )


def job_bytes(card: EngineCard, width: int, height: int, *, budget_bytes: int) -> int:
    """Return the memory, the model included, that a picture takes by `plan_canvas`; raises as that does."""
    plan = plan_canvas(card, width, height, budget_bytes=budget_bytes)
    return card.peak_bytes(max(box.width * box.height for box in (*plan.tiles, *plan.decode_tiles)))


def largest_side(most_pixels: int) -> int:
    """Return the longest side of a square picture whose canvas has at most *most_pixels*."""
    return math.isqrt(max(0, most_pixels)) // MULTIPLE_PX * MULTIPLE_PX


def cut(width: int, height: int, tile_width: int, tile_height: int, overlap: int) -> tuple[Box, ...]:
    """Return tiles of one size that cover the canvas, row by row, neighbours sharing at least *overlap*."""
    return tuple(
        Box(left, top, left + tile_width, top + tile_height)
        for top in _starts(height, tile_height, overlap)
        for left in _starts(width, tile_width, overlap)
    )


def ramp(box: Box, plan: JobPlan, scale: int = 1) -> NDArray[np.float32]:
    """Return the weights ``[h, w, 1]`` of a tile's pixels in the mean: less towards neighbours, never 0."""
    across = _fade(box.left, box.right, plan.width, plan.overlap_px, scale)
    down = _fade(box.top, box.bottom, plan.height, plan.overlap_px, scale)
    weights: NDArray[np.float32] = (down[:, None] * across[None, :])[..., None]
    return weights


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if tile >= length:
        return [0]
    count = -(-(length - overlap) // max(_GRID_PX, tile - overlap - _GRID_PX))
    return [*(i * (length - tile) // (count - 1) // _GRID_PX * _GRID_PX for i in range(count - 1)), length - tile]


def _fade(start: int, stop: int, length: int, overlap: int, scale: int) -> NDArray[np.float32]:
    weights = np.ones((stop - start) * scale, np.float32)
    rise = (np.arange(overlap * scale, dtype=np.float32) + 0.5) / max(1, overlap * scale)
    if start > 0:
        weights[: len(rise)] = rise
    if stop < length:
        weights[len(weights) - len(rise) :] = rise[::-1]
    return weights
