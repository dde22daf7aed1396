"""EXIF in a TIFF, which libvips neither reads nor writes: there it is no block but directories of the file itself.

Not for BigTIFF: its directories have another shape.
"""

import mmap
from pathlib import Path
from typing import Final

from fourfold.imaging import exif
from fourfold.imaging.exif import Directory, Order

_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
#: What the first directory may say beside what the pixels are: description, maker, model, software, date, artist,
#: rating, copyright, Windows' title to subject.
_TELLING: Final = frozenset({0x10E, 0x10F, 0x110, 0x131, 0x132, 0x13B, 0x4746, 0x4749, 0x8298, *range(0x9C9B, 0x9CA0)})
_UNITS: Final = {5: 4, 10: 4}  #: bytes that are swapped together, where that is not the whole value
_ENTRY_BYTES: Final = 12


def extract(path: Path) -> bytes | None:
    """Return what the TIFF at *path* says of itself as an EXIF block, None if that is nothing."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[2:4] not in (b"*\0", b"\0*"):
            return None
        order: Order = "little" if data[:2] == b"II" else "big"
        found = exif.read_directory(data, int.from_bytes(data[4:8], order), order, depth=0)
    root = Directory(
        {tag: value for tag, value in found.tag_to_value.items() if tag in _TELLING},
        {tag: below for tag, below in found.tag_to_directory.items() if tag in (_EXIF_IFD, _GPS_IFD)},
    )
    if not root.tag_to_value and not root.tag_to_directory:
        return None
    mark = b"II*\0" if order == "little" else b"MM\0*"
    return exif.PREFIX + mark + (8).to_bytes(4, order) + exif.write_directory(root, 8, order)


def insert(path: Path, block: bytes) -> None:
    """Have the classic TIFF at *path* say what the EXIF *block* says: a new first directory is put at its end.

    Raises: OSError if the file cannot be written.
    """
    data = block.removeprefix(exif.PREFIX)
    theirs: Order = "little" if data[:2] == b"II" else "big"
    root = exif.read_directory(data, int.from_bytes(data[4:8], theirs), theirs, depth=0)
    with path.open("r+b") as file:
        head = file.read(8)
        order: Order = "little" if head[:2] == b"II" else "big"
        if order != theirs:
            root = _swapped(root)
        file.seek(int.from_bytes(head[4:8], order))
        count = int.from_bytes(file.read(2), order)
        old = file.read(count * _ENTRY_BYTES)
        following = file.read(4)
        tag_to_entry = {
            int.from_bytes(old[i : i + 2], order): old[i : i + _ENTRY_BYTES] for i in range(0, len(old), _ENTRY_BYTES)
        }
        start = file.seek(0, 2)
        start += file.write(b"\0" * (start % 2))
        new = {tag for tag in root.tag_to_value if tag in _TELLING and tag not in tag_to_entry}
        below = set(root.tag_to_directory) - set(tag_to_entry)
        heap_at = start + 2 + _ENTRY_BYTES * (len(tag_to_entry) + len(new) + len(below)) + 4
        heap = bytearray()
        for tag in sorted(new | below):
            place = heap_at + len(heap)
            kind, number, content = root.tag_to_value[tag] if tag in new else (4, 1, b"")
            if tag in below:
                heap += exif.write_directory(root.tag_to_directory[tag], place, order)
                content = place.to_bytes(4, order)
            elif len(content) > 4:
                heap += content + b"\0" * (len(content) % 2)
                content = place.to_bytes(4, order)
            fields = tag.to_bytes(2, order) + kind.to_bytes(2, order) + number.to_bytes(4, order)
            tag_to_entry[tag] = fields + content.ljust(4, b"\0")
        table = b"".join(tag_to_entry[tag] for tag in sorted(tag_to_entry))
        file.write(len(tag_to_entry).to_bytes(2, order) + table + following + heap)
        file.seek(4)
        file.write(start.to_bytes(4, order))


def _swapped(directory: Directory) -> Directory:
    """Return *directory* with its numbers in the other byte order."""
    values = {}
    for tag, (kind, count, content) in directory.tag_to_value.items():
        unit = _UNITS.get(kind, exif.SIZES[kind])
        values[tag] = kind, count, b"".join(content[i : i + unit][::-1] for i in range(0, len(content), unit))
    return Directory(values, {tag: _swapped(below) for tag, below in directory.tag_to_directory.items()})
