"""Small PNG files, made with nothing but the standard library."""

import struct
import zlib
from typing import Final

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


def png(width: int = 12, height: int = 9, *, shade: int = 90) -> bytes:
    """Return an opaque 8-bit RGB picture whose red and green rise from the upper left; *shade* is its blue."""
    rows = b"".join(
        b"\x00" + b"".join(bytes((x * 20 % 256, y * 25 % 256, shade)) for x in range(width)) for y in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def png_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) as the header of a PNG says. Raises: ValueError if *data* is none."""
    if data[:8] != _SIGNATURE or len(data) < 24:
        raise ValueError("expected a PNG")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
