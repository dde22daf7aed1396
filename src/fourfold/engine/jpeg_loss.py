"""What a JPEG of quality 75 leaves of a picture, without the bytes in between.

The safety classifier was trained on such pictures and its authors' own loader makes one of everything, so a score that
is to mean what theirs means has to go through the same loss.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

_BLOCK: Final = 8

# ITU-T T.81 annex K at quality 75 (libjpeg's jpeg_set_quality): half of the tables, rounded.
_LUMA: Final = (
    (8, 6, 5, 8, 12, 20, 26, 31),
    (6, 6, 7, 10, 13, 29, 30, 28),
    (7, 7, 8, 12, 20, 29, 35, 28),
    (7, 9, 11, 15, 26, 44, 40, 31),
    (9, 11, 19, 28, 34, 55, 52, 39),
    (12, 18, 28, 32, 41, 52, 57, 46),
    (25, 32, 39, 44, 52, 61, 60, 51),
    (36, 46, 48, 49, 56, 50, 52, 50),
)
_CHROMA: Final = (
    (9, 9, 12, 24, 50, 50, 50, 50),
    (9, 11, 13, 33, 50, 50, 50, 50),
    (12, 13, 28, 50, 50, 50, 50, 50),
    (24, 33, 50, 50, 50, 50, 50, 50),
    *((50,) * _BLOCK,) * 4,
)

# JFIF: full-range BT.601.
_TO_YCC: Final = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
_TO_RGB: Final = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def jpeg_loss(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return *rgb* as it comes back from a JPEG of quality 75 with halved colour (4:2:0).

    Args:
        rgb: ``[h, w, 3]``, h and w multiples of 16.

    Returns:
        The same shape; equal to libjpeg's result within a few levels: its integer transforms round elsewhere.
    """
    ycc: NDArray[np.float32] = np.rint(rgb @ np.array(_TO_YCC, np.float32).T + np.array([0, 128, 128], np.float32))
    planes = [_quantise(ycc[..., 0], _LUMA)]
    planes += [_double(_quantise(_halve(ycc[..., channel]), _CHROMA)) - 128 for channel in (1, 2)]
    lossy = np.stack(planes, axis=-1) @ np.array(_TO_RGB, np.float32).T
    result: NDArray[np.uint8] = np.rint(np.clip(lossy, 0, 255)).astype(np.uint8)
    return result


def _quantise(plane: NDArray[np.float32], table: tuple[tuple[int, ...], ...]) -> NDArray[np.float32]:
    """Return *plane* with the cosine transform of each 8x8 block rounded to multiples of *table*."""
    height, width = plane.shape
    blocks = plane.reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).swapaxes(1, 2) - 128
    basis, steps = _cosines(), np.array(table, np.float32)
    kept = np.rint(basis @ blocks @ basis.T / steps) * steps
    lossy: NDArray[np.float32] = np.clip(np.rint(basis.T @ kept @ basis + 128), 0, 255)
    return lossy.swapaxes(1, 2).reshape(height, width)


def _cosines() -> NDArray[np.float32]:
    """Return the orthonormal DCT-II: row k holds frequency k."""
    k, n = np.mgrid[:_BLOCK, :_BLOCK]
    rows: NDArray[np.float32] = np.cos(np.pi * (2 * n + 1) * k / (2 * _BLOCK)).astype(np.float32)
    rows[0] *= np.sqrt(0.5)
    return rows * np.float32(np.sqrt(2 / _BLOCK))


def _halve(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of each 2x2 square; every other one is rounded up a quarter less, as libjpeg does."""
    height, width = plane.shape
    total = plane.reshape(height // 2, 2, width // 2, 2).sum(axis=(1, 3))
    halved: NDArray[np.float32] = np.floor((total + (1 + np.arange(width // 2, dtype=np.float32) % 2)) / 4)
    return halved


def _double(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return *plane* twice as large: a new pixel is 3/4 of the nearest old one and 1/4 of the next, on both sides."""
    above, below = _three_and_one(plane)
    rows = np.stack([above, below], axis=1).reshape(-1, plane.shape[1])
    left, right = _three_and_one(rows.T)
    columns = np.stack([left + 8, right + 7], axis=1).reshape(-1, rows.shape[0])
    doubled: NDArray[np.float32] = np.floor(columns.T / 16)
    return doubled


def _three_and_one(lines: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return three times each line plus the one before it, and plus the one after it."""
    padded = np.pad(lines, ((1, 1), (0, 0)), mode="edge")
    return 3 * lines + padded[:-2], 3 * lines + padded[2:]
