"""Colours that sRGB does not have are told, with the share of the pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourfold.config import LimitSettings
from fourfold.imaging import describe, files
from fourfold.imaging.fidelity import Fidelity, Measures

WIDE, PLAIN = (0, 255, 0), (120, 140, 110)  # of Display P3: far outside sRGB; inside it


def fidelity(folder: Path, pixels: np.ndarray, *, kind: str = "png", **options: object) -> Fidelity:
    path = folder / f"a.{kind}"
    Image.fromarray(pixels, **({"mode": "CMYK"} if pixels.shape[-1] == 4 else {})).save(path, **options)
    opened = files.open_canvas(path, folder, LimitSettings())
    written = files.encode(opened.canvas, opened.recipe, folder / "out.png")
    return describe(opened.recipe, written, Measures(), format_name="png")


def picture(wide_columns: int, width: int = 100) -> np.ndarray:
    pixels = np.full((50, width, 3), PLAIN, np.uint8)
    pixels[:, :wide_columns] = WIDE
    return pixels


@pytest.mark.parametrize("wide_columns", [100, 25, 1])
def test_the_share_of_clipped_pixels_is_told(tmp_path: Path, colours, wide_columns: int) -> None:
    """As a number and in words."""
    said = fidelity(tmp_path, picture(wide_columns), icc_profile=colours.rgb_profile("P3"))

    assert said.clipped_share == pytest.approx(wide_columns / 100)
    assert any(f"{wide_columns / 100:.1%} of the pixels had colours outside sRGB" in w for w in said.warnings)


def test_colours_inside_srgb_are_no_warning(tmp_path: Path, colours) -> None:
    """Whatever profile they come in; white and black are inside."""
    pixels = picture(0)
    pixels[:9], pixels[9:18] = 0, 255
    for profile in ("P3", "AdobeRGB"):
        said = fidelity(tmp_path, pixels, icc_profile=colours.rgb_profile(profile))
        assert (said.clipped_share, said.warnings) == (0.0, ())
    assert fidelity(tmp_path, picture(100), icc_profile=colours.srgb_profile()).clipped_share == 0.0


def test_a_large_picture_is_sampled(tmp_path: Path, colours, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly, so that the share is about right."""
    monkeypatch.setattr("fourfold.imaging.colour._LOOKED_AT", 500)
    said = fidelity(tmp_path, picture(30), icc_profile=colours.rgb_profile("P3"))

    assert said.clipped_share == pytest.approx(0.3, abs=0.05)
