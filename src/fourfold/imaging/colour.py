"""Colour: from whatever profile a picture has to sRGB for the model, and back again afterwards.

Relative colorimetric with black point compensation, both ways: what both spaces have stays as it is, black stays black.
What only the picture's own space has is brought to the border of sRGB, as the models know nothing else.
"""

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyvips

_HOW: Final = {"intent": "relative", "black_point_compensation": True}
#: Of 255; conversions by two descriptions of one space differ by this much at most.
_SAME_LEVELS: Final = 1.0
#: Rec. 709: sum 1, so that a neutral pixel stays as it is.
_LUMA: Final = (0.2126, 0.7152, 0.0722)
#: A PNG whose profile is larger is refused by Pillow, and so by most of what opens it in Python.
_PROFILE_BYTES: Final = 2**20
_LOOKED_AT: Final = 1_000_000
#: Light of a channel, 0 .. 1, that is two of 255 levels beyond sRGB's ends; less is rounding.
_BELOW: Final = -2 / 255 / 12.92
_ABOVE: Final = 1 + 2 / 255 * 2.27


def bits(image: Any) -> int:
    """Return the bits of one sample."""
    return 16 if image.format == "ushort" else 8


def space(image: Any) -> str:
    """Return "rgb", "grey", "cmyk" or "lab": what the bands mean, alpha left out of account."""
    if image.interpretation in ("b-w", "grey16") or image.bands <= 2:
        return "grey"
    if image.interpretation in ("cmyk", "lab", "labs"):
        return "cmyk" if image.interpretation == "cmyk" else "lab"
    return "rgb"


def to_srgb(image: Any, depth: int) -> tuple[Any, bool]:
    """Return the colour bands of *image* as three sRGB bands of *depth* bits, and whether its profile was applied.

    A broken profile, or one that is not for such a picture, counts as none; one that is sRGB needs no conversion.
    """
    kind = space(image)
    converted = None
    if kind == "cmyk" or _needs(image, kind):
        converted = _import(image, depth)
    is_converted = converted is not None
    if converted is not None:
        image = converted
    elif kind == "cmyk":
        image, kind = _from_inks(image), "rgb"
    wanted, sample = ("rgb16", "ushort") if depth == 16 else ("srgb", "uchar")
    if image.interpretation == wanted and image.format == sample and image.bands == 3:
        return image, is_converted
    if image.bands == 1:  # a grey picture's samples are sRGB's already
        image = at_depth(image, depth)
        return image.bandjoin([image, image]).copy(interpretation=wanted), is_converted
    if kind == "rgb":
        return at_depth(image.extract_band(0, n=3), depth).copy(interpretation=wanted), is_converted
    return image.colourspace(wanted).cast(sample), is_converted


def keep_profile(image: Any, path: Path, *, converted: bool) -> tuple[Path | None, bool, str | None]:
    """Write the embedded profile to *path* if the result can carry it.

    Returns: the file, None if there is nothing to embed; whether the result must be converted to it; its own name.
    """
    if not image.get_typeof("icc-profile-data"):
        return None, False, None
    data = bytes(image.get("icc-profile-data"))
    name = profile_name(data)
    kind = space(image)
    if kind in ("cmyk", "lab") or len(data) > _PROFILE_BYTES:
        return None, False, name
    if data[16:20] != (b"GRAY" if kind == "grey" else b"RGB "):
        return None, False, name
    path.write_bytes(data)
    if not converted:
        # sRGB under another name; a broken one is not passed on.
        return (path, False, name) if _lattice(image) is not None else (None, False, name)
    try:
        _sample(kind).icc_transform(str(path), input_profile="srgb", embedded=False, depth=8, **_HOW).avg()
    except pyvips.Error:  # a scanner's profile leads only one way
        return None, False, name
    return path, True, name


def from_srgb(image: Any, profile: Path) -> Any:
    """Return the sRGB or grey *image* converted to *profile*, at its own depth."""
    depth = bits(image)
    return image.icc_transform(str(profile), input_profile="srgb", embedded=False, depth=depth, **_HOW)


def share_outside(image: Any) -> float:
    """Return the share of the pixels of *image*, 0 .. 1, whose colours by its profile sRGB does not have.

    Looked at in pixels spread evenly over the picture, a million at most.
    """
    kind = space(image)
    if kind not in ("rgb", "cmyk") or not image.get_typeof("icc-profile-data"):
        return 0.0
    every = max(1, math.ceil(math.sqrt(image.width * image.height / _LOOKED_AT)))
    plain = image.extract_band(0, n=3 if kind == "rgb" else 4).copy(interpretation=image.interpretation)
    sample = plain.subsample(every, every).copy(interpretation=image.interpretation)
    try:
        linear = sample.icc_import(embedded=True, pcs="lab", **_HOW).colourspace("scrgb").numpy()
    except pyvips.Error:
        return 0.0
    outside = (linear.min(axis=-1) < _BELOW) | (linear.max(axis=-1) > _ABOVE)
    return float(outside.mean())


def to_grey(image: Any) -> Any:
    """Return the one-band picture that an upscaled grey picture's three bands are; neutral pixels keep their value."""
    wanted = "grey16" if image.format == "ushort" else "b-w"
    luma = image.recomb(pyvips.Image.new_from_array([list(_LUMA)]))
    return (luma + 0.5).cast(image.format).copy(interpretation=wanted)


def profile_name(data: bytes) -> str:
    """Return a profile's own description, "unnamed" where it has none that can be read."""
    try:
        for i in range(min(int.from_bytes(data[128:132], "big"), 100)):
            entry = data[132 + 12 * i : 144 + 12 * i]
            if entry[:4] != b"desc":
                continue
            start = int.from_bytes(entry[4:8], "big")
            body = data[start : start + int.from_bytes(entry[8:12], "big")]
            if body[:4] == b"desc":
                text = body[12 : 12 + int.from_bytes(body[8:12], "big")].decode("ascii", "replace")
            else:  # mluc: the first language
                length, offset = int.from_bytes(body[20:24], "big"), int.from_bytes(body[24:28], "big")
                text = body[offset : offset + length].decode("utf-16-be", "replace")
            text = "".join(c for c in text if c.isprintable())[:80].strip()
            return text or "unnamed"
    except (IndexError, ValueError):
        pass
    return "unnamed"


def at_depth(image: Any, depth: int) -> Any:
    """Return *image* with samples of *depth* bits, rounded; 255 and 65535 are the same white."""
    if bits(image) == depth:
        return image
    if depth == 8:
        return ((image + 128) / 257).floor().cast("uchar")
    return (image.cast("ushort") * 257).cast("ushort")


def _from_inks(image: Any) -> Any:
    """Return CMYK whose inks no profile describes as every browser shows it: each ink takes away its own light."""
    peak = 255 if bits(image) == 8 else 65_535
    light = (image * -1 + peak) / peak
    made = light.extract_band(0, n=3) * light.extract_band(3) * peak
    return made.rint().cast(image.format).copy(interpretation="srgb" if peak == 255 else "rgb16")


def _import(image: Any, depth: int) -> Any | None:
    """Return *image* converted by its profile to sRGB, None if the profile cannot do that."""
    if not image.get_typeof("icc-profile-data"):
        return None
    try:
        return image.icc_transform("srgb", embedded=True, depth=depth, **_HOW)
    except pyvips.Error:
        return None


def _needs(image: Any, kind: str) -> bool:
    """Whether the embedded profile says something else than sRGB does."""
    if kind == "lab" or not image.get_typeof("icc-profile-data"):
        return False
    seen = _lattice(image)
    if seen is None:
        return False
    plain = _sample(kind)
    as_srgb = plain if kind == "rgb" else plain.bandjoin([plain, plain])
    difference = np.abs(seen.numpy().astype(float) - as_srgb.numpy().astype(float))
    return bool(difference.max() > _SAME_LEVELS)


def _lattice(image: Any) -> Any | None:
    """Return a few hundred colours in *image*'s profile as sRGB, None if the profile cannot do that."""
    data = bytes(image.get("icc-profile-data"))
    if int.from_bytes(data[:4], "big") != len(data):  # cut short: what writes it next would refuse it
        return None
    sample = _sample(space(image)).copy()
    sample.set_type(pyvips.GValue.blob_type, "icc-profile-data", data)
    try:
        # A broken profile gives way to the other one without a word; then two others give two pictures. In memory, so
        # that a profile that fails does so now.
        one, other = (
            sample.icc_transform("srgb", embedded=True, input_profile=name, depth=8, **_HOW).copy_memory()
            for name in ("srgb", "p3")
        )
    except pyvips.Error:
        return None
    return one if (one - other).abs().max() == 0 else None


def _sample(kind: str) -> Any:
    """Return a small picture of evenly spread colours, 8 bits."""
    if kind == "grey":
        ramp = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
        return pyvips.Image.new_from_array(ramp).copy(interpretation="b-w")
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(9, 81, 3)
    return pyvips.Image.new_from_array(np.ascontiguousarray(grid)).copy(interpretation="srgb")
