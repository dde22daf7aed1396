"""Transparency: no fringe on any background, hard edges that stay hard, opaque ones dropped."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourfold.imaging import Canvas, alpha

COLOUR = (230, 60, 40)


def disc(side: int = 60, *, soft: bool = False, hidden: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """Return a disc of one colour, ``uint8 [side, side, 4]``; *hidden* is what lies under the transparency."""
    y, x = np.mgrid[:side, :side]
    distance = np.hypot(x - side / 2, y - side / 2) - side / 3
    cover = np.clip(0.5 - distance / 4, 0, 1) if soft else (distance < 0).astype(float)
    shown = np.rint(cover * 255).astype(np.uint8)
    rgb = np.where(shown[..., None] > 0, np.uint8(COLOUR), np.uint8(hidden))
    return np.dstack([rgb, shown])


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 255, 255), (0, 255, 0)])
def test_no_background_shows_a_fringe(upscaling, tmp_path: Path, soft: bool, hidden) -> None:
    """Over white, black and green each pixel lies between the disc and the background, to a level and a half."""
    Image.fromarray(disc(soft=soft, hidden=hidden)).save(tmp_path / "a.png")

    upscaling.upscale(tmp_path / "a.png", tmp_path / "out.png")

    with Image.open(tmp_path / "out.png") as result:
        samples = np.asarray(result).astype(float)
    cover = samples[..., 3:] / 255
    for background in ((255, 255, 255), (0, 0, 0), (0, 255, 0)):
        shown = samples[..., :3] * cover + np.array(background) * (1 - cover)
        ideal = np.array(COLOUR) * cover + np.array(background) * (1 - cover)
        assert np.abs(shown - ideal).max() <= 1.5


def test_a_hard_mask_stays_crisp(upscaling, tmp_path: Path) -> None:
    """On a straight edge one pixel, at most two, is neither inside nor outside; interpolation alone makes it eight."""
    pixels = np.zeros((24, 40, 4), np.uint8)
    pixels[:, :20] = (*COLOUR, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")

    opened, _ = upscaling.upscale(tmp_path / "a.png", tmp_path / "out.png")

    assert opened.recipe.is_hard
    with Image.open(tmp_path / "out.png") as result:
        mask = np.asarray(result)[..., 3]
    assert ((mask > 0) & (mask < 255)).sum(axis=1).max() <= 2
    assert (mask[:, :76] == 255).all() and (mask[:, 84:] == 0).all()


def test_a_soft_mask_is_interpolated_as_the_colours_are(upscaling, tmp_path: Path) -> None:
    """By the Lanczos engine's own kernel, on the same grid."""
    pixels = disc(soft=True)
    Image.fromarray(pixels).save(tmp_path / "a.png")

    upscaling.upscale(tmp_path / "a.png", tmp_path / "out.png")

    with Image.open(tmp_path / "out.png") as result:
        mask = np.asarray(result)[..., 3].astype(int)
    expected = upscaling.enlarged(np.repeat(pixels[..., 3:], 3, axis=-1))[..., 0].astype(int)
    assert np.abs(mask - expected).max() <= 1


def test_a_picture_that_is_transparent_all_over_stays_so(upscaling, tmp_path: Path) -> None:
    """Nothing to bleed from, and no warning about a division by nothing."""
    Image.new("RGBA", (9, 7), (10, 200, 30, 0)).save(tmp_path / "a.png")

    upscaling.upscale(tmp_path / "a.png", tmp_path / "out.png")

    with Image.open(tmp_path / "out.png") as result:
        assert result.getchannel("A").getextrema() == (0, 0)


@pytest.mark.parametrize("bits", [8, 16])
def test_strips_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """A picture larger than a strip is bled and enlarged as a whole one is, to the last bit."""
    rgba = Canvas(tmp_path / "rgba", 60, 60, bits, 4)
    with rgba.write() as writer:
        writer.put(0, 0, (disc(soft=True).astype(np.uint32) * (257 if bits == 16 else 1)).astype(rgba.dtype))

    def run(name: str) -> tuple[np.ndarray, np.ndarray]:
        colour, mask = Canvas(tmp_path / f"c{name}", 60, 60, bits), Canvas(tmp_path / f"m{name}", 60, 60, bits, 1)
        alpha.separate(rgba, colour, mask)
        big = Canvas(tmp_path / f"b{name}", 240, 240, bits, 1)
        alpha.enlarge(mask, big, is_hard=False)
        return np.array(colour.read()), np.array(big.read())

    whole = run("whole")
    monkeypatch.setattr(alpha, "_STRIP_SAMPLES", 5000)
    strips = run("strips")

    assert np.array_equal(whole[0], strips[0]) and np.array_equal(whole[1], strips[1])
