"""An engine that computes nothing: it answers with a picture that was made when it was loaded.

What is left of a job's time is the path around the engine; ``bench/path_overhead.py`` measures it.
"""

from collections.abc import Sequence
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from fourfold.engine.admission import check_image
from fourfold.engine.base import SCALE, EngineCard, EngineEvent, EngineJob, Pixels8or16, RegionDone
from fourfold.engine.settings import EngineSettings
from fourfold.engine.turns import Turns, Work

_TILE_PX: Final = 256  #: input pixels; the size of the pieces in which real engines deliver


class ReplayEngine:
    """Delivers the upper left of one ready picture again and again."""

    def __init__(self, card: EngineCard, *, settings: EngineSettings) -> None:
        """Make the picture."""
        self._card = card
        self._turns = Turns()
        self._ready = ready_picture(_TILE_PX * SCALE)

    @property
    def card(self) -> EngineCard:
        """The card of the model this engine stands for."""
        return self._card

    @property
    def busy(self) -> bool:
        """Whether a job is admitted and unfinished."""
        return self._turns.busy

    def admit(self, job: EngineJob) -> None:
        """Take *job*; see `UpscaleEngine.admit`."""
        check_image(job.image)
        height, width = job.image.shape[:2]
        tiles = -(-width // _TILE_PX) * -(-height // _TILE_PX)
        self._turns.admit(job.job_id, self._work(job), total=tiles, notes={})

    def step(self) -> Sequence[EngineEvent]:
        """Deliver one tile."""
        return self._turns.step()

    def cancel(self, job_id: str) -> None:
        """Forget the job."""
        self._turns.cancel(job_id)

    def close(self) -> None:
        """Forget every job."""
        self._turns.clear()

    def _work(self, job: EngineJob) -> Work:
        height, width = job.image.shape[:2]
        for y in range(0, height, _TILE_PX):
            for x in range(0, width, _TILE_PX):
                tall, wide = min(_TILE_PX, height - y) * SCALE, min(_TILE_PX, width - x) * SCALE
                piece = cast(Pixels8or16, self._ready[:tall, :wide].astype(job.image.dtype))
                yield [RegionDone(job.job_id, x * SCALE, y * SCALE, piece)]


def ready_picture(side_px: int) -> NDArray[np.uint8]:
    """Return a square picture that compresses about as well as an upscaled photo does."""
    dice = np.random.default_rng(0)
    small = dice.normal(128, 40, (side_px // 16, side_px // 16, 3))
    smooth = np.repeat(np.repeat(small, 16, axis=0), 16, axis=1)
    for _ in range(3):
        for axis in (0, 1):
            smooth = (smooth + np.roll(smooth, 5, axis) + np.roll(smooth, -5, axis)) / 3
    return np.clip(smooth + dice.normal(0, 1.0, smooth.shape), 0, 255).astype(np.uint8)
