"""Profile and metadata put into a finished PNG between its chunks: the pixels stay the worker's own bytes."""

import struct
import zlib
from pathlib import Path
from typing import Final

from fourfold.errors import StorageFullError
from fourfold.imaging import exif, metadata
from fourfold.imaging.containers import PNG_MAGIC
from fourfold.imaging.fidelity import Written
from fourfold.imaging.options import OutputOptions
from fourfold.imaging.recipe import Recipe

_IHDR_END: Final = len(PNG_MAGIC) + 25
_PIECE_BYTES: Final = 2**20
_MILLIMETRES: Final = 1000  #: in a metre, which is PNG's unit


def fits(recipe: Recipe, options: OutputOptions) -> bool:
    """Whether all that is to be put back stands beside the pixels."""
    untouched = not (recipe.grey or recipe.converts or recipe.alpha is not None or recipe.wrap_px)
    return untouched and options.is_plain(recipe.intake.width, recipe.intake.height)


def splice(source: Path, recipe: Recipe, target: Path, options: OutputOptions) -> Written:
    """Copy the PNG *source* to *target* with what *recipe* holds beside the pixels. Raises: StorageFullError."""
    try:
        with source.open("rb") as there, target.open("wb") as here:
            head = there.read(_IHDR_END)
            width, height, bits = struct.unpack(">IIB", head[16:25])
            blocks = metadata.chosen(recipe, options, width, height)
            here.write(head)
            for name, content in _chunks(recipe, blocks):
                here.write(struct.pack(">I", len(content)) + name + content)
                here.write(struct.pack(">I", zlib.crc32(name + content)))
            while piece := there.read(_PIECE_BYTES):
                here.write(piece)
    except OSError as exc:
        target.unlink(missing_ok=True)
        raise StorageFullError(f"the result cannot be kept: {exc.strerror}; try again later") from exc
    return Written(width, height, bits, tuple(blocks))


def _chunks(recipe: Recipe, blocks: dict[str, bytes]) -> list[tuple[bytes, bytes]]:
    """Return name and content of each new chunk."""
    chunks = []
    if recipe.profile is not None:
        chunks.append((b"iCCP", b"icc\0\0" + zlib.compress(recipe.profile.read_bytes())))
    intake = recipe.intake
    if blocks and intake.xres:
        metre = (round(intake.xres * _MILLIMETRES), round(intake.yres * _MILLIMETRES))
        chunks.append((b"pHYs", struct.pack(">IIB", *metre, 1)))
    if "exif" in blocks:
        chunks.append((b"eXIf", blocks["exif"].removeprefix(exif.PREFIX)))
    if "xmp" in blocks:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + blocks["xmp"]))
    if "iptc" in blocks:
        chunks.append((b"tEXt", b"Raw profile type iptc\0" + metadata.png_iptc(blocks["iptc"]).encode("ascii")))
    return chunks
