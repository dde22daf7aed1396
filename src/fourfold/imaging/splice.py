"""Profile, metadata and resolution put into a finished PNG between its chunks: the pixels stay the worker's bytes."""

import os
import struct
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from fourfold.errors import StorageFullError
from fourfold.imaging import exif, metadata
from fourfold.imaging.containers import PNG_MAGIC
from fourfold.imaging.fidelity import Written
from fourfold.imaging.options import OutputOptions
from fourfold.imaging.recipe import Recipe

_IHDR_END: Final = len(PNG_MAGIC) + 25
_PIECE_BYTES: Final = 2**20
_PHYS: Final = b"pHYs"
_REPEATABLE: Final = frozenset({b"tEXt", b"iTXt"})  #: of others a PNG may have one
_MILLIMETRES: Final = 1000  #: in a metre, which is PNG's unit


def fits(recipe: Recipe, options: OutputOptions) -> bool:
    """Whether all that is to be put back stands beside the pixels."""
    untouched = not (recipe.grey or recipe.converts or recipe.alpha is not None or recipe.wrap_px)
    return untouched and options.is_plain(recipe.intake.width, recipe.intake.height)


def splice(source: Path, recipe: Recipe, target: Path, options: OutputOptions) -> Written:
    """Copy the PNG *source* to *target* with what *recipe* holds beside the pixels. Raises: StorageFullError."""
    with source.open("rb") as file:
        width, height, bits = struct.unpack(">IIB", file.read(_IHDR_END)[16:25])
    blocks = metadata.chosen(recipe, options, width, height)
    chunks = _chunks(recipe, blocks, metadata.resolution(recipe, options))
    insert(source, target, chunks, drop={_PHYS, *(name for name, _ in chunks)} - _REPEATABLE)
    return Written(width, height, bits, tuple(blocks))


def insert(source: Path, target: Path, chunks: Iterable[tuple[bytes, bytes]], *, drop: Collection[bytes] = ()) -> None:
    """Copy the PNG *source* to *target* with *chunks*, name and content of each, after its header.

    Args: *drop*, names of chunks of *source* that are left out.

    Raises: StorageFullError.
    """
    try:
        with source.open("rb") as there, target.open("wb") as here:
            here.write(there.read(_IHDR_END))
            for name, content in chunks:
                here.write(_chunk(name, content))
            for name, whole in _before_pixels(there):
                if name not in drop:
                    here.write(whole)
            while piece := there.read(_PIECE_BYTES):
                here.write(piece)
    except OSError as exc:
        target.unlink(missing_ok=True)
        raise StorageFullError(f"the result cannot be kept: {exc.strerror}; try again later") from exc


def _before_pixels(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and bytes of each chunk from where *file* stands to the pixels; then it stands at those."""
    while True:
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IDAT":
            file.seek(-len(head), os.SEEK_CUR)
            return
        yield head[4:], head + file.read(int.from_bytes(head[:4], "big") + 4)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _chunks(
    recipe: Recipe, blocks: dict[str, bytes], resolution: tuple[float, float] | None
) -> list[tuple[bytes, bytes]]:
    """Return name and content of each new chunk."""
    chunks = []
    if recipe.profile is not None:
        chunks.append((b"iCCP", b"icc\0\0" + zlib.compress(recipe.profile.read_bytes())))
    if resolution is not None:
        metre = [round(each * _MILLIMETRES) for each in resolution]
        chunks.append((_PHYS, struct.pack(">IIB", *metre, 1)))
    if "exif" in blocks:
        chunks.append((b"eXIf", blocks["exif"].removeprefix(exif.PREFIX)))
    if "xmp" in blocks:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + blocks["xmp"]))
    if "iptc" in blocks:
        chunks.append(iptc_chunk(blocks["iptc"]))
    return chunks


def iptc_chunk(data: bytes) -> tuple[bytes, bytes]:
    """Return the chunk that IPTC is in a PNG: text, under the name that ImageMagick and exiftool gave it."""
    digits = data.hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    return b"tEXt", b"Raw profile type iptc\0" + f"\niptc\n{len(data):8d}\n{lines}\n".encode("ascii")
