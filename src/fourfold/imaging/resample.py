"""Enlarging by four on arrays: the grid that all models share, with whatever kernel."""

from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SCALE: Final = 4
REACH: Final = 3
"""Input pixels on each side that an output pixel may see."""


def enlarge(block: Floats, weights: Floats) -> Floats:
    """Return samples ``[..., h + 6, w]`` as ``[..., 4 h, 4 w]``, by *weights* ``[4, 7]``.

    Rows beyond come with *block*, columns beyond are repeated.
    """
    *_, height, width = block.shape
    padded = np.pad(block, (*((0, 0),) * (block.ndim - 1), (REACH, REACH)), mode="edge")
    wide = np.empty((*block.shape, SCALE), np.float32)
    for phase in range(SCALE):
        total = wide[..., phase]
        total[:] = 0
        for offset in range(2 * REACH + 1):
            if weights[phase, offset]:
                total += padded[..., offset : offset + width] * weights[phase, offset]
    wide = wide.reshape(*block.shape[:-1], width * SCALE)
    # Rows second, and as a product of matrices: adding them up one by one takes three times as long.
    around = sliding_window_view(wide, 2 * REACH + 1, axis=-2).swapaxes(-2, -1)
    tall: Floats = np.matmul(weights, around)
    return tall.reshape(*block.shape[:-2], (height - 2 * REACH) * SCALE, width * SCALE)


def lanczos_weights() -> Floats:
    """Return ``[4, 7]``: for each of an input pixel's four output pixels the weights of the 7 around it; sum 1.

    Source: Duchon (1979); the same as the Lanczos engine's.
    """
    distance = _distances()
    return _normalised(np.where(np.abs(distance) < REACH, np.sinc(distance) * np.sinc(distance / REACH), 0.0))


def cubic_weights() -> Floats:
    """Return the same for bicubic interpolation. Source: Keys (1981), a = -1/2."""
    d = np.abs(_distances())
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return _normalised(np.where(d <= 1, near, np.where(d < 2, far, 0.0)))


def _distances() -> NDArray[np.float64]:
    phases = (np.arange(SCALE)[:, None] + 0.5) / SCALE - 0.5
    return np.arange(-REACH, REACH + 1)[None] - phases


def _normalised(weights: NDArray[np.float64]) -> Floats:
    normalised: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised
