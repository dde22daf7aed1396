"""Cut a picture into tiles: which pixels each keeps, and which it must also see.

Pure: sizes in, boxes out. Blending is not needed here: a tile sees enough of its neighbours (the margin) that what it
keeps is what the whole picture would give there.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of pixels; the right and lower edges are just outside it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Columns, at least 1."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Rows, at least 1."""
        return self.bottom - self.top

    @property
    def pixels(self) -> int:
        """Area."""
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of the picture that is computed in one piece."""

    core: Box  #: what is kept; the cores of a plan cover the picture exactly once
    window: Box  #: what is computed: the core and the margin around it, as far as the picture goes


def plan_tiles(
    width: int, height: int, *, margin_px: int, max_tile_pixels: int, min_core_px: int
) -> tuple[Tile, ...] | None:
    """Return the tiles, row by row, that compute the fewest pixels; None if no plan keeps to the limits.

    Args:
        width: the picture's width, pixels, >= 1.
        height: the picture's height, pixels, >= 1.
        margin_px: context that each core needs on every side inside the picture, >= 0.
        max_tile_pixels: no window has more pixels than this.
        min_core_px: no core's side is shorter than this, unless the picture's is.

    Returns:
        Tiles whose cores cover the picture exactly once; the sides of two cores differ by 1 px at most.
    """
    best: tuple[int, int, int] | None = None
    for columns in range(1, max(1, width // min_core_px) + 1):
        widest = max(_windows(width, columns, margin_px))
        rows = _fewest_rows(height, margin_px, max_tile_pixels // widest, max(1, height // min_core_px))
        if rows is None:
            continue
        computed = sum(_windows(width, columns, margin_px)) * sum(_windows(height, rows, margin_px))
        if best is None or (computed, rows * columns) < best[:2]:
            best = computed, rows * columns, columns
    if best is None:
        return None
    columns, rows = best[2], best[1] // best[2]
    return tuple(
        _tile(width, height, across, down, margin_px)
        for down in spans(height, rows)
        for across in spans(width, columns)
    )


def spans(length: int, parts: int) -> list[tuple[int, int]]:
    """Return *parts* (start, stop) pairs that cover ``range(length)`` in order; their lengths differ by 1 at most."""
    if not 1 <= parts <= length:
        raise ValueError(f"parts must be in [1, {length}], got {parts}")
    edges = [length * i // parts for i in range(parts + 1)]
    return list(zip(edges, edges[1:], strict=False))


def _windows(length: int, parts: int, margin_px: int) -> list[int]:
    """Return the window lengths along one side."""
    return [min(length, stop + margin_px) - max(0, start - margin_px) for start, stop in spans(length, parts)]


def _fewest_rows(height: int, margin_px: int, max_window_px: int, most: int) -> int | None:
    """Return the smallest number of rows whose windows are at most *max_window_px* high; None if *most* is too few."""
    for rows in range(1, most + 1):
        if max(_windows(height, rows, margin_px)) <= max_window_px:
            return rows
    return None


def _tile(width: int, height: int, across: tuple[int, int], down: tuple[int, int], margin_px: int) -> Tile:
    core = Box(across[0], down[0], across[1], down[1])
    window = Box(
        max(0, core.left - margin_px),
        max(0, core.top - margin_px),
        min(width, core.right + margin_px),
        min(height, core.bottom + margin_px),
    )
    return Tile(core, window)
