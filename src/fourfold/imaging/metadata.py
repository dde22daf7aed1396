"""EXIF, XMP, IPTC and the resolution: taken off a picture, chosen from, made true, and put onto its result."""

import re
from pathlib import Path
from typing import Any, Final

import pyvips

from fourfold.imaging import exif
from fourfold.imaging.options import OutputOptions
from fourfold.imaging.recipe import Recipe

_FIELDS: Final = {"exif": "exif-data", "xmp": "xmp-data", "iptc": "iptc-data"}
_MOST_BYTES: Final = 4 * 2**20
#: What each format can carry, as far as libvips or we write it.
_CARRIES: Final = {
    "png": ("exif", "xmp", "iptc"),
    "jpeg": ("exif", "xmp", "iptc"),
    "webp": ("exif", "xmp"),
    "avif": ("exif", "xmp"),
    "tiff": ("exif", "xmp", "iptc"),
}
#: An APP1 of a JPEG holds no more.
_JPEG_BYTES: Final = 65_000

_PHOTOSHOP: Final = b"Photoshop 3.0\0"
_IPTC_RESOURCE: Final = b"8BIM\x04\x04"
_IPTC_RIGHTS: Final = frozenset({80, 110, 116})  # by-line, credit, copyright notice
#: ImageMagick's and exiftool's name for IPTC in a PNG's text.
_PNG_IPTC: Final = "Raw profile type iptc"

UNSAID_XRES: Final = 72 / 25.4
"""Pixels a millimetre of a picture that names none, as everybody assumes: 72 an inch."""

_XMP_PLACE: Final = r"exif:GPS\w+"
_XMP_STALE: Final = r"xmp:Thumbnails"
_XMP_RIGHTS: Final = r"dc:rights|dc:creator|xmpRights:\w+|photoshop:Credit"


def extract(image: Any, folder: Path) -> dict[str, Path]:
    """Write the metadata of *image* to files in *folder*; return them by the recipe's names."""
    blocks: dict[str, Path] = {}
    for name, data in _blocks(image).items():
        if 0 < len(data) <= _MOST_BYTES:
            blocks[name] = folder / f"{name}.bin"
            blocks[name].write_bytes(data)
    return blocks


def chosen(recipe: Recipe, options: OutputOptions, width: int, height: int) -> dict[str, bytes]:
    """Return what is to be put onto a result of *width* x *height*, by the recipe's names."""
    if options.metadata == "strip":
        return {}
    kept: dict[str, bytes] = {}
    for name, path in recipe.metadata.items():
        if name not in _CARRIES[options.format]:
            continue
        data: bytes | None = path.read_bytes()
        assert data is not None
        if name == "exif":
            data = exif.rewrite(data, mode=options.metadata, width=width, height=height)
        elif name == "xmp":
            data = _rewrite_xmp(data, options.metadata, width, height)
        elif options.metadata == "copyright":
            data = _iptc_rights(data)
        if data and (options.format != "jpeg" or len(data) <= _JPEG_BYTES):
            kept[name] = data
    return kept


def told_resolution(image: Any) -> dict[str, float]:
    """Return the resolution that *image* came with, empty where it named none."""
    # What libvips says where the file does not: 1, or 72 an inch.
    is_told = any(abs(res - 1) > 1e-3 and abs(res - UNSAID_XRES) > 1e-2 for res in (image.xres, image.yres))
    return {"xres": image.xres, "yres": image.yres} if is_told else {}


def resolution(recipe: Recipe, options: OutputOptions) -> tuple[float, float] | None:
    """Return the pixels a millimetre, across and down, that the result is to name: the input's, if it named any."""
    intake = recipe.intake
    is_kept = options.metadata in ("default", "keep") and intake.xres > 0 and intake.yres > 0
    return (intake.xres, intake.yres) if is_kept else None


def attach(image: Any, blocks: dict[str, bytes], *, kind: str) -> Any:
    """Return *image* with nothing but *blocks* as its metadata, for a file of *kind*; its profile stays."""
    image = image.copy()
    for field in _field_names(image):
        if field in _FIELDS.values() or field.startswith(("exif-", "png-comment", "orientation", "jpeg-thumbnail")):
            image.remove(field)
    for name, data in blocks.items():
        if name == "iptc" and kind == "png":
            continue  # libvips cannot write its chunk: a text whose name has spaces in it
        wrapped = _photoshop(data) if name == "iptc" and kind == "jpeg" else data
        image.set_type(pyvips.GValue.blob_type, _FIELDS[name], wrapped)
    return image


def _blocks(image: Any) -> dict[str, bytes]:
    found = {name: bytes(image.get(field)) for name, field in _FIELDS.items() if image.get_typeof(field)}
    if "iptc" in found:
        found["iptc"] = _bare_iptc(found["iptc"])
    for field in _field_names(image):
        if field.startswith("png-comment-") and field.endswith(_PNG_IPTC):
            digits = "".join(str(image.get(field)).split()[2:])
            try:
                found["iptc"] = bytes.fromhex(digits)
            except ValueError:
                continue
    return {name: data for name, data in found.items() if data}


def _field_names(image: Any) -> list[str]:
    """Return the names of what stands beside the pixels; pyvips fails at a PNG's, which may be Latin-1."""
    names = pyvips.vips_lib.vips_image_get_fields(image.pointer)
    found: list[str] = []
    while (name := names[len(found)]) != pyvips.ffi.NULL:
        found.append(pyvips.ffi.string(name).decode("utf-8", "replace"))
        pyvips.glib_lib.g_free(name)
    pyvips.glib_lib.g_free(names)
    return found


def _bare_iptc(data: bytes) -> bytes:
    """Return the IPTC records alone, without Photoshop's resources around them (one of which is a thumbnail)."""
    if not data.startswith(_PHOTOSHOP):
        return data
    at = data.find(_IPTC_RESOURCE)
    if at < 0:
        return b""
    name_length = data[at + 6] if at + 6 < len(data) else 0
    start = at + 6 + name_length + 1 + (name_length + 1) % 2
    size = int.from_bytes(data[start : start + 4], "big")
    return data[start + 4 : start + 4 + size]


def _photoshop(data: bytes) -> bytes:
    """Return IPTC records as a JPEG carries them."""
    return _PHOTOSHOP + _IPTC_RESOURCE + b"\0\0" + len(data).to_bytes(4, "big") + data + b"\0" * (len(data) % 2)


def _iptc_rights(data: bytes) -> bytes:
    """Return only the records that name the author and the rights."""
    kept = bytearray()
    at = 0
    while at + 5 <= len(data) and data[at] == 0x1C:
        end = at + 5 + int.from_bytes(data[at + 3 : at + 5], "big")
        if data[at + 1] == 2 and data[at + 2] in _IPTC_RIGHTS:
            kept += data[at:end]
        at = end
    return bytes(kept)


def _rewrite_xmp(data: bytes, mode: str, width: int, height: int) -> bytes | None:
    """Return the XMP packet without what must go, its sizes and orientation made true; None if nothing is left."""
    try:
        text = data.rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError:
        return None
    if mode == "copyright":
        return _xmp_rights(text)
    for name in (_XMP_STALE,) if mode == "keep" else (_XMP_STALE, _XMP_PLACE):
        text = re.sub(rf"<({name})\b[^>]*?/>|<({name})\b[^>]*>.*?</\2>", "", text, flags=re.DOTALL)
        text = re.sub(rf"\s(?:{name})\s*=\s*(\"[^\"]*\"|'[^']*')", "", text)
    truths = {"tiff:Orientation": 1, "tiff:ImageWidth": width, "tiff:ImageLength": height}
    truths |= {"exif:PixelXDimension": width, "exif:PixelYDimension": height}
    for name, value in truths.items():
        text = re.sub(rf"({name}\s*=\s*[\"'])[^\"']*", rf"\g<1>{value}", text)
        text = re.sub(rf"(<{name}>)[^<]*", rf"\g<1>{value}", text)
    return text.encode()


def _xmp_rights(text: str) -> bytes | None:
    """Return a packet with the author and the rights alone."""
    elements = [found[0] for found in re.findall(rf"(<({_XMP_RIGHTS})\b[^>]*>.*?</\2>)", text, flags=re.DOTALL)]
    attributes = re.findall(rf"\s(?:{_XMP_RIGHTS})\s*=\s*(?:\"[^\"]*\"|'[^']*')", text)
    if not elements and not attributes:
        return None
    names = dict(re.findall(r"xmlns:(dc|xmpRights|photoshop)=\"([^\"]*)\"", text))
    declared = "".join(f' xmlns:{prefix}="{uri}"' for prefix, uri in names.items())
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about=""{declared}{"".join(attributes)}>{"".join(elements)}'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()
