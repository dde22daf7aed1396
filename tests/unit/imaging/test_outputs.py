"""The final file: every format, depth and size, textures that stay seamless, and how near the result stays."""

from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image

from fourfold.config import LimitSettings
from fourfold.errors import BadResultError, InvalidParameterError
from fourfold.imaging import Canvas, OutputOptions, Recipe, compare, files, measure
from fourfold.imaging.fidelity import describe

PHOTO = Path(__file__).parents[3] / "examples" / "photo.jpg"


def load(path: Path) -> pyvips.Image:
    return pyvips.Image.new_from_file(str(path)).copy_memory()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "avif", "tiff"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_every_format_is_written(upscaling, make_picture, tmp_path: Path, kind: str, mode: str) -> None:
    """As what it says, at four times the size, and with the colours it should have."""
    with Image.open(PHOTO) as photo:
        image = photo.convert("RGB").resize((64, 48)).convert(mode)
    image.save(tmp_path / "in.png")
    options = OutputOptions(format=kind, quality=None if kind in ("png", "tiff") else 95)

    upscaling.upscale(tmp_path / "in.png", tmp_path / "plain.png")
    _, written = upscaling.upscale(tmp_path / "in.png", tmp_path / f"out.{kind}", options)

    with Image.open(tmp_path / f"out.{kind}") as result, Image.open(tmp_path / "plain.png") as plain:
        assert (result.format or "").lower() == kind
        assert result.size == plain.size == (written.width, written.height) == (256, 192)
        difference = np.asarray(result.convert("RGB"), float) - np.asarray(plain.convert("RGB"), float)
        assert np.abs(difference).mean() < 2.5


def test_quality_is_obeyed(upscaling, tmp_path: Path) -> None:
    """Less quality, fewer bytes."""
    sizes = []
    for quality in (30, 60, 95):
        upscaling.upscale(PHOTO, tmp_path / "out.jpg", OutputOptions(format="jpeg", quality=quality))
        sizes.append((tmp_path / "out.jpg").stat().st_size)

    assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 3


def test_transparency_is_laid_on_white_where_the_format_has_none(upscaling, tmp_path: Path) -> None:
    """And the reply says so."""
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "a.png")

    opened, written = upscaling.upscale(tmp_path / "a.png", tmp_path / "out.jpg", OutputOptions(format="jpeg"))

    with Image.open(tmp_path / "out.jpg") as result:
        assert np.asarray(result).min() >= 254
    said = describe(opened.recipe, written, files.Measures(), format_name="jpeg")
    assert said.alpha == "flattened" and "white" in said.warnings[0]


@pytest.mark.parametrize(("kind", "bits"), [("png", 16), ("tiff", 16), ("avif", 12), ("jpeg", 8), ("webp", 8)])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_sixteen_bits_come_out_as_deep_as_the_format_goes(
    upscaling, tmp_path: Path, kind: str, bits: int, bands: int
) -> None:
    """A slow gradient keeps its levels, where 8 bits would show bands."""
    ramp = np.linspace(20_000, 24_000, 32 * 24).astype(np.uint16).reshape(24, 32, 1).repeat(bands, -1)
    ramp[..., 3:] = np.linspace(20_000, 60_000, 32)[None, :, None]
    image = pyvips.Image.new_from_array(ramp).copy(interpretation="grey16" if bands == 1 else "rgb16")
    image.pngsave(str(tmp_path / "in.png"))

    opened, written = upscaling.upscale(tmp_path / "in.png", tmp_path / f"out.{kind}", OutputOptions(format=kind))

    assert (opened.canvas.bits, written.bits) == (16, bits)
    result = load(tmp_path / f"out.{kind}")
    levels = len(np.unique(result.numpy().reshape(result.height, result.width, -1)[..., 0]))
    assert levels > {16: 3000, 12: 150, 8: 10}[bits]
    warned = describe(opened.recipe, written, files.Measures(), format_name=kind).warnings
    assert any("16 bits" in text for text in warned) == (bits < 16)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (OutputOptions(scale=2), (80, 60)),
        (OutputOptions(scale=1.5), (60, 45)),
        (OutputOptions(width=99), (99, 74)),
        (OutputOptions(width=97, height=31, fit="exact"), (97, 31)),
        (OutputOptions(scale=1), (40, 30)),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_the_final_size_is_exact(upscaling, make_picture, tmp_path: Path, options, size, mode: str) -> None:
    """To the pixel, with alpha on the same grid."""
    _, written = upscaling.upscale(make_picture(mode), tmp_path / "out.png", options)

    result = load(tmp_path / "out.png")
    assert (result.width, result.height) == (written.width, written.height) == size


def _check_size(upscaling, folder: Path, width: int, height: int) -> None:
    rng = np.random.default_rng(width * 100 + height)
    source, target = folder / f"in-{width}-{height}.png", folder / f"out-{width}-{height}.png"
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(source)
    _, written = upscaling.upscale(source, target)
    result = load(target)
    assert (result.width, result.height) == (written.width, written.height) == (4 * width, 4 * height)
    with Image.open(source) as image:
        expected = upscaling.enlarged(np.asarray(image))
    assert np.array_equal(result.numpy(), expected)


def test_output_is_four_times_the_input_for_every_side(upscaling, tmp_path: Path) -> None:
    """Every width and every height of 1 .. 70 once, and a spread above."""
    for i in range(1, 71):
        _check_size(upscaling, tmp_path, i, 71 - i)
    for width, height in ((127, 3), (256, 255), (641, 77), (3, 1025)):
        _check_size(upscaling, tmp_path, width, height)


@pytest.mark.slow
def test_output_is_four_times_the_input_for_every_pair_of_sides(upscaling, tmp_path: Path) -> None:
    """All 4,900 of 1 .. 70 by 1 .. 70."""
    for width in range(1, 71):
        for height in range(1, 71):
            _check_size(upscaling, tmp_path, width, height)


def _texture(side: int) -> np.ndarray:
    """Return a texture that fits itself: whole waves."""
    y, x = np.mgrid[:side, :side] * (2 * np.pi / side)
    planes = [np.sin(3 * x + k) * np.cos(2 * y - k) + 0.5 * np.sin(5 * y + 4 * x) for k in range(3)]
    return np.rint(127.5 + 80 * np.stack(planes, -1)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_tileable_texture_stays_tileable(upscaling, tmp_path: Path, mode: str) -> None:
    """Laid 2 x 2, the seam of the result is as smooth as its inside; without the option it is not."""
    side = 30
    pixels = _texture(side)
    if mode == "RGBA":
        pixels = np.dstack([pixels, 128 + pixels[..., :1] // 4])
    Image.fromarray(pixels).save(tmp_path / "a.png")

    upscaling.upscale(tmp_path / "a.png", tmp_path / "out.png", wrap_px=40)

    result = load(tmp_path / "out.png").numpy().astype(int)
    assert result.shape[:2] == (4 * side, 4 * side)
    whole = np.asarray(upscaling.enlarged(np.tile(pixels[..., :3], (3, 3, 1)))).astype(int)
    middle = whole[4 * side : 8 * side, 4 * side : 8 * side]
    assert np.array_equal(result[..., :3], middle)
    twice = np.tile(result, (2, 2, 1))
    steps = np.abs(np.diff(twice, axis=1)).max(axis=(0, 2))
    assert steps[4 * side - 1] <= steps[: 4 * side - 1].max()
    plain_steps = np.abs(upscaling.enlarged(pixels[..., :3])[:, 0].astype(int) - middle[:, 0])
    assert plain_steps.max() > 2  # the check would notice


def test_a_picture_that_is_too_large_once_wrapped_is_refused(make_picture, tmp_path: Path) -> None:
    """From the header."""
    limits = LimitSettings(input_pixels=1200)

    files.prepare(make_picture(), tmp_path, limits)
    with pytest.raises(files.ImageTooLargeError, match="tileable"):
        files.prepare(make_picture(), tmp_path, limits, wrap_px=1)


def test_an_impossible_size_never_reaches_the_encoder(upscaling, make_picture, tmp_path: Path) -> None:
    """Also where a caller forgot to ask beforehand."""
    with pytest.raises(InvalidParameterError, match="at most 160 x 120"):
        upscaling.upscale(make_picture(), tmp_path / "out.png", OutputOptions(width=400))


def test_metadata_goes_into_a_result_without_touching_its_pixels(upscaling, tmp_path: Path) -> None:
    """The compressed pixels of the worker's PNG are in the finished file, byte for byte: encoded once."""
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    with Image.open(PHOTO) as photo:
        photo.save(tmp_path / "in.jpg", exif=exif, quality=95, dpi=(300, 300))
    prepared = files.prepare(tmp_path / "in.jpg", tmp_path, upscaling.LIMITS)
    upscaling.upscale(prepared.path, tmp_path / "worker.png")

    written = files.finish(tmp_path / "worker.png", prepared.recipe, tmp_path / "out.png")

    assert written.metadata_kept == ("exif",)
    worker, finished = (tmp_path / "worker.png").read_bytes(), (tmp_path / "out.png").read_bytes()
    assert worker[worker.index(b"IDAT") :] in finished
    assert finished.count(b"pHYs") == 1
    with Image.open(tmp_path / "out.png") as result:
        result.load()
        assert result.getexif()[0x010F] == "Maker"
        assert result.info["dpi"] == pytest.approx((300, 300), rel=1e-3)


def test_the_kept_pixels_measure_like_the_file(upscaling, tmp_path: Path) -> None:
    """A small canonical picture is decoded once; the comparison with its result is the same, to the last digit."""
    opened, _ = upscaling.upscale(PHOTO, tmp_path / "out.png")
    width, height = opened.canvas.width * 4, opened.canvas.height * 4

    prepared = files.prepare(PHOTO, tmp_path, upscaling.LIMITS)

    assert prepared.path == PHOTO and prepared.canvas is not None
    by_pixels = files.verify(tmp_path / "out.png", width, height, prepared.canvas)
    assert by_pixels == files.verify(tmp_path / "out.png", width, height, PHOTO)


def test_bicubic_is_measured_as_bicubic(tmp_path: Path) -> None:
    """Structure is compared with a bicubic enlargement that Pillow would make, too, away from the border."""
    with Image.open(PHOTO) as photo:
        small = photo.convert("RGB").crop((0, 0, 96, 64))
    large = small.resize((384, 256), Image.Resampling.BICUBIC)
    small.save(tmp_path / "small.png")
    large.save(tmp_path / "large.png")

    near = files.verify(tmp_path / "large.png", 384, 256, tmp_path / "small.png")

    assert near.detail_ratio == pytest.approx(1.0, abs=0.05)


def test_lanczos_is_near_and_invents_little(upscaling, tmp_path: Path) -> None:
    """As much structure as bicubic has, to a tenth."""
    opened, _ = upscaling.upscale(PHOTO, tmp_path / "out.png")
    width, height = opened.canvas.width * 4, opened.canvas.height * 4

    near = files.verify(tmp_path / "out.png", width, height, PHOTO)

    assert near.lr_psnr_db is not None and near.lr_psnr_db > 36
    assert near.detail_ratio == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (0, 160, 0)])
def test_one_plain_colour_is_no_upscale_of_a_photo(colour: tuple[int, int, int], tmp_path: Path) -> None:
    """A model that has failed, or a peer that saves itself the work, must not pass for a success."""
    with Image.open(PHOTO) as photo:
        size = (photo.width * 4, photo.height * 4)
    Image.new("RGB", size, colour).save(tmp_path / "plain.png")

    with pytest.raises(BadResultError, match="plain colour"):
        files.verify(tmp_path / "plain.png", *size, PHOTO)


@pytest.mark.parametrize(("given", "made"), [((9, 9, 9), (0, 0, 0)), ((200, 30, 30), (201, 29, 30))])
def test_a_plain_picture_may_stay_plain(given: tuple[int, ...], made: tuple[int, ...], tmp_path: Path) -> None:
    """Also where a model rounds its colour, or drops a single bright pixel of it."""
    picture = Image.new("RGB", (20, 10), given)
    picture.putpixel((3, 3), (255, 255, 255))
    picture.save(tmp_path / "given.png")
    Image.new("RGB", (80, 40), made).save(tmp_path / "made.png")

    assert files.verify(tmp_path / "made.png", 80, 40, tmp_path / "given.png").lr_psnr_db is not None


def test_a_repeated_pixel_is_as_near_as_can_be(tmp_path: Path) -> None:
    """99 dB; and a flat picture has no structure to compare."""
    small, big = Canvas(tmp_path / "s", 20, 10), Canvas(tmp_path / "b", 80, 40)
    pixels = np.full((10, 20, 3), 77, np.uint8)
    with small.write() as one, big.write() as other:
        one.put(0, 0, pixels)
        other.put(0, 0, np.repeat(np.repeat(pixels, 4, 0), 4, 1))

    found = measure.measure(small, big)

    assert (found.lr_psnr_db, found.detail_ratio) == (99.0, None)


def test_compare_knows_equal_from_unequal(make_picture, tmp_path: Path) -> None:
    """99 dB and 1 for the same picture; less for a blurred one; both stand side by side under their names."""
    with Image.open(PHOTO) as photo:
        photo.resize((64, 48)).resize(photo.size).save(tmp_path / "blurred.png")
        size = photo.size
    limits = LimitSettings()

    same = compare.compare(PHOTO, PHOTO, tmp_path / "same.png", limits)
    other = compare.compare(PHOTO, tmp_path / "blurred.png", tmp_path / "other.png", limits)

    assert (same.psnr_db, same.ssim) == (99.0, pytest.approx(1.0))
    assert other.psnr_db < 35 and other.ssim < 0.95
    result = load(tmp_path / "other.png")
    assert result.width == 2 * size[0] + 8 and result.height > size[1]


def test_a_recipe_crosses_a_pipe(tmp_path: Path) -> None:
    """Its JSON says all of it."""
    recipe = Recipe(
        grey=True, alpha=Canvas(tmp_path / "a", 3, 2, 16, 1), profile=tmp_path / "p", converts=True, wrap_px=9
    )

    assert Recipe.from_json(recipe.to_json()) == recipe
