"""Lanczos-3 interpolation, four times: the plain reference, and the engine for tests at sizes no network reaches."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fourfold.engine.base import SCALE, EngineCard, EngineEvent, EngineJob, Pixels8or16, RegionDone
from fourfold.engine.checks import check_image
from fourfold.engine.settings import EngineSettings
from fourfold.engine.tiling import Tile, plan_tiles
from fourfold.engine.turns import Turns, Work

LOBES: Final = 3


class LanczosEngine:
    """Interpolates tile by tile."""

    def __init__(self, card: EngineCard, *, settings: EngineSettings) -> None:
        self._card = card
        self._settings = settings
        self._turns = Turns()

    @property
    def card(self) -> EngineCard:
        return self._card

    @property
    def busy(self) -> bool:
        return self._turns.busy

    def admit(self, job: EngineJob) -> None:
        check_image(job.image)
        height, width = job.image.shape[:2]
        tiles = plan_tiles(width, height, margin_px=0, max_tile_pixels=512 * 512, min_core_px=64)
        assert tiles is not None
        self._turns.admit(
            job.job_id, _work(job, tiles), total=len(tiles), notes={"precision": "float32", "tiles": len(tiles)}
        )

    def step(self) -> Sequence[EngineEvent]:
        return self._turns.step()

    def cancel(self, job_id: str) -> None:
        self._turns.cancel(job_id)

    def close(self) -> None:
        self._turns = Turns()


def _phases() -> NDArray[np.float32]:
    """Return ``[4, 7]``: the weight of the pixels -3..3 for each of the four output pixels of one input pixel."""
    at = (np.arange(SCALE) + 0.5) / SCALE - 0.5
    distance = np.arange(-LOBES, LOBES + 1)[None, :] - at[:, None]
    weights = np.where(np.abs(distance) < LOBES, np.sinc(distance) * np.sinc(distance / LOBES), 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _work(job: EngineJob, tiles: Sequence[Tile]) -> Work:
    for tile in tiles:
        box = tile.core
        rows = np.clip(np.arange(box.top - LOBES, box.bottom + LOBES), 0, job.image.shape[0] - 1)
        columns = np.clip(np.arange(box.left - LOBES, box.right + LOBES), 0, job.image.shape[1] - 1)
        region = job.image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        region = region[rows - rows[0]][:, columns - columns[0]]
        yield [RegionDone(job.job_id, box.left * SCALE, box.top * SCALE, upscale(region))]


def upscale(region: Pixels8or16) -> Pixels8or16:
    """Return the region without its margin, four times as large."""
    wide = _stretch(np.ascontiguousarray(region.transpose(1, 0, 2), dtype=np.float32))
    tall = _stretch(np.ascontiguousarray(wide.transpose(1, 0, 2)))
    top = np.iinfo(region.dtype).max
    return np.rint(np.clip(tall, 0, top)).astype(region.dtype)


def _stretch(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return *rows* ``[n + 6, ...]`` four times as many, without the margin: ``[4n, ...]``."""
    n = rows.shape[0] - 2 * LOBES
    out = np.zeros((n, SCALE, *rows.shape[1:]), np.float32)
    for phase, taps in enumerate(_phases()):
        for offset, weight in enumerate(taps):
            if weight:
                out[:, phase] += weight * rows[offset : offset + n]
    return out.reshape(SCALE * n, *rows.shape[1:])
