"""Lanczos-3 interpolation, four times: no network, exact, and fast enough for sizes that no network reaches.

An output pixel is a weighted mean of 6 x 6 input pixels; beyond the picture its edge is repeated. The four output
pixels of an input pixel lie at fixed places in it, so there are four sets of six weights and no more. Each output pixel
is made by the same float32 operations in the same order whatever the tile, so a tiled picture equals a whole one bit by
bit. (Matrix products would be faster, but promise no order.)
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from fourfold.engine.admission import check_image, halved, plan_job
from fourfold.engine.base import SCALE, EngineCard, EngineEvent, EngineJob, Pixels8or16, RegionDone
from fourfold.engine.halving import Computation, Computer, in_parts
from fourfold.engine.settings import EngineSettings
from fourfold.engine.tiling import Box, Tile
from fourfold.engine.turns import Turns

LOBES: Final = 3
"""Input pixels on each side that an output pixel can see."""

_CHUNK_BYTES: Final = 256 * 1024
"""What one thread works on at once. Measured: half of it is 10 % slower by more calls, four times by cache misses."""


class LanczosEngine:
    """Interpolates tile by tile, each tile on all threads."""

    def __init__(self, card: EngineCard, *, settings: EngineSettings) -> None:
        """Start the threads."""
        self._card = card
        self._settings = settings
        self._turns = Turns()
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="lanczos")

    @property
    def card(self) -> EngineCard:
        """The card of the model this engine runs."""
        return self._card

    @property
    def busy(self) -> bool:
        """Whether a job is admitted and unfinished."""
        return self._turns.busy

    def admit(self, job: EngineJob) -> None:
        """Take *job*; see `UpscaleEngine.admit`. Its prompt, seed, steps and precision change nothing."""
        check_image(job.image)
        height, width = job.image.shape[:2]
        tiles, notes = plan_job(self._card, width, height, budget_bytes=self._settings.memory_budget_bytes)
        notes = {"precision": "float32", **notes}
        computer = Computer(
            compute=lambda tile: self._compute(job, tile),
            smaller=lambda tile: halved(self._card, tile),
            pixels=lambda tile: tile.window.width * tile.window.height,
        )
        work = in_parts(job.job_id, tiles, computer, steps=1, notes=notes)
        self._turns.admit(job.job_id, work, total=len(tiles), notes=notes)

    def step(self) -> Sequence[EngineEvent]:
        """Interpolate one tile of the job whose turn it is."""
        return self._turns.step()

    def cancel(self, job_id: str) -> None:
        """Forget the job, after the tile that runs just now: some 10 ms. May come from any thread."""
        self._turns.cancel(job_id)

    def close(self) -> None:
        """End the threads. Unfinished jobs are forgotten."""
        self._turns.clear()
        self._threads.shutdown()

    def _compute(self, job: EngineJob, tile: Tile) -> Computation:
        core = tile.core
        parts = min(self._settings.threads, core.height)
        edges = [core.top + core.height * i // parts for i in range(parts + 1)]
        bands = [Box(core.left, top, core.right, bottom) for top, bottom in pairwise(edges)]
        done = np.empty((core.height * SCALE, core.width * SCALE, 3), job.image.dtype)
        into = [done[(band.top - core.top) * SCALE : (band.bottom - core.top) * SCALE] for band in bands]
        list(self._threads.map(upscale, (read_around(job.image, band) for band in bands), into))
        return [RegionDone(job.job_id, core.left * SCALE, core.top * SCALE, done)]
        yield  # one step, so that nothing is yielded between two


def read_around(image: Pixels8or16, box: Box) -> Pixels8or16:
    """Return *box* of *image* with 3 more pixels on each side; beyond the image its edge is repeated."""
    height, width = image.shape[:2]
    seen = image[
        max(0, box.top - LOBES) : min(height, box.bottom + LOBES),
        max(0, box.left - LOBES) : min(width, box.right + LOBES),
    ]
    rows = max(0, LOBES - box.top), max(0, box.bottom + LOBES - height)
    columns = max(0, LOBES - box.left), max(0, box.right + LOBES - width)
    return cast(Pixels8or16, np.pad(seen, (rows, columns, (0, 0)), mode="edge"))


def upscale(region: Pixels8or16, into: Pixels8or16) -> None:
    """Fill *into* ``[4h, 4w, 3]`` from *region* ``[h + 6, w + 6, 3]`` of the same type, rounding half to even."""
    peak = np.float32(np.iinfo(region.dtype).max)
    columns = region.transpose(1, 0, 2).astype(np.float32, order="C")  # [w + 6, h + 6, 3]
    wide = np.empty((into.shape[1], *columns.shape[1:]), np.float32)
    _stretch(columns, lambda index, made: wide.__setitem__(index, made))
    rows = np.ascontiguousarray(wide.transpose(1, 0, 2))  # [h + 6, 4w, 3]

    def store(index: slice, made: NDArray[np.float32]) -> None:
        np.rint(made, out=made)
        np.clip(made, 0, peak, out=made)
        np.copyto(into[index], made, casting="unsafe")

    _stretch(rows, store)


def _stretch(lines: NDArray[np.float32], store: Callable[[slice, NDArray[np.float32]], Any]) -> None:
    """Make four lines of each of *lines* ``[n + 6, ...]`` but the margins; *store* takes them, some at a time."""
    count = len(lines) - 2 * LOBES
    chunk = max(1, min(count, _CHUNK_BYTES // lines[0].nbytes))
    total, term = np.empty((2, chunk, *lines.shape[1:]), np.float32)
    for start in range(0, count, chunk):
        n = min(chunk, count - start)
        for phase, weights in enumerate(_WEIGHTS):
            for i, (offset, weight) in enumerate(weights):
                np.multiply(lines[start + offset : start + offset + n], weight, out=term[:n] if i else total[:n])
                if i:
                    np.add(total[:n], term[:n], out=total[:n])
            store(slice(start * SCALE + phase, (start + n) * SCALE, SCALE), total[:n])


def _weights() -> tuple[tuple[tuple[int, np.float32], ...], ...]:
    """Return, for each of the four output pixels of an input pixel, the (offset from 3 before it, weight) pairs.

    Source: Duchon (1979), ``sinc(x) sinc(x / 3)``; the six are divided by their sum, so that a flat picture stays flat.
    """
    phases = []
    for phase in range(SCALE):
        distance = np.arange(-LOBES, LOBES + 1) - ((phase + 0.5) / SCALE - 0.5)
        weights = np.where(np.abs(distance) < LOBES, np.sinc(distance) * np.sinc(distance / LOBES), 0.0)
        weights = (weights / weights.sum()).astype(np.float32)
        phases.append(tuple((offset, weight) for offset, weight in enumerate(weights) if weight != 0))
    return tuple(phases)


_WEIGHTS: Final = _weights()
