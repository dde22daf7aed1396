"""The final file: any of our output formats, with its profile and metadata."""

from pathlib import Path
from typing import Any, Final, NoReturn

import pyvips

from fourfold.errors import StorageFullError
from fourfold.imaging import colour, formats, metadata, splice, tiff_exif
from fourfold.imaging.fidelity import Written
from fourfold.imaging.options import OutputOptions
from fourfold.imaging.recipe import Recipe

#: Level 3 with one fixed filter: a third of the time of libvips' own default at the same size.
_PNG_RESULT: Final = {"compression": 3, "filter": "up"}
#: A hop inside the network: speed counts, size hardly.
_PNG_HOP: Final = {"compression": 1, "filter": "up", "keep": "none"}
_WHITE: Final = 255.0
#: libvips' flags: with all of them it would write an EXIF block of its own making.
_KEEP: Final = {"exif": 1, "xmp": 2, "iptc": 4, "icc": 8}


def save_hop(image: Any, target: Path) -> None:
    """Write a canonical picture. Raises: StorageFullError; InvalidImageError if its pixels are damaged."""
    _save(image, "pngsave", target, _PNG_HOP)


def save_result(image: Any, recipe: Recipe, target: Path, options: OutputOptions) -> Written:
    """Write the finished *image* as *options* say. Raises: StorageFullError; InvalidImageError if it cannot be read."""
    warnings = []
    kind, known = options.format, options.file_format
    if image.hasalpha() and not known.has_alpha:
        image = image.flatten(background=_WHITE * (257 if image.format == "ushort" else 1))
        warnings.append(f"{kind} has no transparency: the picture was laid on white")
    bits = min(colour.bits(image), known.bits)
    if bits == 8 and colour.bits(image) == 16:
        interpretation = "b-w" if image.interpretation == "grey16" else "srgb"
        image = colour.at_depth(image, 8).copy(interpretation=interpretation)
    blocks = metadata.chosen(recipe, options, image.width, image.height)
    if kind == "tiff" and _needs_bigtiff(image):
        blocks.pop("exif", None)
    image = metadata.attach(image, blocks, kind=kind)
    if recipe.profile is not None:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", recipe.profile.read_bytes())
    elif image.get_typeof("icc-profile-data"):
        image.remove("icc-profile-data")
    resolution = metadata.resolution(recipe, options)
    xres, yres = resolution or (metadata.UNSAID_XRES, metadata.UNSAID_XRES)
    image = image.copy(xres=xres, yres=yres)
    saver, arguments = _arguments(options, bits)
    kept = {*blocks} | ({"icc"} if recipe.profile is not None else set())
    if kind == "jpeg" and resolution is not None:
        kept.add("exif")  # where there is none, libvips makes one of the resolution alone: it writes no JFIF header
    arguments["keep"] = sum(_KEEP[name] for name in kept)
    if kind == "png" and "iptc" in blocks:
        bare = target.with_name(f"{target.name}.bare")
        _save(image, saver, bare, arguments)
        splice.insert(bare, target, [splice.iptc_chunk(blocks["iptc"])])
        bare.unlink()
    else:
        _save(image, saver, target, arguments)
        if kind == "tiff" and "exif" in blocks:
            _insert_exif(target, blocks["exif"])
    if options.metadata != "strip":
        lost = [name for name in recipe.metadata if name not in blocks and options.metadata != "copyright"]
        warnings += [
            f"the {name.upper()} metadata cannot be carried by {kind}, or was empty or damaged" for name in lost
        ]
    return Written(image.width, image.height, bits, tuple(blocks), tuple(warnings))


def raise_for(exc: pyvips.Error) -> NoReturn:
    """Tell a full disk, by the system's own words, from a damaged picture."""
    detail = exc.detail.lower()
    if "no space left" in detail or "quota exceeded" in detail or "file too large" in detail:
        raise StorageFullError("the picture cannot be kept: no space left; try again later") from exc
    formats.refuse(exc)


def _arguments(options: OutputOptions, bits: int) -> tuple[str, dict[str, Any]]:
    """Return libvips' operation for the format and its arguments."""
    quality = options.quality or options.file_format.quality
    if options.format == "jpeg":
        # From 90 the colours keep their full resolution, as libvips has it.
        return "jpegsave", {"Q": quality, "optimize_coding": True}
    if options.format == "webp":
        return "webpsave", {"Q": quality, "effort": 4, "smart_subsample": True}
    if options.format == "avif":
        return "heifsave", {"Q": quality, "compression": "av1", "bitdepth": bits, "effort": 4}
    if options.format == "tiff":
        return "tiffsave", {"compression": "deflate", "predictor": "horizontal", "bigtiff": False}
    return "pngsave", dict(_PNG_RESULT)


def _needs_bigtiff(image: Any) -> bool:
    """Classic TIFF ends at 4 GB; deflated noise is no smaller than itself."""
    size: int = image.width * image.height * image.bands * (colour.bits(image) // 8)
    return size > 3 * 2**30


def _insert_exif(target: Path, block: bytes) -> None:
    try:
        tiff_exif.insert(target, block)
    except OSError as exc:
        target.unlink(missing_ok=True)
        raise StorageFullError(f"the result cannot be kept: {exc.strerror}; try again later") from exc


def _save(image: Any, saver: str, target: Path, arguments: dict[str, Any]) -> None:
    if saver == "tiffsave":
        arguments["bigtiff"] = _needs_bigtiff(image)
    try:
        getattr(image, saver)(str(target), **arguments)
    except pyvips.Error as exc:
        target.unlink(missing_ok=True)
        raise_for(exc)
