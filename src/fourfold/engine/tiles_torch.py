"""A network that makes pictures of pictures, by torch: on a GPU several tiles a step.

float16 where the job is 8 bit and no float32 is asked for. A job that comes when the compiled kernels are there is
computed by them, from its first tile to its last; one that came before by eager ones.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final

import numpy as np
import torch

from fourfold.engine.admission import check_image, halved, plan_job, window_of
from fourfold.engine.base import SCALE, EngineCard, EngineEvent, EngineJob, Pixels8or16, Precision, RegionDone
from fourfold.engine.compiling import note_kernels
from fourfold.engine.full_memory import is_out_of_memory
from fourfold.engine.halving import Computation, Computer, in_parts
from fourfold.engine.settings import EngineSettings
from fourfold.engine.tiles_kernels import Kind, RunsPictures, TileKernels
from fourfold.engine.tiling import Tile
from fourfold.engine.turns import Turns
from fourfold.errors import OutOfMemoryError

STEP_PIXELS: Final = 512 * 512
"""Input pixels of the tiles of one step; a GPU is full long before, and a cancellation should not wait longer."""


class TorchTilesEngine:
    """One network on one device. Prompt, seed and steps change nothing."""

    def __init__(
        self,
        card: EngineCard,
        *,
        settings: EngineSettings,
        make_network: Callable[[torch.dtype], RunsPictures],
        has_half: bool = True,
    ) -> None:
        """Load nothing yet: the weights of a number type come with the first job that needs them.

        Args:
            card: of the network, with its memory on this device.
            make_network: makes it in a number type.
            has_half: whether it computes in float16.
        """
        self._settings = settings
        self._device = torch.device(settings.device)
        self._has_half = has_half
        self._card = card
        if self._device.type == "cpu":
            torch.set_num_threads(settings.threads)
        self._turns = Turns()
        self._kernels = TileKernels(make_network, device=self._device, backend=settings.compiler)

    @property
    def card(self) -> EngineCard:
        """The card of the model this engine runs."""
        return self._card

    @property
    def busy(self) -> bool:
        """Whether a job is admitted and unfinished."""
        return self._turns.busy

    def admit(self, job: EngineJob) -> None:
        """Take *job*; see `UpscaleEngine.admit`."""
        check_image(job.image)
        height, width = job.image.shape[:2]
        dtype = self._dtype(job)
        tiles, notes = plan_job(self._card, width, height, budget_bytes=self._settings.memory_budget_bytes)
        size = self._tiles_a_step(tiles[0])
        batches = [tiles[start : start + size] for start in range(0, len(tiles), size)]

        def kind_of(batch: Sequence[Tile]) -> Kind:
            return Kind(dtype, job.image.dtype.itemsize * 8, is_batch=len(batch) > 1)

        is_compiled = self._kernels.are_compiled({kind_of(batch) for batch in batches})
        notes = {"precision": str(dtype).removeprefix("torch."), **notes}

        def compute(batch: Sequence[Tile]) -> Computation:
            regions, by_compiled = self._compute(job, batch, kind_of(batch), compiled=is_compiled)
            note_kernels(notes, is_compiled=by_compiled)
            return regions
            yield  # one step, so that nothing is yielded between two

        computer = Computer(
            compute=compute,
            smaller=self._smaller,
            pixels=lambda batch: sum(tile.window.width * tile.window.height for tile in batch),
            give_back=self._give_back,
        )
        work = in_parts(job.job_id, batches, computer, steps=1, notes=notes)
        self._turns.admit(job.job_id, work, total=len(batches), notes=notes)

    def step(self) -> Sequence[EngineEvent]:
        """Compute some tiles of the job whose turn it is."""
        return [*self._turns.step(), *self._kernels.remarks()]

    def cancel(self, job_id: str) -> None:
        """Forget the job, after the tiles that run just now. May come from any thread."""
        self._turns.cancel(job_id)

    def close(self) -> None:
        """Free the model's memory. Unfinished jobs are forgotten."""
        self._turns.clear()
        self._kernels.close()
        self._give_back()

    def _dtype(self, job: EngineJob) -> torch.dtype:
        is_auto = job.precision is Precision.AUTO and self._settings.precision is Precision.AUTO
        is_half = is_auto and self._has_half and self._device.type != "cpu" and job.image.dtype.itemsize == 1
        return torch.float16 if is_half else torch.float32

    def _tiles_a_step(self, tile: Tile) -> int:
        pixels = tile.window.width * tile.window.height
        budget = self._settings.memory_budget_bytes
        most = STEP_PIXELS if budget is None else min(STEP_PIXELS, self._card.tile_pixels_within(budget))
        return max(1, most // pixels)

    def _compute(
        self, job: EngineJob, tiles: Sequence[Tile], kind: Kind, *, compiled: bool
    ) -> tuple[list[RegionDone], bool]:
        """Return the regions that *tiles* keep, and whether compiled kernels made them."""
        try:
            self._kernels.load(kind.dtype)
            with torch.inference_mode(), _exact_float32():
                pixels, is_compiled = self._upscale(job.image, tiles, kind, compiled=compiled)
        except (RuntimeError, MemoryError) as exc:
            if not is_out_of_memory(exc):
                raise
            raise OutOfMemoryError("the device has no memory left for a tile; lower worker.memory_bytes") from exc
        regions = [
            RegionDone(job.job_id, tile.core.left * SCALE, tile.core.top * SCALE, made)
            for tile, made in zip(tiles, pixels, strict=True)
        ]
        return regions, is_compiled

    def _smaller(self, tiles: Sequence[Tile]) -> Sequence[Sequence[Tile]]:
        """Half as many tiles at once, then halves of a tile."""
        if len(tiles) > 1:
            return [tiles[: len(tiles) // 2], tiles[len(tiles) // 2 :]]
        return [[tile] for tile in halved(self._card, tiles[0])]

    def _give_back(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _upscale(
        self, image: Pixels8or16, tiles: Sequence[Tile], kind: Kind, *, compiled: bool
    ) -> tuple[list[Pixels8or16], bool]:
        """Return the cores of *tiles*, enlarged, and whether compiled kernels made them."""
        seen = [window_of(image, tile, min_side_px=self._card.size_rules.min_side_px) for tile in tiles]
        windows = np.stack([pixels for pixels, _ in seen])
        # torch computes little with uint16: 16 bits cross the bus as float32.
        sent = torch.from_numpy(windows if kind.bits == 8 else windows.astype(np.float32)).to(self._device)
        made, is_compiled = self._kernels.run(kind, sent, compiled=compiled)
        received = torch.empty(made.shape, dtype=made.dtype, pin_memory=self._device.type == "cuda")
        whole = received.copy_(made).numpy()
        pixels = [
            large[keep.top * SCALE : keep.bottom * SCALE, keep.left * SCALE : keep.right * SCALE].astype(image.dtype)
            for large, (_, keep) in zip(whole, seen, strict=True)
        ]
        return pixels, is_compiled


def _exact_float32() -> AbstractContextManager[None]:
    """Keep cuDNN from computing float32 with 10 bits, as it does by default; float16 is not touched."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=False, allow_tf32=False
    )
    return flags
