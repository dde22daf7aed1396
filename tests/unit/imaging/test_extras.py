"""BMP, HEIC and JPEG XL: formats that libvips' wheel does not read.

The HEIC files beside this one were made with pillow-heif 1.8.1, whose wheel holds an encoder that ours must not: ramps
of 48 x 32 in 4:4:4 and full quality; one in Display P3 with an orientation in EXIF alone, one with alpha 255 and 90,
one in 10 bits, one grey.
"""

import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fourfold.config import LimitSettings
from fourfold.errors import ImageTooLargeError, InvalidImageError, UnsupportedFormatError
from fourfold.imaging import Codec, extras, files, formats

HEIC = Path(__file__).parent / "heic"
LIMITS = LimitSettings()


def ramps() -> np.ndarray:
    y, x = np.mgrid[:32, :48]
    return np.stack([x * 5, y * 7, 255 - x * 4], axis=-1).astype(np.uint8)


def opened(path: Path, folder: Path) -> tuple[Any, Any]:
    """Return the pixels of the canonical form and its recipe."""
    found = files.open_canvas(path, folder, LIMITS)
    return np.array(found.canvas.read()), found.recipe


def jxl(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    pyjpegxl = pytest.importorskip("pyjpegxl", reason="needs the [jxl] extra")
    path.write_bytes(pyjpegxl.encode_from_numpy(np.ascontiguousarray(pixels), lossless=True, **options))
    return path


@pytest.mark.parametrize(("mode", "expected"), [("RGB", "RGB"), ("L", "L"), ("1", "L"), ("P", "RGB"), ("RGBA", "RGBA")])
def test_a_bmp_comes_back_as_it_looked(tmp_path: Path, upscaling, mode: str, expected: str) -> None:
    """In whatever depth it was written."""
    image = Image.fromarray(ramps()).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(ramps()[..., 0]))
    image.save(tmp_path / "a.bmp")
    pixels, recipe = opened(tmp_path / "a.bmp", tmp_path)
    upscaling.upscale(tmp_path / "a.bmp", tmp_path / "out.png")

    with Image.open(tmp_path / "a.bmp") as stored, Image.open(tmp_path / "out.png") as result:
        has_alpha = stored.mode == "RGBA"
        assert result.mode == (expected if has_alpha or expected != "RGBA" else "RGB")
        assert np.array_equal(pixels, np.asarray(stored.convert("RGB"))) or has_alpha
    assert (recipe.intake.format, recipe.intake.width, recipe.intake.height) == ("bmp", 48, 32)


def test_a_bmp_that_pillow_does_not_read_is_unsupported_not_damaged(tmp_path: Path) -> None:
    """Sixteen bits with four for each colour and alpha, as some editors write them."""
    masks = (0x0F00, 0x00F0, 0x000F, 0xF000)
    header = struct.pack("<IiiHHIIiiII4I", 56, 8, 8, 1, 16, 3, 128, 0, 0, 0, 0, *masks)
    (tmp_path / "a.bmp").write_bytes(struct.pack("<2sIHHI", b"BM", 198, 0, 0, 70) + header + bytes(128))

    with pytest.raises(UnsupportedFormatError, match="save it as PNG"):
        formats.inspect(tmp_path / "a.bmp", LIMITS)


def test_a_heif_without_hevc_is_unsupported_not_damaged(tmp_path: Path) -> None:
    """The container holds JPEG, JPEG 2000 and others, too."""
    pytest.importorskip("pi_heif", reason="needs the [heic] extra")
    (tmp_path / "a.heif").write_bytes((HEIC / "p3.heic").read_bytes().replace(b"hvcC", b"j2kH"))

    with pytest.raises(UnsupportedFormatError, match="no HEVC"):
        formats.inspect(tmp_path / "a.heif", LIMITS)


def test_a_heic_keeps_colours_and_metadata_and_its_own_orientation(tmp_path: Path, upscaling, colours) -> None:
    """What EXIF says of the orientation does not count in HEIC; the profile does."""
    pytest.importorskip("pi_heif", reason="needs the [heic] extra")
    _, recipe = opened(HEIC / "p3.heic", tmp_path)
    upscaling.upscale(HEIC / "p3.heic", tmp_path / "out.png")

    assert (recipe.intake.format, recipe.intake.width, recipe.intake.profile) == ("heic", 48, "P3")
    with Image.open(tmp_path / "out.png") as result:
        assert (result.size, result.getexif()[0x10F], result.getexif()[0x112]) == ((192, 128), "Fourfold", 1)
        shown = colours.as_srgb(result)
    truth = Image.fromarray(upscaling.enlarged(ramps()))
    truth.info["icc_profile"] = colours.rgb_profile("P3")
    assert colours.delta_e_2000(shown, colours.as_srgb(truth)).mean() < 1.5


def test_a_heic_keeps_its_transparency(tmp_path: Path) -> None:
    """Apart from the colours, as everywhere."""
    pytest.importorskip("pi_heif", reason="needs the [heic] extra")
    _, recipe = opened(HEIC / "alpha.heic", tmp_path)

    assert recipe.alpha is not None
    mask = np.array(recipe.alpha.read())[..., 0].astype(int)
    assert np.abs(mask[:, 4:20] - 255).max() <= 2 and np.abs(mask[:, 28:44] - 90).max() <= 2


def test_a_heic_of_ten_bits_is_one_of_sixteen(tmp_path: Path) -> None:
    """White is white, and there are more levels than 256."""
    pytest.importorskip("pi_heif", reason="needs the [heic] extra")
    pixels, recipe = opened(HEIC / "ten.heic", tmp_path)

    assert (pixels.dtype, recipe.intake.bits) == (np.uint16, 16)
    assert np.abs(pixels / 257 - ramps()).mean() < 1.5
    assert pixels.max() == 65_535


def test_a_grey_heic_stays_grey(tmp_path: Path) -> None:
    pytest.importorskip("pi_heif", reason="needs the [heic] extra")

    assert opened(HEIC / "grey.heic", tmp_path)[1].grey


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_a_jpeg_xl_keeps_depth_grey_and_transparency(tmp_path: Path, dtype: Any, bands: int) -> None:
    """Lossless, so that every sample is known."""
    pixels = np.dstack([ramps(), ramps()[..., 0] // 2 + 9])[
        ..., {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[bands]
    ]
    pixels = pixels.astype(dtype) * (257 if dtype == np.uint16 else 1)
    made, recipe = opened(jxl(tmp_path / "a.jxl", pixels), tmp_path)

    assert (made.dtype, recipe.grey, recipe.alpha is not None) == (dtype, bands <= 2, bands in (2, 4))
    if bands == 3:
        assert np.array_equal(made, pixels)
    if recipe.alpha is not None:
        assert np.array_equal(np.array(recipe.alpha.read())[..., 0], pixels[..., -1])


@pytest.mark.parametrize("profile", ["sRGB", "P3"])
def test_a_lossy_jpeg_xl_looks_as_what_was_encoded(tmp_path: Path, upscaling, colours, profile: str) -> None:
    """Its decoder gives another space than it was encoded from: light itself, for a profile that it cannot compute."""
    pixels = np.clip(ramps(), 60, 190)
    icc = colours.srgb_profile() if profile == "sRGB" else colours.rgb_profile("P3")
    pyjpegxl = pytest.importorskip("pyjpegxl", reason="needs the [jxl] extra")
    (tmp_path / "a.jxl").write_bytes(pyjpegxl.encode_from_numpy(pixels, quality=0.2, icc=icc))
    upscaling.upscale(tmp_path / "a.jxl", tmp_path / "out.png")

    truth = Image.fromarray(upscaling.enlarged(pixels))
    truth.info["icc_profile"] = icc
    with Image.open(tmp_path / "out.png") as result:
        assert colours.delta_e_2000(colours.as_srgb(result), colours.as_srgb(truth)).mean() < 1.0


@pytest.mark.parametrize(
    ("head", "extra"), [(b"\xff\x0a" + bytes(40), "jxl"), (b"\0\0\0\x18ftypheic" + bytes(40), "heic")]
)
def test_without_its_extra_a_format_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: bytes, extra: str
) -> None:
    """With what to install."""
    (tmp_path / "a").write_bytes(head)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(UnsupportedFormatError, match=rf"pip install 'fourfold\[{extra}\]'"):
        formats.inspect(tmp_path / "a", LIMITS)


def small_files(folder: Path) -> list[Path]:
    """Return a whole file of each format."""
    Image.fromarray(ramps()).save(folder / "a.bmp")
    return [folder / "a.bmp", HEIC / "p3.heic", jxl(folder / "a.jxl", ramps())]


def test_too_large_is_told_from_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any pixel is decoded."""
    pytest.importorskip("pi_heif", reason="needs the [heic] extra")
    monkeypatch.setattr(extras, "_DECODERS", {})
    for path in small_files(tmp_path):
        with pytest.raises(ImageTooLargeError):
            files.open_canvas(path, tmp_path, LimitSettings(input_pixels=1000))


async def test_a_damaged_file_is_refused_whatever_is_missing_of_it(tmp_path: Path) -> None:
    """In a codec process, which lives on: cut anywhere, or with some bytes changed."""
    pytest.importorskip("pi_heif", reason="needs the [heic] extra")
    rng = np.random.default_rng(4)
    async with Codec() as codec:
        pids = {child.pid for child in codec._children}
        for whole in small_files(tmp_path):
            data = whole.read_bytes()
            for share in (0.02, 0.3, 0.7, 0.9):
                (tmp_path / "cut").write_bytes(data[: max(30, int(len(data) * share))])
                with pytest.raises((InvalidImageError, UnsupportedFormatError)):
                    await codec.open_canvas(tmp_path / "cut", tmp_path, LIMITS)
            for _ in range(10):
                spoilt = bytearray(data)
                for place in rng.integers(12, len(data), 6):
                    spoilt[place] = rng.integers(256)
                (tmp_path / "spoilt").write_bytes(spoilt)
                try:
                    await codec.open_canvas(tmp_path / "spoilt", tmp_path, LIMITS)
                except (InvalidImageError, UnsupportedFormatError, ImageTooLargeError) as exc:
                    assert exc.message
        assert {child.pid for child in codec._children} == pids
