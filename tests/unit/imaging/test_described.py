"""Files that say in numbers, late or by tags what libvips does not read: they keep their appearance all the same."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image

from fourfold.config import LimitSettings
from fourfold.errors import InvalidImageError, UnsupportedFormatError
from fourfold.imaging import containers, describe, described, files, formats
from fourfold.imaging.fidelity import Measures

LIMITS = LimitSettings()
SRGB_GAMMA = struct.pack(">I", 45455)
P3_PLACES = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
ON_ITS_SIDE = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def ramps(width: int = 24, height: int = 16) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 10, y * 15, 255 - x * 9], axis=-1).astype(np.uint8)


def png(
    path: Path, pixels: np.ndarray, *before: tuple[bytes, bytes], after: tuple[tuple[bytes, bytes], ...] = ()
) -> Path:
    kind = 2 if pixels.ndim == 3 else 0
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = [(b"IHDR", head), *before, (b"IDAT", zlib.compress(rows)), *after, (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks))
    return path


def tiff(path: Path, pixels: np.ndarray, **tags: tuple[int, ...]) -> Path:
    """Write little-endian, one strip; *tags* are SHORTs by name."""
    height, width, bands = pixels.shape
    data = pixels.tobytes()
    shorts = {256: (width,), 257: (height,), 258: (8,) * bands, 259: (1,), 262: (2,), 277: (bands,), 278: (height,)}
    shorts |= {
        {
            "photometric": 262,
            "extra": 338,
            "compression": 259,
            "kind": 339,
            "bits": 258,
            "planes": 284,
            "inks": 332,
            "tiles": 324,
        }[k]: v
        for k, v in tags.items()
    }
    entries, heap = [], b""
    start = 8 + len(data)
    heap_at = start + 2 + 12 * (len(shorts) + 2) + 4
    for tag, values in shorts.items():
        body = struct.pack(f"<{len(values)}H", *values)
        if len(body) > 4:
            place, heap = heap_at + len(heap), heap + body
            body = struct.pack("<I", place)
        entries.append((tag, struct.pack("<HHI", tag, 3, len(values)) + body.ljust(4, b"\0")))
    entries += [(273, struct.pack("<HHII", 273, 4, 1, 8)), (279, struct.pack("<HHII", 279, 4, 1, len(data)))]
    table = b"".join(entry for _, entry in sorted(entries))
    path.write_bytes(
        b"II*\0" + struct.pack("<I", start) + data + struct.pack("<H", len(entries)) + table + bytes(4) + heap
    )
    return path


def seen(path: Path, upscaling, colour) -> np.ndarray:
    """Return the upscaled picture as a colour-managed viewer shows it."""
    target = path.with_suffix(".big.png")
    upscaling.upscale(path, target)
    with Image.open(target) as image:
        return colour.as_srgb(image)


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"gAMA", SRGB_GAMMA), (b"cHRM", P3_PLACES)],
        [(b"cICP", bytes((12, 13, 0, 1)))],
        [(b"cICP", bytes((12, 13, 0, 1))), (b"sRGB", b"\0")],
    ],
)
def test_colours_described_in_numbers_look_as_by_a_profile(tmp_path: Path, upscaling, colours, chunks) -> None:
    """Display P3, by primaries and white or by code points: the truth is LittleCMS' with a profile of that space."""
    profile = colours.rgb_profile("P3")
    truth = png(tmp_path / "truth.png", ramps(), (b"iCCP", b"p\0\0" + zlib.compress(profile)))
    described = png(tmp_path / "described.png", ramps(), *chunks)

    difference = colours.delta_e_2000(seen(described, upscaling, colours), seen(truth, upscaling, colours))

    assert difference.mean() < 1.0  # gamma 2.2 against sRGB's curve
    with Image.open(tmp_path / "described.big.png") as image:
        assert image.info["icc_profile"]


@pytest.mark.parametrize("is_grey", [False, True])
def test_a_gamma_alone_is_kept(tmp_path: Path, upscaling, colours, is_grey: bool) -> None:
    """Linear samples come back as linear samples that say so: shown, 55 of 255 are a middle grey."""
    pixels = np.full((8, 8) if is_grey else (8, 8, 3), 55, np.uint8)
    path = png(tmp_path / "linear.png", pixels, (b"gAMA", struct.pack(">I", 100_000)))

    shown = seen(path, upscaling, colours)

    expected = 255 * (1.055 * (55 / 255) ** (1 / 2.4) - 0.055)
    assert np.abs(shown - expected).max() < 2


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"gAMA", SRGB_GAMMA)],
        [(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100_000))],
        [(b"cHRM", P3_PLACES)],
        [(b"gAMA", struct.pack(">I", 1))],
        [(b"gAMA", SRGB_GAMMA), (b"cHRM", bytes(32))],
        [(b"cICP", bytes((1, 13, 0, 1)))],
        [(b"cICP", b"\x01")],
    ],
)
def test_numbers_that_say_srgb_or_nothing_change_nothing(tmp_path: Path, upscaling, chunks) -> None:
    """No profile is made up; the picture is its own canonical form."""
    opened, _ = upscaling.upscale(png(tmp_path / "a.png", ramps(), *chunks), tmp_path / "big.png")

    assert opened.recipe.profile is None
    assert np.array_equal(np.array(opened.canvas.read()), ramps())


@pytest.mark.parametrize("transfer", [16, 18])
def test_high_dynamic_range_is_refused(tmp_path: Path, transfer: int) -> None:
    """Shown as sRGB it would be another picture."""
    path = png(tmp_path / "hdr.png", ramps(), (b"cICP", bytes((9, transfer, 0, 1))))

    with pytest.raises(UnsupportedFormatError, match="high dynamic range"):
        formats.inspect(path, LIMITS)


@pytest.mark.parametrize(("primaries", "transfer"), [(12, 13), (9, 16), (1, 13)])
def test_an_avif_that_names_its_colours_by_numbers(tmp_path: Path, upscaling, primaries: int, transfer: int) -> None:
    """As cameras write them, without a profile."""
    path = tmp_path / "a.avif"
    Image.fromarray(ramps()).save(path, quality=100)
    data = path.read_bytes()
    at = data.index(b"nclx") + 4
    path.write_bytes(data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :])

    if transfer == 16:
        with pytest.raises(UnsupportedFormatError, match="PQ"):
            formats.inspect(path, LIMITS)
        return
    opened, _ = upscaling.upscale(path, tmp_path / "big.png")
    assert (opened.recipe.profile is not None) == (primaries == 12)


def test_an_orientation_after_the_pixels_counts(tmp_path: Path) -> None:
    """PNG allows it, and libvips reads only to the pixels."""
    path = png(tmp_path / "a.png", ramps(), after=((b"eXIf", ON_ITS_SIDE),))

    opened = files.open_canvas(path, tmp_path, LIMITS)

    assert formats.inspect(path, LIMITS).width == opened.canvas.width == 16
    assert np.array_equal(np.array(opened.canvas.read()), np.rot90(ramps(), -1))
    assert opened.recipe.exif is not None


@pytest.mark.parametrize("profile", [b"broken", b"cut", b"other"])
def test_a_useless_profile_is_left_out_and_told(tmp_path: Path, colours, profile: bytes) -> None:
    """Damaged, cut short or of another colour space; libvips alone would pass it on, or fail while writing."""
    whole = colours.rgb_profile("P3")
    data = {
        b"broken": whole[:200] + bytes(len(whole) - 200),
        b"cut": whole[: len(whole) // 2],
        b"other": colours.grey_profile(),
    }[profile]
    path = tmp_path / "a.jpg"
    Image.fromarray(ramps()).save(path, icc_profile=data, quality=95)
    opened = files.open_canvas(path, tmp_path, LIMITS)
    written = files.encode(opened.canvas, opened.recipe, tmp_path / "out.png")
    fidelity = describe(opened.recipe, written, Measures(), format_name="png")

    assert (fidelity.colour, fidelity.profile) == ("unchanged", None)
    assert any("colour profile" in warning and "left out" in warning for warning in fidelity.warnings)
    with Image.open(tmp_path / "out.png") as image:
        assert "icc_profile" not in image.info


def test_a_band_that_is_no_transparency_is_left_out(tmp_path: Path) -> None:
    """TIFF says what a band beyond the colours is; one that it says nothing of is a mask or a spot colour."""
    pixels = np.dstack([ramps(), np.full((16, 24), 7, np.uint8)])
    opened = files.open_canvas(tiff(tmp_path / "a.tif", pixels, extra=(0,)), tmp_path, LIMITS)

    assert opened.recipe.alpha is None
    assert "1 bands" in opened.recipe.intake.warnings[0]
    assert np.array_equal(np.array(opened.canvas.read()), ramps())


def test_the_transparency_is_the_band_that_says_so(tmp_path: Path) -> None:
    """Not the last one."""
    mask = np.full((16, 24), 255, np.uint8)
    mask[:, :12] = 100
    pixels = np.dstack([ramps(), mask, np.full((16, 24), 7, np.uint8)])
    opened = files.open_canvas(tiff(tmp_path / "a.tif", pixels, extra=(2, 0)), tmp_path, LIMITS)

    assert opened.recipe.alpha is not None
    assert np.array_equal(np.array(opened.recipe.alpha.read())[..., 0], mask)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"photometric": (8,)}, "CIELAB"),
        ({"photometric": (32803,)}, "colours of kind 32803"),
        ({"compression": (34712,)}, "method 34712"),
        ({"kind": (3,)}, "floating-point"),
        ({"bits": (12, 12, 12)}, "12 bits"),
        ({"bits": (4, 4, 4)}, "several samples of 4 bits"),
        ({"photometric": (6,)}, "YCbCr without JPEG"),
        ({"photometric": (5,), "inks": (2,)}, "other inks"),
        ({"photometric": (1,), "planes": (2,)}, "planes that lie apart"),
        ({"planes": (2,), "tiles": (8,)}, "planes that lie apart"),
    ],
)
def test_a_tiff_that_is_written_in_another_way_is_unsupported_not_damaged(tmp_path: Path, tags, words: str) -> None:
    """415 with what to do, from its tags."""
    with pytest.raises(UnsupportedFormatError, match=words):
        formats.inspect(tiff(tmp_path / "a.tif", ramps(), **tags), LIMITS)


@pytest.mark.parametrize(("frame", "words"), [(b"\xff\xc1\0\x11\x0c", "12 bits"), (b"\xff\xf7\0\x0b\x08", "JPEG-LS")])
def test_a_jpeg_of_another_kind_is_unsupported_not_damaged(tmp_path: Path, frame: bytes, words: str) -> None:
    """As medical and satellite cameras write it."""
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0\0\x04ab\xff" + frame + bytes(40))

    with pytest.raises(UnsupportedFormatError, match=words):
        formats.inspect(path, LIMITS)


def jpeg(*, stray: bytes = b"", revision: bytes = b"\1\1") -> bytes:
    """Return a JPEG with *stray* bytes before its first table, and that *revision* of JFIF."""
    stream = io.BytesIO()
    Image.fromarray(ramps()).save(stream, "jpeg", quality=95)
    data = stream.getvalue()
    return data[:11] + revision + data[13:20] + stray + data[20:]


@pytest.mark.parametrize("odd", [{"stray": b"\0\xff\0ab"}, {"stray": b"\xff\xff"}, {"revision": b"\2\1"}])
def test_a_jpeg_whose_header_alone_is_odd_is_taken(tmp_path: Path, odd: dict[str, bytes]) -> None:
    """Every viewer shows it, and no pixel suffers; libjpeg's warnings about pixels stay damage."""
    (tmp_path / "a.jpg").write_bytes(jpeg(**odd))
    (tmp_path / "whole.jpg").write_bytes(jpeg())
    (tmp_path / "cut.jpg").write_bytes(jpeg(**odd)[:-60])

    pixels = [formats.load(tmp_path / name, "jpeg").numpy() for name in ("a.jpg", "whole.jpg")]

    assert np.array_equal(*pixels)
    with pytest.raises(InvalidImageError):
        files.open_canvas(tmp_path / "cut.jpg", tmp_path, LIMITS)


@pytest.mark.parametrize("head", [b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\0\1", b"\xff\xd8\xff\xe0\0\4ab\xff\xd9"])
def test_a_jpeg_without_pixels_has_nothing_to_tidy(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(head)

    assert containers.tidied_jpeg(tmp_path / "a.jpg") is None


@pytest.mark.parametrize("depth", [8, 16])
def test_inks_without_a_profile_look_as_in_a_browser(tmp_path: Path, depth: int) -> None:
    """Each takes away its own light, as Pillow has it; with a profile, its colours count (test_matrix.py)."""
    inks = np.dstack([ramps(), ramps()[::-1, :, 0] // 2])
    image = pyvips.Image.new_from_array(inks).copy(interpretation="cmyk")
    if depth == 16:
        image = (image.cast("ushort") * 257).cast("ushort").copy(interpretation="cmyk")
    image.tiffsave(str(tmp_path / "a.tif"), compression="deflate")

    seen_pixels = np.array(files.open_canvas(tmp_path / "a.tif", tmp_path, LIMITS).canvas.read())

    shown = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"))
    assert np.abs(seen_pixels / (257 if depth == 16 else 1) - shown).max() <= 1


@pytest.mark.parametrize("has_box", [True, False])
@pytest.mark.parametrize("stored", ["limited", "full"])
def test_a_grey_avif_is_as_bright_as_it_was(tmp_path: Path, stored: str, has_box: bool) -> None:
    """Also where black is stored as 16 and white as 235, which a box or AV1 itself says."""
    ramp = np.tile(np.arange(0, 256, 4, np.uint8), (16, 1))
    Image.fromarray(ramp).save(tmp_path / "a.avif", quality=100, range=stored)
    data = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "a.avif").write_bytes(data if has_box else data.replace(b"colr", b"free"))

    pixels = np.array(files.open_canvas(tmp_path / "a.avif", tmp_path, LIMITS).canvas.read())[..., 0]

    assert np.abs(pixels.astype(int) - ramp).max() <= 2


@pytest.mark.parametrize(
    "data", [b"", b"\x12\0\x0a", b"\x0a\x07\x39" + b"\xff" * 20, b"\x0a\x0b" + bytes(20), b"\x32\x07\x19"]
)
def test_av1_that_is_no_grey_still_is_not_limited(data: bytes) -> None:
    """Cut off, in colour, of a film, or no header at all."""
    assert not described._is_limited(data)


def test_white_is_white_in_an_avif_of_ten_bits(tmp_path: Path) -> None:
    """The loader shifts samples to the left; an alpha that is not quite full would not be dropped as opaque."""
    white = pyvips.Image.black(16, 16, bands=4) + 65_535
    white.cast("ushort").copy(interpretation="rgb16").heifsave(
        str(tmp_path / "a.avif"), compression="av1", bitdepth=10, lossless=True
    )

    opened = files.open_canvas(tmp_path / "a.avif", tmp_path, LIMITS)

    assert opened.recipe.intake.alpha == "opaque"
    assert np.array(opened.canvas.read()).min() >= 65_500


def test_a_profile_that_pillow_would_refuse_gives_way_to_srgb(tmp_path: Path, upscaling, colours) -> None:
    """Printers' profiles have megabytes; a PNG with more than one could not be opened in Python. It looks the same."""
    profile = colours.rgb_profile("P3")
    large = (2**20 + len(profile)).to_bytes(4, "big") + profile[4:] + bytes(2**20)
    image = Image.fromarray(ramps())
    image.save(tmp_path / "small.png", icc_profile=profile)
    image.save(tmp_path / "large.png", icc_profile=large)

    looks = [seen(tmp_path / name, upscaling, colours) for name in ("small.png", "large.png")]

    with Image.open(tmp_path / "large.big.png") as result:
        assert "icc_profile" not in result.info
    assert colours.delta_e_2000(*looks).mean() < 0.5


def test_a_png_may_have_comments_in_latin_1(tmp_path: Path) -> None:
    """Their names, too, as the standard has them."""
    png(tmp_path / "a.png", ramps(), (b"tEXt", "Größe\0groß".encode("latin-1")))

    assert files.prepare(tmp_path / "a.png", tmp_path, LIMITS).recipe.metadata == {}


@pytest.mark.parametrize(("said", "frames"), [(3, 3), (0, 1), (2**32 - 1, 2000)])
def test_a_png_says_how_many_frames_it_has(tmp_path: Path, said: int, frames: int) -> None:
    """So that the reply can say that only one was upscaled; a number that makes no sense refuses nothing."""
    path = png(tmp_path / "a.png", ramps(), (b"acTL", struct.pack(">II", said, 0)))

    assert formats.inspect(path, LIMITS).frames == frames
