"""Laws of tiles, for any picture and any limits."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fourfold.engine.tiling import Box, Tile, halve, plan_tiles, split_side

SIDES = st.integers(1, 400)
MARGINS = st.integers(0, 30)
LIMITS = st.integers(400, 120_000)
CORES = st.integers(8, 200)


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, int, int, int, int, tuple[Tile, ...]]:
    """Draw a picture, its limits, and a plan that exists."""
    width, height, margin, limit, core = draw(st.tuples(SIDES, SIDES, MARGINS, LIMITS, CORES))
    tiles = plan_tiles(width, height, margin_px=margin, max_tile_pixels=limit, min_core_px=core)
    assume(tiles is not None)
    assert tiles is not None
    return width, height, margin, limit, core, tiles


@given(plans())
def test_the_cores_cover_every_pixel_exactly_once(plan: tuple[int, int, int, int, int, tuple[Tile, ...]]) -> None:
    """No pixel is delivered twice and none is missing."""
    width, height, _, _, _, tiles = plan
    covered = np.zeros((height, width), np.int32)
    for tile in tiles:
        covered[tile.core.top : tile.core.bottom, tile.core.left : tile.core.right] += 1

    assert (covered == 1).all()


@given(plans())
def test_the_windows_have_one_size_within_the_limit_inside_the_picture(
    plan: tuple[int, int, int, int, int, tuple[Tile, ...]],
) -> None:
    """A network is compiled for one size, and memory is counted by it."""
    width, height, _, limit, _, tiles = plan

    assert len({(tile.window.width, tile.window.height) for tile in tiles}) == 1
    for tile in tiles:
        window = tile.window
        assert window.left >= 0 and window.top >= 0 and window.right <= width and window.bottom <= height
        assert window.width * window.height <= limit


@given(plans())
def test_every_core_sees_its_margin_or_the_border(plan: tuple[int, int, int, int, int, tuple[Tile, ...]]) -> None:
    """Only where the picture ends is there less context than the margin."""
    width, height, margin, _, _, tiles = plan
    for tile in tiles:
        core, window = tile.core, tile.window
        assert window.left <= max(0, core.left - margin)
        assert window.top <= max(0, core.top - margin)
        assert window.right >= min(width, core.right + margin)
        assert window.bottom >= min(height, core.bottom + margin)


def size(box: Box) -> tuple[int, int]:
    return box.width, box.height


def area(box: Box) -> int:
    return box.width * box.height


@given(plans(), st.integers(1, 4))
def test_halved_tiles_keep_every_law_of_a_plan(
    plan: tuple[int, int, int, int, int, tuple[Tile, ...]], times: int
) -> None:
    """Every pixel once, smaller windows, of one size where all are cut the same way, the margin around each core.

    A core that is too short for the usual cut, as one at a border may be, has its tile cut the other way.
    """
    width, height, margin, _, core_px, tiles = plan
    for _ in range(times):
        halves = [halve(tile, margin_px=margin, min_core_px=core_px) for tile in tiles]
        if () in halves:
            assume(_ > 0)
            break
        for tile, pair in zip(tiles, halves, strict=True):
            assert all(area(half.window) < area(tile.window) for half in pair)
        had_one_size = len({size(tile.window) for tile in tiles}) == 1
        is_one_way = len({pair[0].core.width == tile.core.width for tile, pair in zip(tiles, halves, strict=True)}) == 1
        tiles = tuple(half for pair in halves for half in pair)
        covered = np.zeros((height, width), np.int32)
        for tile in tiles:
            core, window = tile.core, tile.window
            covered[core.top : core.bottom, core.left : core.right] += 1
            assert window.left <= max(0, core.left - margin) and window.top <= max(0, core.top - margin)
            assert window.right >= min(width, core.right + margin)
            assert window.bottom >= min(height, core.bottom + margin)
            assert min(core.width, core.height) >= min(core_px, width, height)
        assert (covered == 1).all()
        assert len({size(tile.window) for tile in tiles}) == 1 or not (had_one_size and is_one_way)


@given(plans())
def test_no_core_is_shorter_than_asked_unless_the_picture_is(
    plan: tuple[int, int, int, int, int, tuple[Tile, ...]],
) -> None:
    """The halo is work that is thrown away; small cores throw most of it away."""
    width, height, _, _, core_px, tiles = plan
    for tile in tiles:
        assert tile.core.width >= min(core_px, width)
        assert tile.core.height >= min(core_px, height)


@given(SIDES, SIDES, MARGINS, CORES)
def test_a_picture_within_the_limit_is_one_tile(width: int, height: int, margin: int, core: int) -> None:
    """Nothing is computed twice where it need not be."""
    tiles = plan_tiles(width, height, margin_px=margin, max_tile_pixels=width * height, min_core_px=core)

    assert tiles is not None
    assert [(0, 0, width, height)] == [(t.core.left, t.core.top, t.core.right, t.core.bottom) for t in tiles]


@given(SIDES, SIDES, MARGINS, LIMITS, CORES)
def test_a_larger_limit_never_computes_more(width: int, height: int, margin: int, limit: int, core: int) -> None:
    """More memory is never slower, but for windows that are rounded up to whole pixels; what fits still fits."""

    def computed(max_tile_pixels: int, rounding_px: int = 0) -> float:
        tiles = plan_tiles(width, height, margin_px=margin, max_tile_pixels=max_tile_pixels, min_core_px=core)
        sizes = [(t.window.width + rounding_px, t.window.height + rounding_px) for t in tiles or ()]
        return sum(w * h for w, h in sizes) if tiles else float("inf")

    assert computed(2 * limit) <= computed(limit, rounding_px=1)


@given(st.integers(1, 5000), st.integers(1, 60), st.integers(0, 100))
def test_a_side_is_cut_or_refused(length: int, parts: int, margin: int) -> None:
    """A cut that is given has the asked number of parts, in order, each with its margins."""
    try:
        spans = split_side(length, parts, margin)
    except ValueError:
        assert parts > length or parts > 1
        return

    assert len(spans) == parts
    assert spans[0].start == spans[0].core_start == 0
    assert spans[-1].stop == spans[-1].core_stop == length
    for left, right in pairwise(spans):
        assert left.core_stop == right.core_start
        assert left.stop - left.core_stop >= margin
        assert right.core_start - right.start >= margin


@pytest.mark.parametrize("parts", [0, -1, 11])
def test_a_side_cannot_be_cut_into_no_parts_or_more_than_its_pixels(parts: int) -> None:
    """Such a cut is the caller's mistake."""
    with pytest.raises(ValueError, match="cannot be cut"):
        split_side(10, parts, 0)
