"""Fifty files that are small and ask for much: each is refused from its header, or in the first bytes after it."""

import struct
import zlib
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
HUGE = (65_535, 100_000, 2**20, 2**31 - 1)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, extra: bytes = b"", rows: bytes = b"") -> bytes:
    """Return a PNG that says *width* x *height*, whatever its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return PNG + head + extra + chunk(b"IDAT", zlib.compress(rows or bytes(1000), 9)) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    """Return a JPEG's head."""
    frame = struct.pack(">BHHB", 8, height, width, 3) + bytes((1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0))
    tables = b"\xff\xdb\x00\x43\x00" + bytes([1]) * 64
    return b"\xff\xd8" + tables + b"\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xd9"


def gif(width: int, height: int, frames: int = 1, *, frame: tuple[int, int] = (1, 1)) -> bytes:
    """Return a GIF of *frames* pictures of *frame* pixels each on a canvas."""
    head = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(3) + b"\xff\xff\xff"
    one = b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\x00"
    return head + one * frames + b";"


def tiff(width: int, height: int, *, strips: int = 1, order: str = "<", samples: int = 3, bits: int = 8) -> bytes:
    """Return a TIFF without pixels."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, bits if order == "<" else bits << 16),
        (259, 3, 1, 1 if order == "<" else 1 << 16),
        (262, 3, 1, 2 if order == "<" else 2 << 16),
        (273, 4, strips, 8),
        (277, 3, 1, samples if order == "<" else samples << 16),
        (278, 4, 1, height),
        (279, 4, strips, 2**30),
    ]
    body = struct.pack(order + "H", len(entries)) + b"".join(struct.pack(order + "HHII", *e) for e in entries)
    return mark + struct.pack(order + "I", 8) + body + bytes(4)


def tiff_loop() -> bytes:
    """Return a TIFF whose directory is followed by itself."""
    data = tiff(10, 10)
    return data[:-4] + struct.pack("<I", 8)


def webp(width: int, height: int) -> bytes:
    """Return an extended WebP's head."""
    body = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    data = b"WEBP" + b"VP8X" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(data)) + data


def avif(width: int, height: int) -> bytes:
    """Return an AVIF's boxes with nothing in them but a size."""

    def box(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data) + 8) + kind + data

    size = box(b"ispe", bytes(4) + struct.pack(">II", width, height))
    properties = box(b"iprp", box(b"ipco", size) + box(b"ipma", bytes(4) + struct.pack(">IHBB", 1, 1, 1, 1)))
    item = box(b"infe", b"\2\0\0\0" + struct.pack(">HH", 1, 0) + b"av01\0")
    meta = bytes(4) + box(b"hdlr", bytes(8) + b"pict" + bytes(13)) + box(b"pitm", bytes(4) + b"\0\1")
    meta += box(b"iinf", bytes(4) + b"\0\1" + item) + box(b"iloc", bytes(8)) + properties
    return box(b"ftyp", b"avif\0\0\0\0avifmif1") + box(b"meta", meta)


def all_bombs() -> Iterator[tuple[str, bytes]]:
    """Yield a name and the bytes of each."""
    zeros = bytes(30_000_000)
    for side in HUGE:
        yield f"png-{side}-square", png(side, side)
        yield f"png-{side}-wide", png(side, 1)
        yield f"png-{side}-high", png(1, side)
    yield "png-16-bit-rgba", png(20_000, 20_000, depth=16, colour=6)
    yield "png-1-bit", png(50_000, 50_000, depth=1, colour=0)
    yield "png-zero", png(0, 10)
    yield "png-deflate-bomb", png(5000, 5000, rows=zeros)
    yield "png-giant-text", png(9, 9, extra=chunk(b"tEXt", b"a\0" + bytes(20_000_000)))
    yield "png-giant-ztxt", png(9, 9, extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(zeros)) * 40)
    yield "png-giant-itxt", png(9, 9, extra=chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(zeros)) * 40)
    yield "png-giant-profile", png(9, 9, extra=chunk(b"iCCP", b"a\0\0" + zlib.compress(zeros)))
    yield "png-large-profile", png(9, 9, extra=chunk(b"iCCP", b"a\0\0" + bytes(5_000_000)))
    yield "png-giant-exif", png(9, 9, extra=chunk(b"eXIf", bytes(17_000_000)))
    yield "png-many-chunks", png(9, 9, extra=chunk(b"tEXt", b"a\0b") * 250_000)
    yield "png-chunk-past-end", PNG + struct.pack(">I", 2**31 - 1) + b"IHDR" + bytes(13)
    for width, height in ((65_500, 65_500), (65_535, 65_535), (65_500, 1), (1, 65_500), (30_000, 30_000)):
        yield f"jpeg-{width}-{height}", jpeg(width, height)
    for side in (65_535, 30_000):
        yield f"gif-{side}", gif(side, side, frame=(side, side))
    yield "gif-deep", gif(10, 10, frames=200_000)
    yield "gif-deep-large", gif(4000, 4000, frames=20_000)
    yield "gif-frame-beyond", gif(10, 10, frame=(65_535, 65_535))
    for side in (65_535, 2**20, 2**31 - 1):
        yield f"tiff-{side}", tiff(side, side)
        yield f"tiff-{side}-big-endian", tiff(side, side, order=">")
    yield "tiff-strips", tiff(100, 100, strips=2**28)
    yield "tiff-loop", tiff_loop()
    yield "tiff-bands", tiff(100, 100, samples=60_000)
    yield "tiff-directory-nowhere", b"II*\0" + struct.pack("<I", 2**32 - 1)
    yield "tiff-directory-endless", b"II*\0" + struct.pack("<I", 8) + b"\xff\xff" + bytes(100)
    for side in (2**24, 2**14 + 1):
        yield f"webp-{side}", webp(side, side)
    for side in (65_535, 2**31 - 1, 100_000):
        yield f"avif-{side}", avif(side, side)
