"""Formats that libvips' wheel does not read: BMP by Pillow, HEIC and JPEG XL by packages that come as extras.

Each is decoded whole, in the same process as all others and within its memory; the header is looked at first, so that
the limits hold before any pixel is decoded.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyvips
from numpy.typing import NDArray

from fourfold.errors import InvalidImageError, UnsupportedFormatError
from fourfold.imaging import colour, described, exif
from fourfold.imaging.values import Header

_HEIC_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_BRAND_BYTES: Final = 4
#: In the name that libjxl gives to a profile of its own making, where samples are light itself.
_LINEAR: Final = "_Lin"
_SDR_NITS: Final = 255.0  #: libjxl's brightness of white where a picture is no HDR
#: Extra -> the package that it installs, by the name that is imported.
_PACKAGES: Final = {"heic": "pi_heif", "jxl": "pyjpegxl"}
_NAMES: Final = {"heic": "HEIC", "jxl": "JPEG XL"}
_INTERPRETATIONS: Final = {(8, 1): "b-w", (8, 2): "b-w", (16, 1): "grey16", (16, 2): "grey16", (8, 3): "srgb"}


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A whole picture: ``[h, w, 1 .. 4]`` uint8 or uint16, and what stood beside it."""

    pixels: NDArray[Any]
    profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None


def sniff(head: bytes) -> str | None:
    """Return "heic", "jxl" or "bmp" if the file's first bytes *head* say so."""
    if head[4:8] == b"ftyp":
        length = max(16, min(len(head), int.from_bytes(head[:4], "big")))
        brands = {head[i : i + _BRAND_BYTES] for i in range(8, length, _BRAND_BYTES)}
        return "heic" if brands & _HEIC_BRANDS else None
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "jxl"
    return "bmp" if head.startswith(b"BM") and len(head) > 26 else None


def header(path: Path, kind: str) -> Header:
    """Return what the header says; decodes no pixel.

    Raises:
        UnsupportedFormatError: the extra for *kind* is not installed, or it is written in a way that is not read.
        InvalidImageError: the header is damaged.
    """
    _require(kind)
    with _translated(kind):
        return _HEADERS[kind](path)


def decode(path: Path, kind: str) -> Any:
    """Return the whole picture as libvips' image, upright, its profile and metadata with it. Raises: as `header`."""
    _require(kind)
    with _translated(kind):
        decoded = _DECODERS[kind](path)
    pixels = np.ascontiguousarray(decoded.pixels)
    height, width, bands = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    image = pyvips.Image.new_from_memory(pixels, width, height, bands, "uchar" if bits == 8 else "ushort")
    image = image.copy(interpretation=_INTERPRETATIONS.get((bits, bands), "srgb" if bits == 8 else "rgb16"))
    blocks = {"icc-profile-data": decoded.profile, "exif-data": _prefixed(decoded.exif), "xmp-data": decoded.xmp}
    for name, data in blocks.items():
        if data:
            image.set_type(pyvips.GValue.blob_type, name, data)
    # HEIC's and JPEG XL's own orientation has been applied; what EXIF says of it does not count, by their standards.
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)
    return image


def _require(kind: str) -> None:
    package = _PACKAGES.get(kind)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UnsupportedFormatError(
            f"{_NAMES[kind]} is read with an extra: pip install 'fourfold[{kind}]' where the picture is taken in; "
            "or send PNG, JPEG, WebP, GIF, TIFF, AVIF or BMP"
        )


@contextmanager
def _translated(kind: str) -> Iterator[None]:
    """Turn what a decoder raises over bytes from strangers into our error; want of memory and our own stay."""
    try:
        yield
    except (
        OSError,
        ValueError,
        SyntaxError,
        RuntimeError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
    ) as exc:
        raise InvalidImageError(f"the {kind.upper()} is damaged or incomplete; send the whole file") from exc


def _bmp_header(path: Path) -> Header:
    with _open_bmp(path) as image:
        return Header("bmp", image.width, image.height, len(image.getbands()), 8, 1)


def _decode_bmp(path: Path) -> _Decoded:
    with _open_bmp(path) as image:
        mode = "RGBA" if image.mode == "RGBA" else "L" if image.mode in ("1", "L") else "RGB"
        pixels = np.asarray(image.convert(mode))
    return _Decoded(pixels[..., None] if pixels.ndim == 2 else pixels)


def _open_bmp(path: Path) -> AbstractContextManager[Any]:
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # the limits are ours, and stand in the header's check
    try:
        return Image.open(path, formats=("BMP",))
    except UnidentifiedImageError:
        raise
    except OSError as exc:
        raise UnsupportedFormatError(
            "a BMP written in this way is not read here, if its header is not damaged; save it as PNG, or as a BMP "
            "of 24 bits"
        ) from exc


def _open_heic(path: Path) -> Any:
    import pi_heif

    found = pi_heif.open_heif(path, convert_hdr_to_8bit=False)
    return found, found[found.primary_index]


def _heic_header(path: Path) -> Header:
    if not described.holds(path, b"hvcC"):
        raise UnsupportedFormatError("a HEIF that is no HEVC inside is not read here; send HEIC, AVIF, JPEG or PNG")
    found, image = _open_heic(path)
    bits = image.info.get("bit_depth", 8)
    bands = 1 if image.mode.startswith("L") else 4 if "A" in image.mode.upper() else 3
    described.of_boxes(path)  # high dynamic range is refused before the pixels are decoded
    width, height = image.size
    return Header("heic", width, height, bands, 8 if bits <= 8 else 16, len(found))


def _decode_heic(path: Path) -> _Decoded:
    _, image = _open_heic(path)
    if "a" in image.mode:
        raise UnsupportedFormatError("a HEIC whose colours are multiplied by its alpha is not read here; send a PNG")
    bits = image.info.get("bit_depth", 8)
    pixels: NDArray[Any] = np.array(image)  # a copy: the decoder's memory goes with it
    if pixels.dtype == np.uint16:
        # The decoder shifts samples to the left, so that white is not quite white.
        peak = 2**bits - 1
        pixels = ((pixels.astype(np.uint32) >> (16 - bits)) * 65_535 + peak // 2) // peak
        pixels = pixels.astype(np.uint16)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    profile = image.info.get("icc_profile") or described.of_boxes(path)
    return _Decoded(pixels, profile, image.info.get("exif"), image.info.get("xmp"))


def _jxl_header(path: Path) -> Header:
    import pyjpegxl

    facts = pyjpegxl.probe(path.read_bytes())
    if facts.bits_per_sample > 16 or facts.intensity_target > _SDR_NITS:
        raise UnsupportedFormatError(
            f"a JPEG XL of {facts.bits_per_sample} bits and {facts.intensity_target:g} nits is not read here; "
            "convert it to 16 bits and sRGB"
        )
    bands = facts.num_color_channels + facts.has_alpha
    return Header("jxl", facts.width, facts.height, bands, 8 if facts.bits_per_sample <= 8 else 16, 1)


def _decode_jxl(path: Path) -> _Decoded:
    import pyjpegxl

    pyjpegxl.set_num_threads(1)
    bits = _jxl_header(path).bits
    data = path.read_bytes()
    facts, pixels = pyjpegxl.decode_to_numpy(data, dtype=f"uint{bits}")
    profile = facts.icc_profile
    if profile and _LINEAR in colour.profile_name(profile):
        # A lossy picture whose own space libjxl cannot compute comes as light, which 8 bits are far too few for.
        pixels = _from_light(pyjpegxl.decode_to_numpy(data, dtype="uint16")[1], profile, bits)
        profile = None
    return _Decoded(pixels, profile, facts.exif, facts.xmp)


def _from_light(pixels: NDArray[Any], profile: bytes, bits: int) -> NDArray[Any]:
    """Return ``[h, w, n]`` samples of *profile* as sRGB of *bits* bits."""
    bands = pixels.shape[2]
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels))
    mask = colour.at_depth(image.extract_band(bands - 1), bits) if bands in (2, 4) else None
    colours = image.extract_band(0, n=bands - (mask is not None)).copy(
        interpretation="rgb16" if bands > 2 else "grey16"
    )
    colours.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    colours, _ = colour.to_srgb(colours, bits)
    made: NDArray[Any] = (colours if mask is None else colours.bandjoin(mask)).numpy()
    return made


def _prefixed(block: bytes | None) -> bytes | None:
    """Return the EXIF *block* as JPEG has it: with its name, without an offset before its own header."""
    if not block:
        return None
    data = block.removeprefix(exif.PREFIX)
    if data[4:6] in (b"II", b"MM"):
        data = data[4:]
    return exif.PREFIX + data


_HEADERS: Final[Mapping[str, Callable[[Path], Header]]] = {
    "bmp": _bmp_header,
    "heic": _heic_header,
    "jxl": _jxl_header,
}
_DECODERS: Final[Mapping[str, Callable[[Path], _Decoded]]] = {
    "bmp": _decode_bmp,
    "heic": _decode_heic,
    "jxl": _decode_jxl,
}
KINDS: Final = frozenset(_DECODERS)
