"""Checks of a file's structure that libvips leaves undone: is all of it there, and is it no trap."""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Literal

from fourfold.errors import ImageTooLargeError, InvalidImageError, UnsupportedFormatError

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
#: Comments, profiles and the like together; more is a trap, as some of them are inflated when the header is read.
_PNG_EXTRA_BYTES: Final = 16 * 2**20
_PNG_PROFILE_BYTES: Final = 4 * 2**20
_PNG_DEFLATED: Final = (b"zTXt", b"iTXt", b"iCCP")
_PNG_CHUNKS: Final = 200_000
#: TIFF's numbers for BYTE .. DOUBLE and BigTIFF's for 64 bits -> bytes of one.
_TIFF_SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8}
_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES = 273, 279, 324, 325
_TIFF_ENTRIES: Final = 4096
_TIFF_PARTS: Final = 4_000_000


#: What libvips can undo, by TIFF's numbers: none, CCITT (three), LZW, JPEG, deflate (two), PackBits, WebP.
_TIFF_COMPRESSIONS: Final = frozenset({1, 2, 3, 4, 5, 7, 8, 32946, 32771, 32773, 50001})
_TIFF_BITS: Final = frozenset({1, 2, 4, 8, 16})
_BITS, _COMPRESSION, _PHOTOMETRIC, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 259, 262, 338, 339
_SAMPLES, _PLANES, _INKS = 277, 284, 332
_RGB, _SEPARATED, _YCBCR = 2, 5, 6
_JPEG_IN_TIFF, _OTHER_INKS, _PLANES_APART = 7, 2, 2
#: Grey (two), RGB, palette, CMYK, YCbCr; not a camera's raw values, and not CIELAB, of which libvips reads some kinds.
_TIFF_COLOURS: Final = frozenset({0, 1, 2, 3, 5, 6})
_TIFF_TAGS: Final = frozenset(
    {_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES}
    | {_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES, _INKS, _EXTRA_SAMPLES, _SAMPLE_FORMAT}
)
_UNSIGNED: Final = 1
_JPEG_FRAMES: Final = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_JPEG_LS: Final = 0xF7
_JPEG_MARKER: Final = re.compile(rb"\xff([^\x00\xff])")
_JPEG_SEGMENTS: Final = 10_000
_JPEG_STRAY_BYTES: Final = 4096
_JPEG_PIXELS, _JPEG_END, _JFIF = 0xDA, 0xD9, 0xE0
_GIF_BLOCKS: Final = 100_000  #: before the first frame
_PNG_KEPT: Final = (b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"eXIf", b"acTL")


def check(path: Path, kind: str) -> None:
    """Raise InvalidImageError or ImageTooLargeError if the file at *path* of format *kind* is cut short or a trap.

    Raises UnsupportedFormatError if its pixels are written in a way that libvips cannot read.
    """
    if kind == "png":
        check_png(path)
    elif kind == "jpeg":
        check_jpeg(path)
    elif kind == "tiff":
        check_tiff(path)


def check_png(path: Path) -> None:
    """Walk the chunks to IEND: libvips is content with a PNG whose last bytes are missing."""
    size = path.stat().st_size
    extra = 0
    with path.open("rb") as file:
        offset = len(PNG_MAGIC)
        for _ in range(_PNG_CHUNKS):
            if offset + 12 > size:
                raise InvalidImageError("the PNG is incomplete: it ends before its last chunk; send the whole file")
            file.seek(offset)
            head = file.read(8)
            length, name = int.from_bytes(head[:4], "big"), head[4:]
            offset += 12 + length
            if name == b"IEND" and offset <= size:
                return
            if name[0] & 0x20:  # not needed to show the picture
                extra += length
                if name in _PNG_DEFLATED and extra <= _PNG_EXTRA_BYTES:
                    extra += _inflated_bytes(file.read(length), most=_PNG_EXTRA_BYTES - extra + 1)
                if extra > _PNG_EXTRA_BYTES or (name == b"iCCP" and length > _PNG_PROFILE_BYTES):
                    raise ImageTooLargeError(
                        f"the PNG carries more than {_PNG_EXTRA_BYTES} bytes besides its pixels; remove them"
                    )
    raise InvalidImageError(f"the PNG has more than {_PNG_CHUNKS} chunks; write it anew")


def _inflated_bytes(content: bytes, *, most: int) -> int:
    """Return how many bytes the deflated part of a PNG's text or profile becomes, *most* at most."""
    start = content.find(b"\x78")  # zlib's first byte; the keyword before it may hold an x, which inflates to nothing
    while start >= 0:
        try:
            return len(zlib.decompressobj().decompress(content[start:], most))
        except zlib.error:
            start = content.find(b"\x78", start + 1, 100)
    return 0


def png_facts(path: Path) -> dict[bytes, bytes]:
    """Return the chunks of a sound PNG, by their names, that say what its colours mean, which way is up, and how
    many frames there are.

    libvips reads only those before the pixels, and of the colours only the profile.
    """
    facts: dict[bytes, bytes] = {}
    size, offset = path.stat().st_size, len(PNG_MAGIC)
    with path.open("rb") as file:
        while offset + 12 <= size:
            file.seek(offset)
            head = file.read(8)
            length, name = int.from_bytes(head[:4], "big"), head[4:]
            if name in _PNG_KEPT and name not in facts and length <= _PNG_PROFILE_BYTES:
                facts[name] = file.read(length)
            offset += 12 + length
    return facts


def check_jpeg(path: Path) -> None:
    """Refuse samples of more than 8 bits and JPEG-LS: libjpeg-turbo calls them damaged."""
    with path.open("rb") as file:
        for marker, start, _ in _jpeg_segments(file):
            if marker in _JPEG_FRAMES:
                file.seek(start + 4)
                bits = file.read(1)
                if marker == _JPEG_LS or bits not in (b"\x08", b""):
                    what = "JPEG-LS" if marker == _JPEG_LS else f"a JPEG of {bits[0]} bits a sample"
                    raise UnsupportedFormatError(f"{what} is not read here; send a JPEG of 8 bits, or a PNG of 16")
                return


def tidied_jpeg(path: Path) -> bytes | None:
    """Return a JPEG without what libjpeg warns of though no pixel suffers, None where there is nothing of that.

    Which is stray bytes before a segment, and a revision of JFIF that does not exist: some cameras and editors write
    them, and every viewer shows the picture. The same warnings about the pixels themselves are damage.
    """
    with path.open("rb") as file:
        segments = list(_jpeg_segments(file))
        if not segments or segments[-1][0] != _JPEG_PIXELS:
            return None
        kept, place, is_untidy = [b"\xff\xd8"], 2, False
        for marker, start, length in segments:
            file.seek(place)
            is_untidy |= bool(file.read(start - place).strip(b"\xff"))
            segment = file.read(length)
            if marker == _JFIF and segment[4:9] == b"JFIF\0" and segment[9:10] != b"\x01":
                segment, is_untidy = segment[:9] + b"\x01" + segment[10:], True
            kept.append(segment)
            place = start + length
        return b"".join([*kept, file.read()]) if is_untidy else None


def _jpeg_segments(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Yield marker, place and length of each segment up to where the pixels begin, found as libjpeg finds them."""
    place = 2
    for _ in range(_JPEG_SEGMENTS):
        file.seek(place)
        found = _JPEG_MARKER.search(file.read(_JPEG_STRAY_BYTES))
        if found is None:
            return
        marker, start = found[1][0], place + found.start()
        file.seek(start + 2)
        length = int.from_bytes(file.read(2), "big") + 2
        if marker == _JPEG_END or length < 4:
            return
        yield marker, start, length
        if marker == _JPEG_PIXELS:
            return
        place = start + length


def gif_frame(path: Path) -> tuple[int, int, int, int] | None:
    """Return left, top, width and height of a GIF's first frame on its canvas; None where that is not to be found."""
    with path.open("rb") as file:
        head = file.read(13)
        file.seek(_gif_table_bytes(head[10:11]), 1)
        is_in_extension = False
        for _ in range(_GIF_BLOCKS):
            first = file.read(1)
            if is_in_extension and first:
                file.seek(first[0], 1)
                is_in_extension = first != b"\0"
            elif first == b"!":
                file.seek(1, 1)
                is_in_extension = True
            else:
                place = file.read(8)
                return struct.unpack("<4H", place) if first == b"," and len(place) == 8 else None
    return None


def _gif_table_bytes(flags: bytes) -> int:
    """Return how long the palette is that a GIF's header announces."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def check_tiff(path: Path) -> None:
    """Check that every strip or tile of the first picture lies in the file: libtiff fills in what is missing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        tags = dict(_first_directory(file, size))
        _check_tiff_samples(tags)
        for offsets_tag, bytes_tag in ((_STRIP_OFFSETS, _STRIP_BYTES), (_TILE_OFFSETS, _TILE_BYTES)):
            if offsets_tag not in tags:
                continue
            offsets, lengths = tags[offsets_tag], tags.get(bytes_tag, [])
            if not lengths or len(offsets) != len(lengths):
                raise InvalidImageError("the TIFF is damaged: it does not say how long its parts are")
            if any(offset + length > size for offset, length in zip(offsets, lengths, strict=True)):
                raise InvalidImageError("the TIFF is incomplete: it ends before its last part; send the whole file")
            return
    raise InvalidImageError("the TIFF is damaged: it names no pixels")


def tiff_extra_samples(path: Path) -> list[int]:
    """Return what the bands beyond the colours are: 0 not said, 1 alpha that colours were multiplied by, 2 alpha."""
    with path.open("rb") as file:
        return dict(_first_directory(file, path.stat().st_size)).get(_EXTRA_SAMPLES, [])


def _check_tiff_samples(tags: dict[int, list[int]]) -> None:
    photometric = _first(tags, _PHOTOMETRIC)
    if photometric not in _TIFF_COLOURS:
        what = "CIELAB" if photometric in (8, 9, 10) else f"colours of kind {photometric}"
        raise UnsupportedFormatError(f"a TIFF of {what} is not read here; convert it to RGB")
    compression = _first(tags, _COMPRESSION)
    if compression not in _TIFF_COMPRESSIONS:
        raise UnsupportedFormatError(
            f"a TIFF compressed by method {compression} is not read here; write it with LZW or deflate"
        )
    bits, sample_format = _first(tags, _BITS), _first(tags, _SAMPLE_FORMAT)
    if bits not in _TIFF_BITS or sample_format not in (_UNSIGNED, 4):  # 4: not said
        kind = {2: "signed", 3: "floating-point"}.get(sample_format, "unsigned")
        raise UnsupportedFormatError(
            f"a TIFF of {bits} bits a sample, {kind}, is not read here; convert it to 16 bits, unsigned"
        )
    is_apart = _first(tags, _PLANES) == _PLANES_APART and _first(tags, _SAMPLES) > 1
    if photometric == _YCBCR and compression != _JPEG_IN_TIFF:
        what = "YCbCr without JPEG"  # libvips would show the numbers as RGB
    elif photometric == _SEPARATED and _first(tags, _INKS) == _OTHER_INKS:
        what = "other inks than CMYK"
    elif is_apart and (_TILE_OFFSETS in tags or photometric not in (_RGB, _SEPARATED)):
        what = "planes that lie apart, in tiles or of grey"  # libvips would mix them up
    elif bits < 8 and _first(tags, _SAMPLES) > 1:
        what = f"several samples of {bits} bits a pixel"
    else:
        return
    raise UnsupportedFormatError(f"a TIFF of {what} is not read here; write it as RGB of 8 or 16 bits, interleaved")


def _first(tags: dict[int, list[int]], tag: int) -> int:
    """Return the tag's first number; where it is missing TIFF's own default, which is 1 for all of these."""
    return (tags.get(tag) or [1])[0]


def _first_directory(file: BinaryIO, size: int) -> Iterator[tuple[int, list[int]]]:
    """Yield tag and numbers of each entry of the first directory that places pixels or says what they are."""
    head = file.read(16)
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    is_big = int.from_bytes(head[2:4], order) == 43
    word, entry_bytes, count_bytes = (8, 20, 8) if is_big else (4, 12, 2)
    start = int.from_bytes(head[8:16] if is_big else head[4:8], order)
    if not 0 < start < size:
        raise InvalidImageError("the TIFF is damaged: its directory lies outside the file")
    file.seek(start)
    count = int.from_bytes(file.read(count_bytes), order)
    if not 0 < count <= _TIFF_ENTRIES:
        raise InvalidImageError("the TIFF is damaged: its directory is empty, or far too long")
    entries = file.read(count * entry_bytes)
    if len(entries) != count * entry_bytes:
        raise InvalidImageError("the TIFF is incomplete: it ends in its directory; send the whole file")
    for i in range(count):
        entry = entries[i * entry_bytes : (i + 1) * entry_bytes]
        tag, kind = int.from_bytes(entry[:2], order), int.from_bytes(entry[2:4], order)
        if tag not in _TIFF_TAGS:
            continue
        values, each = int.from_bytes(entry[4 : 4 + word], order), _TIFF_SIZES.get(kind, 0)
        if not each or values > _TIFF_PARTS or values * each > size:
            raise InvalidImageError("the TIFF is damaged: its list of parts is longer than the file")
        data = entry[4 + word :]
        if values * each > word:
            file.seek(min(int.from_bytes(data, order), size))
            data = file.read(values * each)
        yield tag, [int.from_bytes(data[j * each : (j + 1) * each], order) for j in range(values)]
