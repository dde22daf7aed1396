"""Colour science for tests: matrix profiles made from published primaries, and CIE's colour difference."""

import io
import struct

import numpy as np
from PIL import Image, ImageCms

# D50-adapted primaries, columns of the matrix to XYZ: ICC's own registry of RGB spaces.
PRIMARIES = {
    "P3": [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)],
    "AdobeRGB": [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)],
}
D50 = (0.9642, 1.0, 0.8249)


def rgb_profile(name: str, gamma: float = 2.2) -> bytes:
    """Return an ICC v2 matrix profile."""
    tags = {b"wtpt": _xyz(D50)}
    for letter, primary in zip(b"rgb", PRIMARIES[name], strict=True):
        tags[bytes([letter]) + b"XYZ"] = _xyz(primary)
        tags[bytes([letter]) + b"TRC"] = _gamma(gamma)
    return _profile(name, b"RGB ", tags)


def grey_profile(gamma: float = 1.8) -> bytes:
    """Return an ICC v2 profile for grey with another gamma than sRGB's."""
    return _profile("grey", b"GRAY", {b"wtpt": _xyz(D50), b"kTRC": _gamma(gamma)})


def srgb_profile() -> bytes:
    """Return LittleCMS' own sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def as_srgb(image: Image.Image) -> np.ndarray:
    """Return ``float [h, w, 3]`` of what a colour-managed viewer shows, transparency left out."""
    icc = image.info.get("icc_profile")
    mode = image.mode
    if mode in ("P", "PA", "1"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if mode.startswith("I;16") or mode == "I":
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    plain = image.convert({"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode))
    if icc:
        wanted = ImageCms.createProfile("sRGB")
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        plain = ImageCms.profileToProfile(plain, source, wanted, renderingIntent=1, outputMode="RGB", flags=flags)
    return np.asarray(plain.convert("RGB")).astype(float)


def delta_e_2000(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the colour difference of two sRGB pictures, 0 .. 255. Source: Sharma, Wu, Dalal (2005)."""
    (l1, a1, b1), (l2, a2, b2) = _lab(a), _lab(b)
    c_mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(c_mean**7 / (c_mean**7 + 25.0**7)))
    a1, a2 = a1 * (1 + g), a2 * (1 + g)
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    turn = h2 - h1
    turn = np.where(turn > 180, turn - 360, np.where(turn < -180, turn + 360, turn))
    grey = c1 * c2 == 0
    turn = np.where(grey, 0, turn)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn) / 2)
    l_, c_ = (l1 + l2) / 2, (c1 + c2) / 2
    h_ = np.where(np.abs(h1 - h2) > 180, (h1 + h2 + 360) / 2, (h1 + h2) / 2)
    h_ = np.where(grey, h1 + h2, h_)
    t = 1 - 0.17 * np.cos(np.radians(h_ - 30)) + 0.24 * np.cos(np.radians(2 * h_))
    t += 0.32 * np.cos(np.radians(3 * h_ + 6)) - 0.20 * np.cos(np.radians(4 * h_ - 63))
    rc = 2 * np.sqrt(c_**7 / (c_**7 + 25.0**7))
    rt = -rc * np.sin(np.radians(60 * np.exp(-(((h_ - 275) / 25) ** 2))))
    sl = 1 + 0.015 * (l_ - 50) ** 2 / np.sqrt(20 + (l_ - 50) ** 2)
    dl, dc, dh = (l2 - l1) / sl, (c2 - c1) / (1 + 0.045 * c_), dh / (1 + 0.015 * c_ * t)
    return np.sqrt(np.maximum(dl**2 + dc**2 + dh**2 + rt * dc * dh, 0))


def _lab(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    v = rgb / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    matrix = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = linear @ np.array(matrix).T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return 116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(_fixed(v) for v in values)


def _gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _profile(name: str, space: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = name.encode() + b"\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 78,
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        **tags,
    }
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += tag + struct.pack(">II", start + len(body), len(data))
        body += data
    size = start + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, b"mntr", space, b"XYZ ") + bytes(12) + b"acsp"
    head = head.ljust(64, b"\0") + struct.pack(">I", 0) + b"".join(_fixed(v) for v in D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
