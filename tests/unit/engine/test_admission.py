"""Looking at jobs before they are taken."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fourfold.engine.admission import check_image, plan_job
from fourfold.engine.registry import card
from fourfold.errors import InvalidImageError, OutOfMemoryError

CARD = replace(
    card("fourfold/realesrgan-x4plus"),
    margin_px=10,
    core_px=100,
    fixed_bytes=1_000_000,
    running_bytes=500_000,
    bytes_per_input_pixel=100,
    tile_pixels=250 * 250,
)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 3), (9, 1, 3)])
def test_any_rgb_array_with_pixels_is_fine(dtype: Any, shape: tuple[int, ...]) -> None:
    """Down to a single pixel."""
    check_image(np.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (np.zeros((2, 2, 3), np.float32), "uint8 or uint16, got float32"),
        (np.zeros((2, 2, 3), np.int8), "uint8 or uint16, got int8"),
        (np.zeros((2, 2, 3), np.uint32), "uint8 or uint16, got uint32"),
        ([[[0, 0, 0]]], "uint8 or uint16, got list"),
        (np.zeros((2, 2), np.uint8), r"\[h, w, 3\] with h, w >= 1, got \[2, 2\]"),
        (np.zeros((2, 2, 4), np.uint8), r"got \[2, 2, 4\]"),
        (np.zeros((0, 2, 3), np.uint8), r"got \[0, 2, 3\]"),
        (np.zeros((2, 0, 3), np.uint16), r"got \[2, 0, 3\]"),
        (np.zeros((1, 2, 2, 3), np.uint8), r"got \[1, 2, 2, 3\]"),
    ],
)
def test_other_arrays_are_refused(image: object, complaint: str) -> None:
    """Say what was expected and what came."""
    with pytest.raises(InvalidImageError, match=complaint):
        check_image(image)


def test_without_a_budget_tiles_are_as_large_as_the_card_says() -> None:
    """A picture that fits is one tile."""
    tiles, notes = plan_job(CARD, 250, 250, budget_bytes=None)

    assert len(tiles) == 1
    assert notes == {"tiles": 1, "margin_px": 10}


def test_a_budget_makes_tiles_smaller() -> None:
    """By the card's formula; never larger than the card's own largest."""
    tiles, notes = plan_job(CARD, 250, 250, budget_bytes=CARD.peak_bytes(150 * 150))

    assert len(tiles) == 4
    assert all(tile.window.width * tile.window.height <= 150 * 150 for tile in tiles)
    assert "warnings" not in notes
    assert plan_job(CARD, 250, 250, budget_bytes=10**12) == plan_job(CARD, 250, 250, budget_bytes=None)


def test_a_tight_budget_makes_cores_smaller_than_the_card_wants_and_says_so() -> None:
    """It is slower: the notes carry the reason."""
    tiles, notes = plan_job(CARD, 250, 250, budget_bytes=CARD.peak_bytes(110 * 110))

    assert 100 > min(tile.core.width for tile in tiles) >= 64
    assert notes["warnings"] == ["the memory budget of 2710000 bytes allows only small tiles, which is slower"]


@pytest.mark.parametrize("size", [(320, 240), (529, 529), (600, 372), (4000, 3000)])
def test_lanczos_blames_no_budget_for_tiles_that_are_small_anyway(size: tuple[int, int]) -> None:
    """Its tiles fit a cache, and its margin is three pixels."""
    _, notes = plan_job(card("fourfold/lanczos"), *size, budget_bytes=10**10)

    assert "warnings" not in notes


def test_what_does_not_fit_even_in_the_smallest_tiles_is_refused() -> None:
    """The message says how much it would take."""
    needed = CARD.peak_bytes(84 * 84)
    with pytest.raises(
        OutOfMemoryError, match=f"250x250 needs at least {needed} bytes.*the memory budget is 1500000 bytes"
    ):
        plan_job(CARD, 250, 250, budget_bytes=1_500_000)


def test_a_small_picture_fits_where_a_tile_does_not() -> None:
    """Only what is computed counts."""
    assert len(plan_job(CARD, 5, 5, budget_bytes=CARD.peak_bytes(25))[0]) == 1
    with pytest.raises(OutOfMemoryError, match=f"5x5 needs at least {CARD.peak_bytes(25)} bytes"):
        plan_job(CARD, 5, 5, budget_bytes=CARD.peak_bytes(24))
