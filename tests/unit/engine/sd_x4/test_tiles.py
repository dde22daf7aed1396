"""Pictures beyond the memory: tiles that agree after every step, on one canvas of noise."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourfold.engine import registry, sd_x4_job
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.engine.sd_x4_job import Running
from fourfold.engine.sd_x4_plan import cut, padded_side, plan_canvas, ramp
from fourfold.errors import OutOfMemoryError
from fourfold.testing.sd_x4_stock import job, notes, picture, pixels, run

Make = Callable[..., StableDiffusionX4Engine]
CARD = registry.card("stabilityai/stable-diffusion-x4-upscaler")
#: Tiles of 64 with 32 shared, wherever a canvas has more than 64 x 128 pixels.
SMALL_TILES: dict[str, Any] = {"core_px": 32, "margin_px": 16, "tile_pixels": 64 * 128}


@pytest.mark.parametrize(
    ("side", "canvas"), [(1, 128), (63, 128), (64, 64), (65, 128), (128, 128), (129, 192), (512, 512)]
)
def test_a_side_is_padded_to_the_authors_least_and_to_their_multiple(side: int, canvas: int) -> None:
    """Below 64 pixels to 128, the least of their demo; else to the next multiple of 64."""
    assert padded_side(side) == canvas


@given(side=st.integers(1, 5000))
def test_a_canvas_side_is_a_multiple_of_64_and_at_most_127_longer(side: int) -> None:
    padded = padded_side(side)

    assert padded % 64 == 0
    assert side <= padded < side + (128 if side < 64 else 64)


@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    tile=st.integers(2, 6),
    overlap=st.sampled_from([0, 16, 32, 64]),
)
def test_tiles_have_one_size_cover_everything_and_share_the_overlap(
    width: int, height: int, tile: int, overlap: int
) -> None:
    width, height, tile = width * 64, height * 64, tile * 64
    tile_width, tile_height = min(tile, width), min(tile, height)
    boxes = cut(width, height, tile_width, tile_height, overlap)

    assert {(box.width, box.height) for box in boxes} == {(tile_width, tile_height)}
    for length, spans in (
        (width, sorted({(box.left, box.right) for box in boxes})),
        (height, sorted({(box.top, box.bottom) for box in boxes})),
    ):
        assert spans[0][0] == 0 and spans[-1][1] == length
        for (_, right), (left, _) in pairwise(spans):
            assert right - left >= min(overlap, tile - 1)
            assert left % 8 == 0


@given(width=st.integers(1, 4000), height=st.integers(1, 4000), gigabytes=st.integers(4, 24))
def test_a_plan_stays_within_its_budget(width: int, height: int, gigabytes: int) -> None:
    """Every tile's peak, by the card's formula, is below the budget; whole wherever that fits."""
    budget = gigabytes * 10**9
    try:
        plan = plan_canvas(CARD, width, height, budget_bytes=budget)
    except OutOfMemoryError:
        assert CARD.tile_pixels_within(budget) < 256 * 256
        return
    for box in (*plan.tiles, *plan.decode_tiles):
        assert CARD.peak_bytes(box.width * box.height) <= budget
    if CARD.peak_bytes(plan.width * plan.height) <= budget and plan.width * plan.height <= CARD.tile_pixels:
        assert len(plan.tiles) == len(plan.decode_tiles) == 1


def test_what_the_issue_promises_for_24_gib_fits() -> None:
    """In 16 bit: up to 1024 x 1024 whole, 2048 x 2048 in tiles."""
    half = replace(CARD, fixed_bytes=CARD.fixed_bytes // 2, bytes_per_input_pixel=CARD.bytes_per_input_pixel // 2)

    assert len(plan_canvas(half, 1024, 1024, budget_bytes=23 * 2**30).tiles) == 1
    assert len(plan_canvas(half, 2048, 2048, budget_bytes=23 * 2**30).tiles) > 1


def test_weights_are_positive_and_cover_the_canvas() -> None:
    plan = plan_canvas(replace(CARD, **SMALL_TILES), 192, 128, budget_bytes=None)
    total = np.zeros((plan.height, plan.width, 1))
    for box in plan.tiles:
        total[box.top : box.bottom, box.left : box.right] += ramp(box, plan)

    assert len(plan.tiles) > 4
    assert total.min() > 0


def test_the_order_of_tiles_changes_no_bit(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one batch size, tiles in any order, and beside another job's, give the same bytes."""
    each = job("a", picture(128, 64), steps=2)
    engine = make_engine(rows=(2,), **{**SMALL_TILES, "tile_pixels": 64 * 64})
    events = run(engine, each)
    expected = pixels(events)
    assert notes(events)["tiles"] > 2

    rng = random.Random(5)
    in_order = Running.pending.fget
    monkeypatch.setattr(Running, "pending", property(lambda self: rng.sample(in_order(self), len(in_order(self)))))
    shuffled = run(engine, each, job("b", picture(64, 64, seed=8), steps=1))

    assert np.array_equal(pixels(shuffled), expected)


def test_the_tiles_weights_are_made_once_a_job(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step would send them to the device anew, and wait for it; tiles with the same neighbours share theirs."""
    made: list[Any] = []
    original = sd_x4_job.ramp
    monkeypatch.setattr(sd_x4_job, "ramp", lambda box, *rest: made.append(box) or original(box, *rest))
    engine = make_engine(**SMALL_TILES)
    engine.admit(job("a", picture(256, 64), steps=2, guidance_scale=1.0))
    (running,) = engine._running
    while not running.is_denoised:
        engine.step()
    count = len(running.plan.tiles)
    engine.cancel("a")

    assert (count, len(made)) == (10, 3)  # the first, the last, and those between


def test_tiles_that_disagree_meet_without_a_seam(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours say 0 and 1 throughout, while denoising and when decoded: each fades into the other."""
    engine = make_engine(**SMALL_TILES)
    joined: list[torch.Tensor] = []
    decoded = itertools.count()
    go_on = Running._go_on

    def note(running: Running, answer: torch.Tensor) -> None:
        joined.append(answer)
        go_on(running, answer)

    def flat(_vae: Any, latents: torch.Tensor, **_: Any) -> Iterator[None]:
        yield
        height, width = latents.shape[2:]
        return iter([(0, torch.full((1, 3, 4 * height, 4 * width), float(next(decoded) % 2 * 2 - 1)))])

    monkeypatch.setattr(
        engine, "_predict", lambda rows, **_: [torch.full((1, 4, 64, 64), float(tile % 2)) for _, tile in rows]
    )
    monkeypatch.setattr(Running, "_go_on", note)
    monkeypatch.setattr(sd_x4_job, "decode", flat)
    events = run(engine, job("a", picture(192, 64), steps=1, guidance_scale=1.0))

    (answer,) = joined
    levels = pixels(events).astype(int)
    assert notes(events)["tiles"] > 2 and next(decoded) > 2
    assert answer.max() - answer.min() > 0.5
    assert answer.diff(dim=3).abs().max() <= 0.1
    assert levels.max() - levels.min() > 0.5 * 255
    assert np.abs(np.diff(levels, axis=1)).max() <= 0.1 * 255 / 4


def test_one_tile_is_the_whole_canvas(make_engine: Make) -> None:
    """A canvas that fits runs whole, whatever the tiles' size."""
    one = run(make_engine(**SMALL_TILES), job())
    other = run(make_engine(), job())

    assert np.array_equal(pixels(one), pixels(other))
