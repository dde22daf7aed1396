"""Interpolation."""

import numpy as np
import pytest
from PIL import Image

from fourfold.engine.lanczos import read_around, upscale
from fourfold.engine.tiling import Box


def interpolate(image: np.ndarray) -> np.ndarray:
    made = np.empty((image.shape[0] * 4, image.shape[1] * 4, 3), image.dtype)
    upscale(read_around(image, Box(0, 0, image.shape[1], image.shape[0])), made)
    return made


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_flat_picture_stays_flat(dtype: type) -> None:
    """The weights sum to one, at the border too."""
    for level in (0, 1, 100, np.iinfo(dtype).max):
        assert (interpolate(np.full((5, 4, 3), level, dtype)) == level).all()


def test_it_equals_pillow_inside() -> None:
    """Pillow's Lanczos-3 rounds and clips between the passes, hence the middle grey; its border is another."""
    image = np.random.default_rng(0).integers(90, 166, (20, 31, 3), np.uint8)
    pillow = np.asarray(Image.fromarray(image).resize((124, 80), Image.Resampling.LANCZOS)).astype(int)
    inside = np.s_[16:-16, 16:-16]

    assert np.abs(interpolate(image).astype(int)[inside] - pillow[inside]).max() <= 1


def test_16_bits_are_16_bits() -> None:
    """A slope of one level in 65536 per pixel comes out as four steps of a quarter."""
    image = np.repeat((30_000 + 4 * np.arange(20, dtype=np.uint16))[None, :, None], 3, axis=2)
    made = interpolate(image)[0, :, 0].astype(float)
    expected = 30_000 + 4 * ((np.arange(80) + 0.5) / 4 - 0.5)

    assert np.abs(made - expected)[16:-16].max() <= 0.5 + 0.01 * 4


def test_rows_and_columns_are_treated_alike() -> None:
    """Turning the picture turns the result, but for rounding on the way."""
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    turned = interpolate(image.transpose(1, 0, 2)).transpose(1, 0, 2)

    assert np.abs(interpolate(image).astype(int) - turned).max() <= 1


def test_beyond_the_picture_its_edge_is_repeated() -> None:
    """A box at a corner sees three more of the corner's pixel, one inside sees its neighbours."""
    image = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    corner = read_around(image, Box(0, 0, 1, 1))
    inner = read_around(image, Box(3, 3, 4, 4))

    assert (7, 7, 3) == corner.shape == inner.shape
    assert (corner[:4, :4] == image[0, 0]).all()
    assert np.array_equal(corner[3:, 3:], image[:4, :4])
    assert np.array_equal(inner[:5, :6], image[:5, :6])
    assert np.array_equal(inner[5, :6], image[4])


def test_overshoot_is_clipped() -> None:
    """Lanczos rings at hard edges; pixels do not wrap around."""
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255
    made = interpolate(image)

    assert (made[:, :14] < 40).all()
    assert (made[:, 18:] > 215).all()
