"""What a file is, told from its bytes, and whether it is within the limits, told from its header."""

import re
from pathlib import Path
from typing import Any, Final, NoReturn

import pyvips

from fourfold.errors import ImageTooLargeError, InvalidImageError, UnsupportedFormatError
from fourfold.imaging import containers, described, exif, extras, tiff_exif
from fourfold.imaging.values import Header, Limits

READABLE: Final = "PNG, JPEG, WebP, GIF, TIFF, AVIF or BMP"
_BITS: Final = {"uchar": 8, "ushort": 16}
_KIND_TO_LOADER: Final = {"avif": "heif"}
_TIFF_HEADS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_FRAMES: Final = 2_000
#: A line of libvips with one of these names a file of ours.
_SEPARATOR: Final = re.compile(r"[/\\]")
_TV_BLACK: Final = 16
_TV_SPAN: Final = 219
#: What TIFF calls a band of transparency: colours multiplied by it, or not.
_ALPHA: Final = (1, 2)

# Operations that libvips itself marks as unfit for bytes from strangers never run in our processes.
pyvips.block_untrusted_set(True)
pyvips.operation_block_set("VipsForeignLoadRaw", False)  # our own canvases


def sniff(path: Path) -> str:
    """Return the format of the file at *path*: "png", "jpeg", "webp", "gif", "tiff", "avif", "bmp", "heic" or "jxl".

    Raises:
        InvalidImageError: the file is empty.
        UnsupportedFormatError: its first bytes are of nothing that we read.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise InvalidImageError("the image is empty; expected the bytes of a picture")
    if head.startswith(containers.PNG_MAGIC):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[:4] in _TIFF_HEADS:
        return "tiff"
    if head[4:8] == b"ftyp" and any(brand in head[8:] for brand in (b"avif", b"avis")):
        return "avif"
    kind = extras.sniff(head)
    if kind is not None:
        return kind
    raise UnsupportedFormatError(f"expected {READABLE}, got bytes that begin with {head[:8].hex(' ')}")


def load(path: Path, kind: str) -> Any:
    """Open *path* lazily as *kind*, to be read once, top to bottom; a damaged header raises InvalidImageError."""
    # libtiff warns of every private tag it does not know, libnsgif of what follows the first frame: no damage.
    fail_on = "error" if kind in ("tiff", "gif") else "warning"
    tidied = containers.tidied_jpeg(path) if kind == "jpeg" else None
    try:
        if tidied is not None:
            return pyvips.Image.jpegload_buffer(tidied, access="sequential", fail_on=fail_on)
        loader = getattr(pyvips.Image, f"{_KIND_TO_LOADER.get(kind, kind)}load")
        return loader(str(path), access="sequential", fail_on=fail_on)
    except pyvips.Error as exc:
        refuse(exc)


def open_picture(path: Path, kind: str) -> tuple[Any, tuple[str, ...]]:
    """Open a client's picture as :func:`load` does, completed by what libvips leaves unread; return what to warn of.

    A PNG's orientation may stand after its pixels, colours may be described without a profile, a TIFF's bands beyond
    the colours need not be transparency, a GIF's frame may be smaller than its canvas, and an AVIF may be grey.

    Raises: InvalidImageError for a damaged header; UnsupportedFormatError for high dynamic range.
    """
    if kind in extras.KINDS:
        return extras.decode(path, kind), ()
    image = load(path, kind)
    profile: bytes | None = None
    warnings: list[str] = []
    if kind == "png":
        facts = containers.png_facts(path)
        profile = described.of_png(facts, is_grey=image.bands <= 2)
        image = _with_facts(image, facts)
    elif kind == "gif":
        image = _on_canvas(image, containers.gif_frame(path))
    elif kind == "avif":
        embedded = image.get("icc-profile-data") if image.get_typeof("icc-profile-data") else None
        # A profile for colours is not for grey; then what libvips made of it stays.
        is_grey = (embedded is None or embedded[16:20] == b"GRAY") and described.is_grey(path)
        image = _at_full_scale(image, is_limited=described.is_grey(path) and described.is_limited(path))
        image = _as_grey(image) if is_grey else image
        profile = described.of_boxes(path, is_grey=is_grey) if embedded is None else None
    elif kind == "tiff":
        image, lost = _without_extra_bands(image, containers.tiff_extra_samples(path))
        if lost:
            warnings.append(f"{lost} bands that are neither colour nor transparency were left out")
        block = tiff_exif.extract(path)
        if block is not None:
            image = image.copy()
            image.set_type(pyvips.GValue.blob_type, "exif-data", block)
    if profile is not None:
        image = image.copy()
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return image, tuple(warnings)


def inspect(path: Path, limits: Limits) -> Header:
    """Return what the header says. Decodes no pixel.

    Raises:
        InvalidImageError: the file is empty, its header is damaged, or a PNG or TIFF ends before its end.
        UnsupportedFormatError: it is of no format that we read, or of samples or colours that we do not.
        ImageTooLargeError: it has more pixels, a longer side or more frames than the limits allow.
    """
    kind = sniff(path)
    header = extras.header(path, kind) if kind in extras.KINDS else _header(path, kind)
    size = f"{header.width} x {header.height}"
    if header.width * header.height > limits.input_pixels:
        raise ImageTooLargeError(f"an image may have {limits.input_pixels} pixels, got {size}; make it smaller")
    if max(header.width, header.height) > limits.side_px:
        raise ImageTooLargeError(f"a side may have {limits.side_px} pixels, got {size}; make it smaller")
    if header.frames > _FRAMES:
        raise ImageTooLargeError(f"a file may have {_FRAMES} frames, got {header.frames}; send one picture")
    return header


def _header(path: Path, kind: str) -> Header:
    """Return what the header of a file says that libvips reads."""
    containers.check(path, kind)
    image, _ = open_picture(path, kind)
    frames = image.get("n-pages") if image.get_typeof("n-pages") else 1
    # Orientations 5 to 8 lie on their side.
    width, height = (image.height, image.width) if orientation(image) >= 5 else (image.width, image.height)
    if image.format not in _BITS or not 1 <= image.bands <= 5:
        raise UnsupportedFormatError(
            f"expected 1 to 5 bands of 8 or 16 bits, got {image.bands} of {image.format}; convert it to 16 bits"
        )
    return Header(kind, width, height, image.bands, _BITS[image.format], frames)


def _with_facts(image: Any, facts: dict[bytes, bytes]) -> Any:
    """Return a PNG's *image* with its orientation, wherever that stands, and the number of its frames."""
    image = image.copy()
    if b"acTL" in facts:
        frames = int.from_bytes(facts[b"acTL"][:4], "big")
        image.set_type(pyvips.GValue.gint_type, "n-pages", max(1, min(frames, _FRAMES)))
    if b"eXIf" in facts and not image.get_typeof("exif-data"):
        image.set_type(pyvips.GValue.blob_type, "exif-data", exif.PREFIX + facts[b"eXIf"])
        image.set_type(pyvips.GValue.gint_type, "orientation", exif.orientation(facts[b"eXIf"]))
    return image


def _without_extra_bands(image: Any, meanings: list[int]) -> tuple[Any, int]:
    """Return *image* with its colours and, if a band is that, its transparency; and how many bands are left out."""
    colours = image.bands - len(meanings)
    alphas = [i for i, meaning in enumerate(meanings) if meaning in _ALPHA]
    if colours < 1 or len(meanings) == min(1, len(alphas)):
        return image, 0
    kept = image.extract_band(0, n=colours)
    if alphas:
        kept = kept.bandjoin(image.extract_band(colours + alphas[0]))
    kept = kept.copy(interpretation=image.interpretation)
    return kept, image.bands - kept.bands


def _on_canvas(image: Any, frame: tuple[int, int, int, int] | None) -> Any:
    """Return a GIF's opaque *image* with nothing around its *frame*, as viewers show it, where libvips has black."""
    if frame is None or image.hasalpha():
        return image
    left, top = min(frame[0], image.width), min(frame[1], image.height)
    width, height = min(frame[2], image.width - left), min(frame[3], image.height - top)
    if (width, height) == (image.width, image.height):
        return image
    mask = pyvips.Image.black(image.width, image.height)
    if width and height:
        mask = (pyvips.Image.black(width, height) + 255).cast("uchar").embed(left, top, image.width, image.height)
    return image.bandjoin(mask).copy(interpretation=image.interpretation)


def _at_full_scale(image: Any, *, is_limited: bool) -> Any:
    """Return an AVIF's *image* with a white that is white: libvips shifts 10 and 12 bits to the left.

    Args: *is_limited*, the colours, all grey, are stored as television has them, 16 .. 235 of 255, and libheif left
        them so.
    """
    if image.format == "uchar" and not is_limited:
        return image
    depth = image.get("bits-per-sample") if image.get_typeof("bits-per-sample") else 8
    unit = 256 >> (depth - 8) if image.format == "ushort" else 1
    white = (2**depth - 1) * unit
    peak = 65_535 if image.format == "ushort" else 255
    black, span = (_TV_BLACK << (depth - 8), _TV_SPAN << (depth - 8)) if is_limited else (0, 2**depth - 1)
    bands = image.bands - image.hasalpha()
    gains = [peak / (span * unit)] * bands + [peak / white] * (image.bands - bands)
    offsets = [-black * peak / span] * bands + [0] * (image.bands - bands)
    return image.linear(gains, offsets).rint().cast(image.format).copy(interpretation=image.interpretation)


def _as_grey(image: Any) -> Any:
    """Return one of an image's three equal colours, and its transparency."""
    grey = image.extract_band(0)
    if image.hasalpha():
        grey = grey.bandjoin(image.extract_band(image.bands - 1))
    return grey.copy(interpretation="grey16" if image.format == "ushort" else "b-w")


def orientation(image: Any) -> int:
    """Return the orientation tag's value, 1 .. 8; 1 where there is none."""
    value = image.get("orientation") if image.get_typeof("orientation") else 1
    return value if 1 <= value <= 8 else 1


def refuse(exc: pyvips.Error) -> NoReturn:
    """Raise InvalidImageError in libvips' words, without its operation names and paths."""
    lines = [line.strip() for line in exc.detail.splitlines() if line.strip() and not _SEPARATOR.search(line)]
    raise InvalidImageError(f"the image is damaged or incomplete: {lines[0] if lines else 'unreadable'}") from exc
