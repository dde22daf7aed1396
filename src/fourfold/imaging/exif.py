"""EXIF blocks, rewritten: what is to stay, with sizes and orientation made true. Bytes in, bytes out.

Not here: the meaning of the tags that stay. A maker's note is copied as it is; those that count offsets from the
block's start lose them, as they do in every editor.
"""

import mmap
from dataclasses import dataclass, field
from typing import Final, Literal

PREFIX: Final = b"Exif\0\0"
SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_EXIF_IFD, _GPS_IFD, _INTEROP_IFD = 0x8769, 0x8825, 0xA005
SUB_DIRECTORIES: Final = (_EXIF_IFD, _GPS_IFD, _INTEROP_IFD)
_ORIENTATION: Final = 0x0112
_WIDTHS: Final = (0x0100, 0xA002)
_HEIGHTS: Final = (0x0101, 0xA003)
_ARTIST, _COPYRIGHT, _XP_AUTHOR = 0x013B, 0x8298, 0x9C9D
_RIGHTS: Final = frozenset({_ARTIST, _COPYRIGHT, _XP_AUTHOR})
_LONG: Final = 4
_SHORT: Final = 3
_MOST_ENTRIES: Final = 512

Order = Literal["little", "big"]


@dataclass(slots=True)
class Directory:
    """Tags with their values, in the block's byte order, and the directories below."""

    tag_to_value: dict[int, tuple[int, int, bytes]] = field(default_factory=dict)  #: tag -> (type, count, data)
    tag_to_directory: dict[int, "Directory"] = field(default_factory=dict)


def rewrite(block: bytes, *, mode: str, width: int, height: int) -> bytes | None:
    """Return the EXIF *block* (with or without its prefix) as *mode* wants it, None if nothing is left of it.

    The thumbnail goes in every mode: it shows the picture as it was. A damaged block gives None.

    Args: *mode*, "default" (without the place), "keep" or "copyright"; *width* and *height*, of the result.
    """
    data = block.removeprefix(PREFIX)
    order: Order = "little" if data[:2] == b"II" else "big"
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return None
    root = read_directory(data, int.from_bytes(data[4:8], order), order, depth=0)
    if mode == "default":
        root.tag_to_directory.pop(_GPS_IFD, None)
    if mode == "copyright":
        kept = {tag: value for tag, value in root.tag_to_value.items() if tag in _RIGHTS}
        root = Directory(kept)
    if not root.tag_to_value and not root.tag_to_directory:
        return None
    _correct(root, width, height, order)
    head = data[:4] + (8).to_bytes(4, order)
    return PREFIX + head + write_directory(root, 8, order)


def orientation(block: bytes) -> int:
    """Return the orientation that the EXIF *block* (with or without its prefix) names, 1 where it names none."""
    data = block.removeprefix(PREFIX)
    order: Order = "little" if data[:2] == b"II" else "big"
    root = read_directory(data, int.from_bytes(data[4:8], order), order, depth=0)
    _, _, value = root.tag_to_value.get(_ORIENTATION, (_SHORT, 1, b""))
    return int.from_bytes(value, order) or 1


def read_directory(data: bytes | mmap.mmap, start: int, order: Order, *, depth: int) -> Directory:
    """Return the directory at *start*; entries that lie outside the block are left out."""
    found = Directory()
    count = int.from_bytes(data[start : start + 2], order) if 8 <= start <= len(data) - 2 else 0
    for i in range(min(count, _MOST_ENTRIES)):
        entry = data[start + 2 + 12 * i : start + 14 + 12 * i]
        if len(entry) < 12:
            break
        tag, kind = int.from_bytes(entry[:2], order), int.from_bytes(entry[2:4], order)
        number = int.from_bytes(entry[4:8], order)
        size = SIZES.get(kind, 0) * number
        offset = int.from_bytes(entry[8:12], order)
        if tag in SUB_DIRECTORIES:
            if depth < 2:
                below = read_directory(data, offset, order, depth=depth + 1)
                if below.tag_to_value:
                    found.tag_to_directory[tag] = below
        elif 0 < size <= 4:
            found.tag_to_value[tag] = kind, number, entry[8 : 8 + size]
        elif 4 < size <= len(data) - offset:
            found.tag_to_value[tag] = kind, number, data[offset : offset + size]
    return found


def _correct(directory: Directory, width: int, height: int, order: Order) -> None:
    """Make what the tags say of the picture true."""
    for tag in directory.tag_to_value:
        if tag == _ORIENTATION:
            directory.tag_to_value[tag] = _SHORT, 1, (1).to_bytes(2, order)
        elif tag in (*_WIDTHS, *_HEIGHTS):
            side = width if tag in _WIDTHS else height
            directory.tag_to_value[tag] = _LONG, 1, side.to_bytes(4, order)
    for below in directory.tag_to_directory.values():
        _correct(below, width, height, order)


def write_directory(directory: Directory, start: int, order: Order) -> bytes:
    """Return the directory as bytes that are to stand at *start*: its entries, their data, what is below it."""
    entries = {tag: value for tag, value in directory.tag_to_value.items()}
    tags = sorted([*entries, *directory.tag_to_directory])
    place = start + 2 + 12 * len(tags) + 4
    table, heap = bytearray(len(tags).to_bytes(2, order)), bytearray()
    for tag in tags:
        if tag in directory.tag_to_directory:
            kind, number, content = _LONG, 1, write_directory(directory.tag_to_directory[tag], place + len(heap), order)
            is_inline = False
        else:
            kind, number, content = entries[tag]
            is_inline = len(content) <= 4
        table += tag.to_bytes(2, order) + kind.to_bytes(2, order) + number.to_bytes(4, order)
        if is_inline:
            table += content.ljust(4, b"\0")
        else:
            table += (place + len(heap)).to_bytes(4, order)
            heap += content + b"\0" * (len(content) % 2)
    return bytes(table + bytes(4) + heap)  # no second directory: that would be the thumbnail's
