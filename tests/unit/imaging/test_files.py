"""From bytes to canonical form and back, checked against Pillow."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image

from fourfold.config import LimitSettings
from fourfold.errors import (
    BadResultError,
    FourfoldError,
    ImageTooLargeError,
    InvalidImageError,
    UnsupportedFormatError,
)
from fourfold.imaging import Canvas, Measures, Recipe, containers, describe, files, formats

LIMITS = LimitSettings()


def read(path: Path) -> Image.Image:
    """Return the picture that Pillow sees, with its file closed."""
    with Image.open(path) as image:
        image.load()
        return image.copy()


def quadruple(canvas: Canvas, folder: Path) -> Canvas:
    """Return a canvas with every pixel of *canvas* four times in each direction."""
    big = Canvas(folder / "big.raw", canvas.width * 4, canvas.height * 4)
    with big.write() as writer:
        writer.put(0, 0, np.repeat(np.repeat(np.array(canvas.read()), 4, 0), 4, 1))
    return big


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif"])
def test_a_header_tells_format_and_size(make_picture, kind: str) -> None:
    """Sniffed from the bytes; the name says nothing."""
    path = make_picture(kind=kind).rename(make_picture().with_name("misnamed.bin"))

    header = formats.inspect(path, LIMITS)

    assert (header.format, header.width, header.height) == ("jpeg" if kind == "jpg" else kind, 40, 30)


@pytest.mark.parametrize(
    "content", [b"hello world, this is text", b"%PDF-1.7 ....", b"\x89PN", b"RIFF\0\0\0\0WAVEfmt "]
)
def test_bytes_that_are_no_picture_are_refused(tmp_path: Path, content: bytes) -> None:
    """415, with what was expected."""
    path = tmp_path / "x.png"
    path.write_bytes(content)

    with pytest.raises(UnsupportedFormatError, match="PNG, JPEG, WebP, GIF, TIFF, AVIF or BMP"):
        formats.inspect(path, LIMITS)


def test_an_empty_file_is_an_invalid_image(tmp_path: Path) -> None:
    """It has no format that could be unsupported."""
    (tmp_path / "x").write_bytes(b"")

    with pytest.raises(InvalidImageError, match="empty"):
        formats.inspect(tmp_path / "x", LIMITS)


@pytest.mark.parametrize(("limits", "match"), [({"input_pixels": 1199}, "1199 pixels"), ({"side_px": 39}, "39 pixels")])
def test_a_picture_beyond_the_limits_is_refused_from_its_header(make_picture, limits, match: str) -> None:
    """Even where its pixels are missing: nothing is decoded."""
    path = make_picture()
    data = path.read_bytes()
    path.write_bytes(data[:-12] + data[-12:])

    with pytest.raises(ImageTooLargeError, match=match):
        formats.inspect(path, LimitSettings(**limits))


def test_a_picture_at_the_limits_is_taken(make_picture) -> None:
    """Limits are inclusive."""
    assert formats.inspect(make_picture(), LimitSettings(input_pixels=1200, side_px=40)).width == 40


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(make_picture, tmp_path: Path, kind: str, keep: float) -> None:
    """Never half a picture."""
    path = make_picture(size=(200, 150), kind=kind)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])

    with pytest.raises(InvalidImageError):
        files.prepare(path, tmp_path, LIMITS)


def test_a_png_without_its_last_bytes_is_refused(make_picture, tmp_path: Path) -> None:
    """Libvips alone would take it: every pixel is there, the end is not."""
    path = make_picture()
    path.write_bytes(path.read_bytes()[:-2])

    with pytest.raises(InvalidImageError, match="incomplete"):
        files.prepare(path, tmp_path, LIMITS)


def test_a_png_with_bytes_after_its_end_is_taken(make_picture, tmp_path: Path) -> None:
    """Viewers show it, so do we."""
    path = make_picture()
    path.write_bytes(path.read_bytes() + b"appended by some tool")

    assert files.prepare(path, tmp_path, LIMITS).width == 40


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_canonical_file_passes_untouched(make_picture, tmp_path: Path, kind: str) -> None:
    """Opaque upright 8-bit RGB travels as the client's own bytes, and preparing is idempotent."""
    path = make_picture(kind=kind)

    prepared = files.prepare(path, tmp_path, LIMITS)

    assert (prepared.path, prepared.recipe) == (path, Recipe())


@pytest.mark.parametrize(
    ("mode", "kind", "grey", "alpha"),
    [
        ("L", "png", True, False),
        ("LA", "png", True, True),
        ("RGBA", "png", False, True),
        ("RGBA", "webp", False, True),
        ("RGB", "webp", False, False),
        ("P", "gif", False, False),
        ("CMYK", "jpg", False, False),
        ("1", "png", True, False),
    ],
)
def test_other_pictures_become_canonical(make_picture, tmp_path: Path, mode: str, kind: str, grey: bool, alpha: bool):
    """What is taken away is in the recipe; what remains is a canonical PNG of the same colours."""
    path = make_picture(mode, kind=kind)

    prepared = files.prepare(path, tmp_path, LIMITS)

    assert (prepared.recipe.grey, prepared.recipe.alpha is not None) == (grey, alpha)
    canonical = read(prepared.path)
    assert (canonical.mode, canonical.size) == ("RGB", (40, 30))
    assert files.prepare(prepared.path, tmp_path, LIMITS).path == prepared.path
    if mode != "CMYK":
        rgba = np.asarray(read(path).convert("RGBA"), dtype=int)
        visible = rgba[..., 3] > 0  # colour under full transparency is replaced on purpose
        assert np.abs(np.asarray(canonical, dtype=int) - rgba[..., :3])[visible].max() <= 2


def test_an_opaque_alpha_is_dropped(tmp_path: Path) -> None:
    """It says nothing, and without it the worker's own bytes can be the result."""
    Image.new("RGBA", (8, 8), (10, 20, 30, 255)).save(tmp_path / "a.png")

    assert files.prepare(tmp_path / "a.png", tmp_path, LIMITS).recipe.is_identity


def test_an_orientation_is_applied(tmp_path: Path) -> None:
    """A portrait that a camera stored lying down is upright, in size and pixels."""
    image = Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint32).astype(np.uint8).reshape(30, 40, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", quality=95, exif=exif)

    prepared = files.prepare(tmp_path / "a.jpg", tmp_path, LIMITS)

    assert (prepared.width, prepared.height) == (30, 40)
    upright = np.asarray(read(tmp_path / "a.jpg").transpose(Image.Transpose.ROTATE_270), dtype=int)
    assert np.abs(np.asarray(read(prepared.path), dtype=int) - upright).max() <= 2


@pytest.mark.parametrize(("max_bits", "unit"), [(16, 1), (8, 257)])
def test_sixteen_bits_stay_sixteen_for_who_can_take_them(tmp_path: Path, max_bits: int, unit: int) -> None:
    """Every level of the grey picture arrives; a peer that knows 8 bits gets the nearest of those."""
    samples = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).astype(np.uint16)
    Image.fromarray(samples).save(tmp_path / "a.png")

    opened = files.open_canvas(tmp_path / "a.png", tmp_path, LIMITS, max_bits=max_bits)

    assert opened.canvas.bits == max_bits
    assert np.array_equal(np.array(opened.canvas.read())[..., 0], np.floor(samples / unit + 0.5))


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA"])
def test_a_finished_picture_has_the_bands_it_came_with(make_picture, tmp_path: Path, mode: str) -> None:
    """Grey comes back grey, alpha comes back upscaled, and every side is four times as long."""
    path = make_picture(mode)
    opened = files.open_canvas(path, tmp_path, LIMITS)

    files.encode(quadruple(opened.canvas, tmp_path), opened.recipe, tmp_path / "out.png")

    result = read(tmp_path / "out.png")
    assert (result.mode, result.size) == (mode, (160, 120))
    original = read(path)
    small = np.asarray(result.resize((40, 30), Image.Resampling.BOX), dtype=float)
    assert np.abs(small - np.asarray(original, dtype=float)).mean() < 3


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_finish_does_for_a_file_what_encode_does_for_a_canvas(make_picture, tmp_path: Path, mode: str) -> None:
    """The gateway and the worker restore a picture alike."""
    opened = files.open_canvas(make_picture(mode), tmp_path, LIMITS)
    big = quadruple(opened.canvas, tmp_path)
    files.encode(big, Recipe(), tmp_path / "worker.png")
    files.encode(big, opened.recipe, tmp_path / "expected.png")

    files.finish(tmp_path / "worker.png", opened.recipe, tmp_path / "actual.png")

    expected, actual = read(tmp_path / "expected.png"), read(tmp_path / "actual.png")
    assert np.array_equal(np.asarray(expected), np.asarray(actual))


def test_verify_takes_a_sound_result(make_picture) -> None:
    """The right size, all of it readable."""
    files.verify(make_picture(), 40, 30)


@pytest.mark.parametrize("damage", ["size", "half", "garbage", "empty", "tail"])
def test_verify_refuses_anything_else(make_picture, damage: str) -> None:
    """Half a PNG, garbage or another size is the worker's bad result, not the client's bad image."""
    path = make_picture()
    data = path.read_bytes()
    changed = {"half": data[: len(data) // 2], "garbage": b"not a picture", "empty": b"", "tail": data[:-4]}
    path.write_bytes(changed.get(damage, data))

    with pytest.raises(BadResultError):
        files.verify(path, 41 if damage == "size" else 40, 30)


def test_a_thumbnail_fits_and_keeps_its_aspect(make_picture, tmp_path: Path) -> None:
    """What the safety classifier is shown."""
    opened = files.open_canvas(make_picture(size=(400, 100)), tmp_path, LIMITS)

    assert files.thumbnail(opened.canvas, 64).shape == (16, 64, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 2)])
def test_the_smallest_pictures_work(make_picture, tmp_path: Path, size: tuple[int, int]) -> None:
    """A side of one pixel is a side."""
    opened = files.open_canvas(make_picture("RGBA", size=size), tmp_path, LIMITS)

    files.encode(quadruple(opened.canvas, tmp_path), opened.recipe, tmp_path / "out.png")

    assert read(tmp_path / "out.png").size == (size[0] * 4, size[1] * 4)


def test_random_damage_never_raises_anything_but_our_errors(make_picture, tmp_path: Path) -> None:
    """A seeded mutator over every format: a clean refusal or a picture."""
    rng = np.random.default_rng(4)
    for kind in ("png", "jpg", "webp", "gif"):
        original = make_picture(size=(64, 48), kind=kind).read_bytes()
        for _ in range(25):
            data = bytearray(original)
            for position in rng.integers(0, len(data), 4):
                data[position] = rng.integers(0, 256)
            path = tmp_path / "damaged"
            path.write_bytes(data)
            try:
                prepared = files.prepare(path, tmp_path, LIMITS)
            except FourfoldError as exc:
                assert exc.code in ("invalid_image", "unsupported_format", "image_too_large")
            else:
                assert read(prepared.path).size == (prepared.width, prepared.height)


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.95, 0.999])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "jpeg"])
def test_a_truncated_tiff_is_refused(tmp_path: Path, keep: float, compression: str | None) -> None:
    """Libtiff fills in what is missing, so its strips are held against the file's size before."""
    pixels = np.random.default_rng(3).integers(0, 256, (150, 200, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: int(len(data) * keep)])

    assert files.prepare(tmp_path / "a.tif", tmp_path, LIMITS).width == 200
    with pytest.raises(InvalidImageError):
        files.prepare(tmp_path / "cut.tif", tmp_path, LIMITS)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_whose_directory_is_nowhere_is_refused(tmp_path: Path, order: str) -> None:
    """Found by the fuzzer: an offset beyond what a file can have."""
    head = (b"II+\0\x08\0\0\0" if order == "<" else b"MM\0+\0\x08\0\0") + b"\xff" * 8
    (tmp_path / "a.tif").write_bytes(head + bytes(100))

    with pytest.raises(InvalidImageError, match="outside the file"):
        formats.inspect(tmp_path / "a.tif", LIMITS)


def test_of_an_animation_the_first_frame_is_taken_and_the_reply_says_so(upscaling, tmp_path: Path) -> None:
    """Three frames, of which the first is red."""
    frames = [Image.new("RGB", (10, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50)

    opened, written = upscaling.upscale(tmp_path / "a.gif", tmp_path / "out.png")

    assert read(tmp_path / "out.png").convert("RGB").getpixel((5, 5)) == (255, 0, 0)
    said = describe(opened.recipe, written, Measures(), format_name="png")
    assert said.warnings == ("only the first of 3 frames was upscaled",)


def gif(frame: tuple[int, int, int, int], *, comment: bytes = b"", transparent: bool = False) -> bytes:
    """Return a GIF of 6 x 5 whose only frame is red, and lies where *frame* says: left, top, width, height."""
    stream = io.BytesIO()
    image = Image.new("P", frame[2:], 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.save(stream, "gif", **({"transparency": 1} if transparent else {}), comment=comment)
    data = bytearray(stream.getvalue())
    data[6:10] = struct.pack("<HH", 6, 5)
    start = data.index(b"," + struct.pack("<4H", 0, 0, *frame[2:]))
    data[start + 1 : start + 9] = struct.pack("<4H", *frame)
    return bytes(data)


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("comment", [b"", b"no, this is no frame! " * 30])
def test_around_a_gifs_small_frame_is_nothing(upscaling, tmp_path: Path, transparent: bool, comment: bytes) -> None:
    """Transparent, as viewers show it, not black."""
    (tmp_path / "a.gif").write_bytes(gif((2, 1, 3, 2), comment=comment, transparent=transparent))

    opened, _ = upscaling.upscale(tmp_path / "a.gif", tmp_path / "out.png")

    assert opened.recipe.intake.alpha == "hard"
    result = np.asarray(read(tmp_path / "out.png").convert("RGBA"))
    assert result.shape == (20, 24, 4)
    assert result[8, 14].tolist() == [255, 0, 0, 255]
    inside = np.zeros((20, 24), bool)
    inside[5:11, 9:19] = True
    assert result[inside, 3].min() == 255 and not result[[0, 2, 14, 19, 8, 8], [0, 12, 12, 23, 5, 22], 3].any()


@pytest.mark.parametrize("frame", [(0, 0, 6, 5), (0, 0, 9, 9)])
def test_a_gif_that_fills_its_canvas_has_no_alpha(upscaling, tmp_path: Path, frame: tuple[int, int, int, int]) -> None:
    (tmp_path / "a.gif").write_bytes(gif(frame))

    opened, _ = upscaling.upscale(tmp_path / "a.gif", tmp_path / "out.png")

    assert opened.recipe.intake.alpha == "none"


def test_what_follows_a_gifs_first_frame_is_no_damage(tmp_path: Path) -> None:
    """Only the first frame is taken; every viewer shows it."""
    (tmp_path / "a.gif").write_bytes(gif((0, 0, 6, 5))[:-1] + b"GIF89a no frame" * 9)

    assert files.prepare(tmp_path / "a.gif", tmp_path, LIMITS).width == 6


@pytest.mark.parametrize("cut", [0, 7, 13, 25])
def test_a_gif_without_a_frame_names_none(tmp_path: Path, cut: int) -> None:
    """Cut off, or with comments for ever."""
    (tmp_path / "a.gif").write_bytes(gif((2, 1, 3, 2))[:cut])
    (tmp_path / "b.gif").write_bytes(b"GIF89a" + bytes(7) + b"!\xfe" + b"\x01x" * 120_000 + b"\0," + bytes(9))

    assert containers.gif_frame(tmp_path / "a.gif") is None
    assert containers.gif_frame(tmp_path / "b.gif") is None


@pytest.mark.parametrize(
    ("mode", "options", "bands"),
    [("L", {}, 1), ("LA", {"subsampling": "4:0:0"}, 2), ("RGB", {}, 3), ("RGBA", {}, 4)],
)
def test_a_grey_avif_comes_back_grey(upscaling, tmp_path: Path, mode: str, options: dict[str, str], bands: int) -> None:
    """Told by AV1's own flag: the loader makes three bands of it. A colour picture's alpha is grey, too."""
    image = Image.effect_noise((24, 18), 40).convert(mode)
    if bands in (2, 4):
        image.putalpha(120)
    image.save(tmp_path / "a.avif", **options)

    opened, _ = upscaling.upscale(tmp_path / "a.avif", tmp_path / "out.png")

    assert opened.recipe.grey == (bands < 3)
    assert read(tmp_path / "out.png").getbands() == {1: ("L",), 2: ("L", "A"), 3: (*"RGB",), 4: (*"RGBA",)}[bands]


def test_a_grey_avif_with_a_profile_for_colours_keeps_it(upscaling, tmp_path: Path) -> None:
    """What the profile says of its colours goes before how they are stored."""
    p3 = bytes(pyvips.Operation.call("profile_load", "p3"))
    Image.effect_noise((24, 18), 40).save(tmp_path / "a.avif", icc_profile=p3)

    opened, _ = upscaling.upscale(tmp_path / "a.avif", tmp_path / "out.png")

    assert not opened.recipe.grey and opened.recipe.profile is not None


@pytest.mark.parametrize("format_", ["float", "uint", "short"])
def test_samples_that_are_no_pictures_are_refused(tmp_path: Path, format_: str) -> None:
    """Measurements in a TIFF: 415, not a guess."""
    pyvips.Image.black(9, 9, bands=3).cast(format_).tiffsave(str(tmp_path / "a.tif"))

    with pytest.raises(UnsupportedFormatError, match="convert it to 16 bits"):
        formats.inspect(tmp_path / "a.tif", LIMITS)


def test_a_refusal_names_no_file_of_ours(tmp_path: Path) -> None:
    """Libvips' words on a broken AVIF begin with the path of the spooled upload."""
    path = tmp_path / "spool of a job" / "upload"
    path.parent.mkdir()
    path.write_bytes(b"\0\0\0\x18ftypavif" + bytes(200))

    with pytest.raises(InvalidImageError) as refused:
        formats.inspect(path, LIMITS)
    assert "heif: Invalid input" in refused.value.message
    assert "upload" not in refused.value.message
