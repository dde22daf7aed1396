"""What a JPEG leaves."""

import io

import numpy as np
import pytest
from PIL import Image

from fourfold.engine import jpeg_loss as jpeg_loss_module
from fourfold.engine.jpeg_loss import jpeg_loss


def photo() -> np.ndarray:
    """Soft shapes, a hard edge and a little noise."""
    y, x = np.mgrid[:96, :128]
    rgb = np.stack([128 + 100 * np.sin(x / 17), 128 + 80 * np.cos(y / 13 + x / 40), 60 + x], axis=-1)
    rgb[30:60, 40:90] = (200, 40, 90)
    return np.clip(rgb + np.random.default_rng(0).normal(0, 4, rgb.shape), 0, 255).astype(np.uint8)


def through_pillow(rgb: np.ndarray) -> tuple[np.ndarray, dict[int, list[int]]]:
    with io.BytesIO() as buffer:
        Image.fromarray(rgb).save(buffer, format="JPEG")
        with Image.open(buffer) as image:
            return np.asarray(image).astype(int), image.quantization  # type: ignore[attr-defined]


def test_it_is_what_pillow_reads_back() -> None:
    """Libjpeg's integer transforms round elsewhere: a few levels at hard edges, a third on average."""
    rgb = photo()
    expected, _ = through_pillow(rgb)
    difference = np.abs(jpeg_loss(rgb) - expected)

    assert np.abs(rgb - expected).mean() > 2  # there is a loss to speak of
    assert difference.mean() < 0.4
    assert difference.max() <= 8


def test_the_tables_are_those_of_quality_75() -> None:
    """As the encoder itself writes them into its files."""
    _, tables = through_pillow(photo())

    assert [step for row in jpeg_loss_module._LUMA for step in row] == list(tables[0])
    assert [step for row in jpeg_loss_module._CHROMA for step in row] == list(tables[1])


@pytest.mark.parametrize("level", [0, 128, 255])
def test_grey_stays_grey(level: int) -> None:
    """A flat picture loses nothing."""
    assert (jpeg_loss(np.full((16, 32, 3), level, np.uint8)) == level).all()
