"""A picture in tiles is the picture in one piece, for every model at its own margin."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fourfold.engine.base import EngineJob, Precision, RegionDone, UpscaleEngine
from fourfold.engine.inference import Tuning
from fourfold.engine.lanczos import LanczosEngine
from fourfold.engine.realesrgan import RealEsrganEngine
from fourfold.engine.registry import card
from fourfold.engine.settings import EngineSettings

SETTINGS = EngineSettings(threads=2, has_bf16=True)


def photo(height: int, width: int) -> Any:
    """Return something with the shapes, edges and textures of a photo."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:height, :width]
    unit = np.stack([0.5 + 0.3 * np.sin(x / 31 + y / 53), 0.4 + 0.3 * np.cos(y / 23), 0.3 + 0.4 * x / width], axis=-1)
    for _ in range(height * width // 600):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(2, 14)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < r**2
        unit[inside] = 0.5 * unit[inside] + 0.5 * rng.uniform(0, 1, 3)
    unit += 0.04 * np.sin(x * 1.7 + y * 0.9)[..., None] * (y > height / 2)[..., None]
    unit += rng.normal(0, 0.01, unit.shape)
    return np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)


def upscale(engine: UpscaleEngine, image: Any, precision: Precision) -> tuple[int, Any]:
    """Return how many tiles it took, and the result."""
    engine.admit(EngineJob("a", image, precision=precision))
    made = np.zeros((image.shape[0] * 4, image.shape[1] * 4, 3), image.dtype)
    tiles = 0
    while engine.busy:
        for event in engine.step():
            if isinstance(event, RegionDone):
                h, w = event.pixels.shape[:2]
                made[event.y : event.y + h, event.x : event.x + w] = event.pixels
                tiles += 1
    return tiles, made


def compare(model_id: str, image: Any, *, tile_pixels: int, core_px: int, precision: Precision) -> tuple[int, Any]:
    """Return the number of tiles and how many levels each sample of the tiled picture is off."""
    about = replace(card(model_id), core_px=core_px)
    whole = RealEsrganEngine(about, settings=SETTINGS, tuning=Tuning(parts=2, small_pixels=0))
    one, expected = upscale(whole, image, precision)
    whole.close()
    tiled = RealEsrganEngine(
        replace(about, tile_pixels=tile_pixels), settings=SETTINGS, tuning=Tuning(parts=2, small_pixels=0)
    )
    tiles, made = upscale(tiled, image, precision)
    tiled.close()
    assert one == 1
    return tiles, np.abs(made.astype(int) - expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lanczos_in_tiles_is_bit_by_bit_the_whole(dtype: Any) -> None:
    """Any tiles, any threads: the same float32 operations in the same order."""
    image = photo(90, 130).astype(dtype) * (np.iinfo(dtype).max // 255)
    about = card("fourfold/lanczos")
    _, expected = upscale(LanczosEngine(about, settings=EngineSettings(threads=1)), image, Precision.AUTO)
    for tile_pixels, core_px, threads in ((30 * 30, 8, 1), (50 * 20, 8, 2), (64, 1, 3)):
        tiled = LanczosEngine(
            replace(about, tile_pixels=tile_pixels, core_px=core_px), settings=EngineSettings(threads=threads)
        )
        tiles, made = upscale(tiled, image, Precision.AUTO)
        tiled.close()

        assert tiles > 10
        assert np.array_equal(made, expected)


def test_the_compact_model_in_tiles_is_within_a_level_in_float32() -> None:
    """Cores far smaller than any that run, so that seams are everywhere."""
    tiles, off = compare(
        "fourfold/realesr-animevideov3",
        photo(90, 130),
        tile_pixels=64 * 64,
        core_px=16,
        precision=Precision.FLOAT32,
    )

    assert tiles >= 6
    assert off.max() <= 1


def test_the_compact_model_in_tiles_looks_the_same_in_bfloat16() -> None:
    """bfloat16 rounds otherwise in another tile: 99.9 % within a level, the worst found 3."""
    tiles, off = compare(
        "fourfold/realesr-animevideov3", photo(90, 130), tile_pixels=64 * 64, core_px=16, precision=Precision.AUTO
    )

    assert tiles >= 6
    assert (off <= 1).mean() >= 0.999
    assert off.max() <= 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_id", ["fourfold/realesrgan-x4plus", "fourfold/realsr-df2k", "fourfold/realesrgan-x4plus-anime"]
)
def test_the_large_models_in_tiles_are_within_a_level_in_float32(model_id: str) -> None:
    """Two tiles side by side, the seam between them as far from the windows' ends as the card's margin says."""
    tiles, off = compare(model_id, photo(40, 360), tile_pixels=40 * 280, core_px=64, precision=Precision.FLOAT32)

    assert tiles == 2
    assert off.max() <= 1
