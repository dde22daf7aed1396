"""What every engine does with a job before it takes it: look at the array, and plan its tiles within the memory."""

from typing import Any, Final, cast

import numpy as np

from fourfold.engine.base import EngineCard, Pixels8or16
from fourfold.engine.tiling import Box, Tile, halve, plan_tiles
from fourfold.errors import InvalidImageError, OutOfMemoryError

SMALLEST_CORE_PX: Final = 64
"""Cores get smaller than the card says only where the memory budget asks for it, and never smaller than this."""


def check_image(image: object) -> None:
    """Raise InvalidImageError unless *image* is ``[h, w, 3]`` of uint8 or uint16 with h, w >= 1."""
    if not isinstance(image, np.ndarray) or image.dtype not in (np.uint8, np.uint16):
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise InvalidImageError(f"an image must be an array of uint8 or uint16, got {kind}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InvalidImageError(f"an image must be [h, w, 3] with h, w >= 1, got {list(image.shape)}")


def window_of(image: Pixels8or16, tile: Tile, *, min_side_px: int) -> tuple[Pixels8or16, Box]:
    """Return what *tile* sees of *image*, ``[h, w, 3]``, and where in it lies what the tile keeps.

    A picture with a shorter side than *min_side_px* is continued by its edge: of one or two pixels in a black frame,
    which is what a convolution sees beyond a border, a network makes other colours.
    """
    core, window = tile.core, tile.window
    pixels = image[window.top : window.bottom, window.left : window.right]
    (above, below), (before, behind) = (_missing(side, min_side_px) for side in pixels.shape[:2])
    if above or below or before or behind:
        around = ((above, below), (before, behind), (0, 0))
        pixels = cast("Pixels8or16", np.pad(pixels, around, mode="edge"))
    left, top = core.left - window.left + before, core.top - window.top + above
    return pixels, Box(left, top, left + core.width, top + core.height)


def _missing(side: int, least: int) -> tuple[int, int]:
    missing = max(0, least - side)
    return missing // 2, missing - missing // 2


def halved(card: EngineCard, tile: Tile) -> tuple[Tile, ...]:
    """Return two tiles instead of *tile*, that need less memory; none if it is among the smallest already."""
    return halve(tile, margin_px=card.margin_px, min_core_px=min(card.core_px, SMALLEST_CORE_PX))


def plan_job(
    card: EngineCard, width: int, height: int, *, budget_bytes: int | None
) -> tuple[tuple[Tile, ...], dict[str, Any]]:
    """Return the tiles of a picture, and what the job's end should say about them.

    Args:
        card: of the model that is to run.
        width: the picture's, pixels, >= 1.
        height: the picture's, pixels, >= 1.
        budget_bytes: the model and a running tile together stay below it; None = as the card says.

    Raises:
        OutOfMemoryError: by the card's formula not even the smallest tile fits.
    """
    most = card.tile_pixels if budget_bytes is None else min(card.tile_pixels, card.tile_pixels_within(budget_bytes))
    smallest_px = min(card.core_px, SMALLEST_CORE_PX)
    for core_px in (card.core_px, smallest_px):
        tiles = plan_tiles(width, height, margin_px=card.margin_px, max_tile_pixels=most, min_core_px=core_px)
        if tiles is None:
            continue
        notes: dict[str, Any] = {"tiles": len(tiles), "margin_px": card.margin_px}
        if core_px < card.core_px:
            notes["warnings"] = [f"the memory budget of {budget_bytes} bytes allows only small tiles, which is slower"]
        return tiles, notes
    sides = (min(side, smallest_px + 2 * card.margin_px) for side in (width, height))
    raise OutOfMemoryError(
        f"a picture of {width}x{height} needs at least {card.peak_bytes(next(sides) * next(sides))} bytes, in the "
        f"smallest tiles of {card.model_id}; the memory budget is {budget_bytes} bytes"
    )


def job_bytes(card: EngineCard, width: int, height: int, *, budget_bytes: int) -> int:
    """Return the memory, the model included, that a picture takes in the tiles of `plan_job`; raises as that does."""
    tiles, _ = plan_job(card, width, height, budget_bytes=budget_bytes)
    return card.peak_bytes(max(tile.window.width * tile.window.height for tile in tiles))
