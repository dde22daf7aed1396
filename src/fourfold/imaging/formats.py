"""What a file is, told from its bytes, and whether it is within the limits, told from its header."""

from pathlib import Path
from typing import Any, Final, NoReturn

import pyvips

from fourfold.config import LimitSettings
from fourfold.errors import ImageTooLargeError, InvalidImageError, UnsupportedFormatError
from fourfold.imaging.values import Header

_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_READABLE: Final = "PNG, JPEG, WebP or GIF"
_BITS: Final = {"uchar": 8, "char": 8, "ushort": 16, "short": 16, "uint": 32, "int": 32, "float": 32, "double": 64}

# Operations that libvips itself marks as unfit for bytes from strangers never run in our processes.
pyvips.block_untrusted_set(True)
pyvips.operation_block_set("VipsForeignLoadRaw", False)  # our own canvases


def sniff(path: Path) -> str:
    """Return the format of the file at *path*: "png", "jpeg", "webp" or "gif".

    Raises:
        InvalidImageError: the file is empty.
        UnsupportedFormatError: its first bytes are of nothing that we read.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise InvalidImageError("the image is empty; expected the bytes of a picture")
    if head.startswith(_PNG_MAGIC):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    raise UnsupportedFormatError(f"expected {_READABLE}, got bytes that begin with {head[:8].hex(' ')}")


def load(path: Path, kind: str) -> Any:
    """Open *path* lazily as *kind*, to be read once, top to bottom; a damaged header raises InvalidImageError."""
    try:
        return getattr(pyvips.Image, f"{kind}load")(str(path), access="sequential", fail_on="warning")
    except pyvips.Error as exc:
        refuse(exc)


def inspect(path: Path, limits: LimitSettings) -> Header:
    """Return what the header says. Decodes no pixel.

    Raises:
        InvalidImageError: the file is empty, its header is damaged, or a PNG ends before its end.
        UnsupportedFormatError: it is of no format that we read.
        ImageTooLargeError: it has more pixels or a longer side than *limits* allow.
    """
    kind = sniff(path)
    if kind == "png":
        check_png_chunks(path)
    image = load(path, kind)
    frames = image.get("n-pages") if "n-pages" in image.get_fields() else 1
    # Orientations 5 to 8 lie on their side.
    turned = "orientation" in image.get_fields() and 5 <= image.get("orientation") <= 8
    width, height = (image.height, image.width) if turned else (image.width, image.height)
    if width * height > limits.input_pixels:
        raise ImageTooLargeError(
            f"an image may have {limits.input_pixels} pixels, got {width} x {height}; make it smaller"
        )
    if max(width, height) > limits.side_px:
        raise ImageTooLargeError(f"a side may have {limits.side_px} pixels, got {width} x {height}; make it smaller")
    return Header(kind, width, height, image.bands, _BITS.get(image.format, 0), frames)


def refuse(exc: pyvips.Error) -> NoReturn:
    """Raise InvalidImageError in libvips' words, without its operation names and paths."""
    lines = [line.strip() for line in exc.detail.splitlines() if line.strip()]
    raise InvalidImageError(f"the image is damaged or incomplete: {lines[0] if lines else 'unreadable'}") from exc


def check_png_chunks(path: Path) -> None:
    """Walk the chunks to IEND: libvips is content with a PNG whose last bytes are missing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        offset = len(_PNG_MAGIC)
        while offset + 12 <= size:
            file.seek(offset)
            head = file.read(8)
            offset += 12 + int.from_bytes(head[:4], "big")
            if head[4:] == b"IEND" and offset <= size:
                return
    raise InvalidImageError("the PNG is incomplete: it ends before its last chunk; send the whole file")
