"""Cut a picture into tiles: which pixels each keeps, and which it must also see.

Pure: sizes in, boxes out. Nothing is blended: a tile sees so much of its neighbours (the margin) that what it keeps is
what the whole picture would give there. At the picture's own border there is no margin, so that the network sees the
border as it would in the whole picture.

All windows of a plan have one size, because a network compiled for one size is faster and far smaller than for any::

    |<------ window ------>|
    |<---- core ---->:<-m->|
              |<-m->:<- core ->:<-m->|
                        |<-m->:<---- core ---->|
"""

from dataclasses import dataclass, replace
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of pixels; the right and lower edges are just outside it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of the picture that is computed in one piece."""

    core: Box  #: what is kept; the cores of a plan cover the picture exactly once
    window: Box  #: what is computed: the core and at least the margin around it, as far as the picture goes


@dataclass(frozen=True, slots=True)
class Span:
    """One tile along one side: *core_start* .. *core_stop* is kept of *start* .. *stop*."""

    start: int
    core_start: int
    core_stop: int
    stop: int


def plan_tiles(
    width: int, height: int, *, margin_px: int, max_tile_pixels: int, min_core_px: int
) -> tuple[Tile, ...] | None:
    """Return the tiles, row by row, that compute the fewest pixels; None if no plan keeps to the limits.

    Args:
        width: the picture's width, pixels, >= 1.
        height: the picture's height, pixels, >= 1.
        margin_px: context that each core needs on every side inside the picture, >= 0.
        max_tile_pixels: no window has more pixels than this.
        min_core_px: no core's side is shorter than this, unless the picture's is, >= 1.

    Returns:
        Tiles whose cores cover the picture exactly once and whose windows all have the same size.
    """
    row_choices = _choices(height, margin_px, min_core_px)
    best: tuple[int, int, list[Span], list[Span]] | None = None
    for columns in _choices(width, margin_px, min_core_px):
        window_width = columns[0].stop
        rows = next((rows for rows in row_choices if rows[0].stop * window_width <= max_tile_pixels), None)
        if rows is None:
            continue
        tiles = len(columns) * len(rows)
        computed = tiles * window_width * rows[0].stop
        if best is None or (computed, tiles) < best[:2]:
            best = computed, tiles, columns, rows
    if best is None:
        return None
    return tuple(
        Tile(
            core=Box(across.core_start, down.core_start, across.core_stop, down.core_stop),
            window=Box(across.start, down.start, across.stop, down.stop),
        )
        for down in best[3]
        for across in best[2]
    )


def halve(tile: Tile, *, margin_px: int, min_core_px: int) -> tuple[Tile, ...]:
    """Return two tiles that together keep what *tile* keeps, in smaller windows; none where it cannot be cut.

    The longer side is cut in the middle of its window, if that can be, else the other one; so the tiles of a plan,
    whose windows have one size, give tiles whose windows have one size again, if all are cut the same way.

    Args:
        tile: of a plan with the same margin.
        margin_px: context that each core needs on every side inside the picture, >= 0.
        min_core_px: no core's side gets shorter than this, >= 1.
    """
    core, window = tile.core, tile.window
    for is_across in (True, False) if window.width >= window.height else (False, True):
        start, stop = (window.left, window.right) if is_across else (window.top, window.bottom)
        core_start, core_stop = (core.left, core.right) if is_across else (core.top, core.bottom)
        seam = start + (stop - start) // 2
        length = (stop - start + 1) // 2 + margin_px
        if length >= stop - start or min(seam - core_start, core_stop - seam) < min_core_px:
            continue
        if is_across:
            return (
                Tile(replace(core, right=seam), replace(window, right=start + length)),
                Tile(replace(core, left=seam), replace(window, left=stop - length)),
            )
        return (
            Tile(replace(core, bottom=seam), replace(window, bottom=start + length)),
            Tile(replace(core, top=seam), replace(window, top=stop - length)),
        )
    return ()


def split_side(length: int, parts: int, margin_px: int) -> list[Span]:
    """Cut one side into *parts* windows of one length, the shortest that gives each core its margin.

    Args:
        length: the side, pixels, >= 1.
        parts: how many windows, 1 .. length.
        margin_px: context inside the picture that each core needs on both sides, >= 0.

    Returns:
        Spans in order; their cores cover ``range(length)`` exactly once.

    Raises:
        ValueError: *parts* is out of range, or so high that a window would be longer than the side or a core empty.
    """
    refusal = f"a side of {length} px cannot be cut into {parts} parts with a margin of {margin_px} px"
    if not 1 <= parts <= length:
        raise ValueError(refusal)
    window = -(-(length + 2 * margin_px * (parts - 1)) // parts)
    starts = [0, *(i * (length - window) // (parts - 1) for i in range(1, parts))]
    # Neighbours overlap by two margins or a little more; the cores meet in the middle of the overlap.
    seams = [right + (left + window - right) // 2 for left, right in pairwise(starts)]
    edges = [0, *seams, length]
    if window > length or any(stop <= start for start, stop in pairwise(edges)):
        raise ValueError(refusal)
    return [Span(start, edges[i], edges[i + 1], start + window) for i, start in enumerate(starts)]


def _choices(length: int, margin_px: int, min_core_px: int) -> list[list[Span]]:
    """Return the allowed cuts of one side, the fewest parts first; one part is always allowed."""
    choices = [split_side(length, 1, margin_px)]
    for parts in range(2, length // min_core_px + 1):
        try:
            spans = split_side(length, parts, margin_px)
        except ValueError:
            break
        if min(span.core_stop - span.core_start for span in spans) < min_core_px:
            break
        choices.append(spans)
    return choices
