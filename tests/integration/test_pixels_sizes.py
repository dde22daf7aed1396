"""Exact sizes with networks: decode, pad to what the network needs, run, crop, encode."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourfold.compose.worker import local_worker
from fourfold.config import Settings
from fourfold.worker.orders import WorkOrder

PHOTO = Path(__file__).parents[2] / "examples" / "photo.jpg"
SMALL = [(1, 1), (1, 70), (70, 1), (2, 3), (3, 2), (7, 5), (4, 4), (16, 17), (31, 33), (63, 65), (64, 70), (70, 69)]
ABOVE = [(257, 3), (5, 301), (129, 127)]


def photo(width: int, height: int) -> np.ndarray:
    """Return uint8 ``[h, w, 3]``, a piece of the shipped photo; beyond its edge it begins again."""
    with Image.open(PHOTO) as image:
        pixels = np.asarray(image.convert("RGB"))
    return pixels.take(range(40, 40 + height), 0, mode="wrap").take(range(60, 60 + width), 1, mode="wrap")


async def _upscale_all(folder: Path, model_id: str, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Return what the model makes of each picture, as a file's reader sees it."""
    made = []
    async with local_worker(Settings.model_validate({"worker": {"threads": 1}}), model_id) as worker:
        for width, height in sizes:
            name = f"{width}x{height}"
            Image.fromarray(photo(width, height)).save(folder / name, "png")
            order = WorkOrder(name, folder / name, model_id, safety_check=False, measure=False)
            with worker.admit(name) as place:
                done = await worker.upscale(order, place)
                assert (done.width, done.height, done.input_pixels) == (4 * width, 4 * height, width * height)
                with Image.open(done.path) as image:
                    made.append(np.asarray(image.convert("RGB")))
    return made


@pytest.mark.parametrize(
    ("model_id", "sizes"),
    [("fourfold/realesr-animevideov3", SMALL + ABOVE), ("fourfold/realesrgan-x4plus", [(1, 1), (3, 2), (7, 5)])],
)
def test_a_network_gives_exactly_four_times_each_side(
    tmp_path: Path, model_id: str, sizes: list[tuple[int, int]]
) -> None:
    """Whatever it needs around the picture is gone, from the right sides: shrunk, the result is the picture again."""
    made = asyncio.run(_upscale_all(tmp_path, model_id, sizes))

    for (width, height), result in zip(sizes, made, strict=True):
        assert result.shape == (4 * height, 4 * width, 3)
        shrunk = result.reshape(height, 4, width, 4, 3).mean(axis=(1, 3))
        picture = photo(width, height).astype(float)
        if min(width, height) > 15:  # in a few pixels a network has too little to go by
            shifted = [np.roll(shrunk, step, axis) for axis in (0, 1) for step in (-1, 1)]
            near = [np.abs(other - picture)[1:-1, 1:-1].mean() for other in (shrunk, *shifted)]
            assert 1.2 * near[0] < min(near[1:])
