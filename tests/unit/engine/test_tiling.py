"""Tiles of pictures whose plan one can check in one's head. The laws for any picture: tests/property/test_tiling.py."""

import pytest

from fourfold.engine.tiling import Box, Span, Tile, plan_tiles, split_side


def test_one_part_is_the_whole_side() -> None:
    """Without margins: there is nothing beyond the picture."""
    assert split_side(100, 1, 16) == [Span(0, 0, 100, 100)]


def test_windows_are_alike_and_cores_meet_in_the_middle_of_their_overlap() -> None:
    """The outer cores are longer, as they need only one margin."""
    assert split_side(100, 2, 10) == [Span(0, 0, 50, 60), Span(40, 50, 100, 100)]
    assert split_side(100, 3, 5) == [Span(0, 0, 35, 40), Span(30, 35, 65, 70), Span(60, 65, 100, 100)]


@pytest.mark.parametrize(
    ("length", "parts", "margin"),
    [
        (10, 2, 6),  # the windows would be longer than the picture
        (10, 3, 5),  # the windows would be the picture
        (3, 3, 1),
        (10, 11, 0),
        (10, 0, 0),
    ],
)
def test_impossible_cuts_are_refused(length: int, parts: int, margin: int) -> None:
    """The caller looks for another number of parts."""
    with pytest.raises(ValueError, match="cannot be cut"):
        split_side(length, parts, margin)


def test_the_plan_goes_row_by_row() -> None:
    """So that a result can be written while it is made."""
    tiles = plan_tiles(20, 20, margin_px=0, max_tile_pixels=100, min_core_px=10)

    assert tiles == tuple(Tile(Box(x, y, x + 10, y + 10), Box(x, y, x + 10, y + 10)) for y in (0, 10) for x in (0, 10))


def test_a_long_picture_is_cut_along_its_long_side() -> None:
    """A cut across it would compute the margin over its whole length."""
    tiles = plan_tiles(1000, 100, margin_px=20, max_tile_pixels=52_000, min_core_px=50)

    assert tiles is not None
    assert [tile.window for tile in tiles] == [Box(0, 0, 520, 100), Box(480, 0, 1000, 100)]


def test_a_picture_a_little_larger_than_a_tile_has_tiles_of_equal_work() -> None:
    """300 px are not 256 and 44."""
    tiles = plan_tiles(600, 10, margin_px=16, max_tile_pixels=4000, min_core_px=256)

    assert tiles is not None
    assert [tile.core.width for tile in tiles] == [300, 300]


def test_no_plan_keeps_to_impossible_limits() -> None:
    """Nine windows of 100 leave cores of 68 between margins of 16; ten would be 93 long and leave cores of 61."""
    assert plan_tiles(640, 640, margin_px=16, max_tile_pixels=100 * 100 - 1, min_core_px=64) is None
    assert plan_tiles(640, 640, margin_px=16, max_tile_pixels=100 * 100, min_core_px=64) is not None
