"""Colour spaces that a file describes in numbers, not by a profile: PNG's gAMA, cHRM and cICP, and AVIF's nclx.

libvips reads none of them. So that such a picture keeps its appearance a profile is made of the numbers, which then
goes the way of any other.
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from fourfold.errors import UnsupportedFormatError

Places = tuple[float, float, float, float, float, float, float, float]
"""x and y of white, red, green and blue."""

#: A gamma, or None for sRGB's own curve.
Gamma = float | None

_D65: Final = (0.3127, 0.3290)
_SRGB: Final[Places] = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
#: ITU-T H.273, table 2.
_CODE_TO_PLACES: Final[Mapping[int, Places]] = {
    1: _SRGB,
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
#: ITU-T H.273, table 3; television's curves (1, 6, 14, 15) are shown as sRGB, as browsers do.
_CODE_TO_GAMMA: Final[Mapping[int, Gamma]] = {4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6}
_HDR: Final = {16: "PQ", 18: "HLG"}
_SRGB_GAMMA: Final = 2.2
#: Differences that nobody sees, and that encoders make by rounding.
_SAME_GAMMA: Final = 0.05
_SAME_PLACE: Final = 0.003
_D50: Final = (0.9642, 1.0, 0.8249)
#: To the eye's three receptors. Source: Bradford, as ICC.1 annex E has it.
_BRADFORD: Final = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_DEEPEST: Final = 3  #: boxes that colr lies in
_BOXES: Final = 1_000
_MONOCHROME: Final = 0x10  #: of the third byte of an AV1 configuration
_FULL_RANGE: Final = 0x80  #: of an nclx box's last byte
_SEQUENCE_HEADER: Final = b"\x0a"  #: an OBU of AV1, with its size


def of_png(chunks: Mapping[bytes, bytes], *, is_grey: bool) -> bytes | None:
    """Return the profile that the *chunks* of a PNG without one describe; None where that is sRGB, or nothing.

    Raises: UnsupportedFormatError for high dynamic range.
    """
    if b"iCCP" in chunks:
        return None
    if len(cicp := chunks.get(b"cICP", b"")) == 4:
        return of_codes(cicp[0], cicp[1], is_grey=is_grey)
    gamma = int.from_bytes(chunks.get(b"gAMA", b"")[:4], "big")
    if b"sRGB" in chunks or not gamma:
        return None
    places = _SRGB
    if len(chrm := chunks.get(b"cHRM", b"")) == 32:
        places = tuple(value / 100_000 for value in struct.unpack(">8I", chrm))
    return _profile(places, 100_000 / gamma, is_grey=is_grey)


def of_codes(primaries: int, transfer: int, *, is_grey: bool = False) -> bytes | None:
    """Return the profile for H.273's code points, None where they mean sRGB or nothing that is known.

    Raises: UnsupportedFormatError for high dynamic range.
    """
    if transfer in _HDR:
        raise UnsupportedFormatError(
            f"high dynamic range ({_HDR[transfer]}) is not read here: its brightness would be lost; convert it to sRGB"
        )
    return _profile(_CODE_TO_PLACES.get(primaries, _SRGB), _CODE_TO_GAMMA.get(transfer), is_grey=is_grey)


def is_grey(path: Path) -> bool:
    """Whether an AVIF has no colour in any of its items: AV1's monochrome flag, which transparency always has."""
    with path.open("rb") as file:
        properties = _properties(file, 0, path.stat().st_size, depth=0)
        flags = [content[2] & _MONOCHROME for name, content in properties if name == b"av1C" and len(content) > 2]
    return bool(flags) and all(flags)


def is_limited(path: Path) -> bool:
    """Whether a grey AVIF is stored as television has it, black at 16 and white at 235 of 255.

    The file's nclx box says it, or where there is none AV1's own header, of a still picture at the file's first place.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        for name, content in _properties(file, 0, size, depth=0):
            if name == b"colr" and content[:4] == b"nclx" and len(content) > 10:
                return not content[10] & _FULL_RANGE
        for name, start, _ in _boxes(file, 0, size):
            if name == b"mdat":
                file.seek(start)
                return _is_limited(file.read(64))
    return False


def _is_limited(data: bytes) -> bool:
    """Return what AV1's sequence header at the start of *data* says of a grey still picture; False where it is none.

    Source: AV1 bitstream specification, 5.5.1 and 5.5.2, for reduced_still_picture_header.
    """
    data = data.removeprefix(b"\x12\0")  # a temporal delimiter
    bits = "".join(f"{byte:08b}" for byte in data[2:].ljust(64, b"\0"))
    if data[:1] != _SEQUENCE_HEADER or bits[3:5] != "11":
        return False
    profile = int(bits[:3], 2)
    across, down = int(bits[10:14], 2) + 1, int(bits[14:18], 2) + 1
    at = 18 + across + down + 6  # six tools
    is_deep = bits[at : at + 1] == "1"
    at += 2 if profile == 2 and is_deep else 1
    if profile == 1 or bits[at : at + 1] != "1":  # not grey
        return False
    at += 26 if bits[at + 1 : at + 2] == "1" else 2
    return bits[at : at + 1] == "0"


def holds(path: Path, name: bytes) -> bool:
    """Whether an item of a HEIF has a property called *name*; also where no items are to be found."""
    with path.open("rb") as file:
        names = {found for found, _ in _properties(file, 0, path.stat().st_size, depth=0)}
    return name in names or not names


def of_boxes(path: Path, *, is_grey: bool = False) -> bytes | None:
    """Return the profile that the first nclx box of an AVIF or HEIC describes, None where there is none or it is sRGB.

    Raises: UnsupportedFormatError for high dynamic range.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        for name, content in _properties(file, 0, size, depth=0):
            if name == b"colr" and content[:4] == b"nclx" and len(content) >= 8:
                primaries, transfer = struct.unpack(">HH", content[4:8])
                return of_codes(primaries, transfer, is_grey=is_grey)
    return None


def _properties(file: BinaryIO, start: int, stop: int, *, depth: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and first bytes of the properties of a picture's items: meta, iprp, ipco and what is in it."""
    for name, inner, end in _boxes(file, start, stop):
        if depth == _DEEPEST:
            file.seek(inner)
            yield name, file.read(min(16, end - inner))
        elif name == (b"meta", b"iprp", b"ipco")[depth]:
            version = 4 if name == b"meta" else 0
            yield from _properties(file, inner + version, end, depth=depth + 1)


def _boxes(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, first byte and end of what is in each box from *start* to *stop*."""
    for _ in range(_BOXES):
        if start + 8 > stop:
            return
        file.seek(start)
        head = file.read(16)
        length, name, inner = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:
            length, inner = int.from_bytes(head[8:16], "big"), 16
        length = length or stop - start
        if length < inner:
            return
        yield name, start + inner, min(start + length, stop)
        start += length


def _profile(places: Places, gamma: Gamma, *, is_grey: bool) -> bytes | None:
    """Return an ICC v4 profile, None if it would be sRGB's, or if the numbers make no sense."""
    if is_grey:
        places = _SRGB  # a grey picture has no primaries
    is_srgb_curve = gamma is None or abs(gamma - _SRGB_GAMMA) <= _SAME_GAMMA
    if is_srgb_curve and max(abs(a - b) for a, b in zip(places, _SRGB, strict=True)) <= _SAME_PLACE:
        return None
    primaries = _to_pcs(places)
    if primaries is None or (gamma is not None and not 0.1 <= gamma <= 10):
        return None
    if is_srgb_curve:
        # IEC 61966-2-1 as a parametric curve of type 3.
        curve = b"para\0\0\0\0\0\x03\0\0" + b"".join(
            _fixed(v) for v in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        )
    else:
        assert gamma is not None
        curve = b"para\0\0\0\0\0\0\0\0" + _fixed(gamma)
    text = "described by the file".encode("utf-16-be")
    words = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {b"desc": words, b"cprt": words, b"wtpt": _xyz(_D50)}
    if is_grey:
        return _assembled(b"GRAY", tags | {b"kTRC": curve})
    for i, letter in enumerate((b"r", b"g", b"b")):
        tags[letter + b"XYZ"] = _xyz(primaries[:, i])
        tags[letter + b"TRC"] = curve
    return _assembled(b"RGB ", tags)


def _assembled(space: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    """Return the profile of *tags*, with its header."""
    table, heap = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(heap), len(data))
        heap += data + bytes(-len(data) % 4)
    body = struct.pack(">I", len(tags)) + table + heap
    head = struct.pack(">I4xI4s4s4s12x4s", 128 + len(body), 0x04300000, b"mntr", space, b"XYZ ", b"acsp")
    return (head + bytes(28) + _xyz(_D50)[8:]).ljust(128, b"\0") + body


def _to_pcs(places: Places) -> NDArray[np.float64] | None:
    """Return ``[3, 3]``: the primaries in XYZ as columns, adapted to D50; None if they span no space."""
    if min(places[1::2]) <= 0:
        return None
    xyz = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in zip(places[::2], places[1::2], strict=True)]).T
    white, primaries = xyz[:, 0], xyz[:, 1:]
    if abs(np.linalg.det(primaries)) < 1e-6:
        return None
    scaled = primaries * np.linalg.solve(primaries, white)
    gains = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    adapted: NDArray[np.float64] = np.linalg.inv(_BRADFORD) @ np.diag(gains) @ _BRADFORD @ scaled
    return adapted


def _xyz(values: Any) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(_fixed(float(value)) for value in values)


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))
