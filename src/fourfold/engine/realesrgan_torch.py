"""The Real-ESRGAN family on a GPU, by torch, from the same weight files as the CPU's engine; several tiles a step.

float16 where the job is 8 bit and no float32 is asked for. In float32 the picture equals the CPU engine's within one
level of 8 bits: the sums are the same, their order is not. float16 is within one level of that, too, on a photo (72 to
77 dB, computed on a CPU; a GPU adds in another order). Kernels are eager: windows have a size for each picture's, so
that compiled ones would be made anew for each.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch.nn import functional

from fourfold.engine.admission import check_image, halved, plan_job, window_of
from fourfold.engine.base import SCALE, EngineCard, EngineEvent, EngineJob, Pixels8or16, Precision, RegionDone
from fourfold.engine.halving import Computation, Computer, in_parts
from fourfold.engine.ncnn_files import (
    Concat,
    Convolution,
    Layer,
    NearestUpscale,
    PixelShuffle,
    PRelu,
    WeightedSum,
    read_network,
)
from fourfold.engine.pieces import Network, join
from fourfold.engine.settings import EngineSettings
from fourfold.engine.tiling import Tile
from fourfold.engine.turns import Turns
from fourfold.engine.weights import read_weights
from fourfold.errors import OutOfMemoryError

BYTES_PER_PIXEL: Final = 12_500
"""float32 memory per input pixel: three maps of 64 channels at the output's size."""

STEP_PIXELS: Final = 512 * 512
"""Input pixels of the tiles of one step; a GPU is full long before, and a cancellation should not wait longer."""

_Op = Callable[..., torch.Tensor]


class TorchNetwork:
    """One network's weights in one number type on one device."""

    def __init__(self, network: Network, *, device: torch.device, dtype: torch.dtype) -> None:
        self._network = network
        self._device = device
        self._dtype = dtype
        self._layers = [(layer, self._op(layer)) for layer in network.layers]
        self._last_use = {blob: i for i, (layer, _) in enumerate(self._layers) for blob in layer.inputs}

    def run(self, picture: torch.Tensor) -> torch.Tensor:
        """Return ``[n, 3, 4 h, 4 w]`` float32 in 0 .. 1 of ``[n, 3, h, w]`` in 0 .. 1."""
        alive = {self._network.picture: picture.to(self._device, self._dtype)}
        if self._device.type != "cpu":
            first = alive[self._network.picture]
            alive[self._network.picture] = first.contiguous(memory_format=torch.channels_last)
        made = alive[self._network.picture]
        for i, (layer, op) in enumerate(self._layers):
            made = alive[layer.outputs[0]] = op(*(alive[blob] for blob in layer.inputs))
            for blob in layer.inputs:
                if self._last_use[blob] == i:
                    alive.pop(blob, None)
        return made.float().clamp(0, 1)

    def _op(self, layer: Layer) -> _Op:
        """Return what computes *layer*, its weights on the device."""
        match layer:
            case Convolution():
                return self._convolution(layer)
            case PRelu():
                slopes = self._tensor(layer.slopes)
                return lambda x: functional.prelu(x, slopes)
            case WeightedSum():
                return lambda *sources: _weighted_sum(sources, layer.coefficients)
            case Concat():
                return lambda *sources: torch.cat(sources, dim=1)
            case NearestUpscale():
                return lambda x: functional.interpolate(x, scale_factor=float(layer.factor), mode="nearest")
            case PixelShuffle():
                return lambda x: functional.pixel_shuffle(x, layer.factor)
        raise AssertionError(f"a network holds no {type(layer).__name__}")

    def _convolution(self, layer: Convolution) -> _Op:
        weight, bias = self._tensor(layer.weights), self._tensor(layer.bias)
        padding, slope = layer.weights.shape[2] // 2, layer.leaky_slope
        if self._device.type != "cpu":
            weight = weight.contiguous(memory_format=torch.channels_last)

        def convolve(x: torch.Tensor) -> torch.Tensor:
            made = functional.conv2d(x, weight, bias, padding=padding)
            return made if slope is None else functional.leaky_relu_(made, slope)

        return convolve

    def _tensor(self, array: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(self._device, self._dtype)


class RunsPictures(Protocol):
    """A network on its device in one number type."""

    def run(self, picture: torch.Tensor) -> torch.Tensor:
        """Return ``[n, 3, 4 h, 4 w]`` float32 in 0 .. 1 of ``[n, 3, h, w]`` in 0 .. 1."""


class TorchRealEsrganEngine:
    """One network of the family, or another that makes pictures of pictures. Prompt, seed and steps change nothing."""

    def __init__(
        self,
        card: EngineCard,
        *,
        settings: EngineSettings,
        make_network: Callable[[torch.dtype], RunsPictures] | None = None,
        has_half: bool = True,
    ) -> None:
        """Load the weights; those of the other number type come with the first job that needs them.

        Args:
            make_network: makes a network that is not of the family, in a number type; *card* has its memory.
            has_half: whether the network computes in float16.

        Raises:
            ModelUnavailableError: the weights are missing, damaged, or not such a network.
        """
        self._settings = settings
        self._device = torch.device(settings.device)
        self._has_half = has_half
        self._card = card
        if self._device.type == "cpu":
            torch.set_num_threads(settings.threads)
        self._turns = Turns()
        if make_network is None:
            self._card = replace(card, bytes_per_input_pixel=BYTES_PER_PIXEL)
            param, weights = (read_weights(file) for file in card.weights)
            network = join(read_network(param, weights))
            make_network = lambda dtype: TorchNetwork(network, device=self._device, dtype=dtype)  # noqa: E731
        self._make_network = make_network
        self._dtype_to_network: dict[torch.dtype, RunsPictures] = {}

    @property
    def card(self) -> EngineCard:
        """The card of the model this engine runs, with this runtime's memory."""
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
        notes = {"precision": str(dtype).removeprefix("torch."), **notes}
        computer = Computer(
            compute=lambda batch: self._compute(job, batch, dtype),
            smaller=self._smaller,
            pixels=lambda batch: sum(tile.window.width * tile.window.height for tile in batch),
            give_back=self._give_back,
        )
        work = in_parts(job.job_id, batches, computer, steps=1, notes=notes)
        self._turns.admit(job.job_id, work, total=len(batches), notes=notes)

    def step(self) -> Sequence[EngineEvent]:
        """Compute some tiles of the job whose turn it is."""
        return self._turns.step()

    def cancel(self, job_id: str) -> None:
        """Forget the job, after the tiles that run just now. May come from any thread."""
        self._turns.cancel(job_id)

    def close(self) -> None:
        """Free the model's memory. Unfinished jobs are forgotten."""
        self._turns.clear()
        self._dtype_to_network.clear()
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

    def _compute(self, job: EngineJob, tiles: Sequence[Tile], dtype: torch.dtype) -> Computation:
        try:
            if dtype not in self._dtype_to_network:
                self._dtype_to_network[dtype] = self._make_network(dtype)
            with torch.inference_mode(), _exact_float32():
                pixels = self._upscale(job.image, tiles, self._dtype_to_network[dtype])
        except torch.OutOfMemoryError as exc:
            raise OutOfMemoryError("the GPU has no memory left for a tile; lower worker.memory_bytes") from exc
        return [
            RegionDone(job.job_id, tile.core.left * SCALE, tile.core.top * SCALE, made)
            for tile, made in zip(tiles, pixels, strict=True)
        ]
        yield  # one step, so that nothing is yielded between two

    def _smaller(self, tiles: Sequence[Tile]) -> Sequence[Sequence[Tile]]:
        """Half as many tiles at once, then halves of a tile."""
        if len(tiles) > 1:
            return [tiles[: len(tiles) // 2], tiles[len(tiles) // 2 :]]
        return [[tile] for tile in halved(self._card, tiles[0])]

    def _give_back(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _upscale(self, image: Pixels8or16, tiles: Sequence[Tile], network: RunsPictures) -> list[Pixels8or16]:
        """Return the cores of *tiles*, enlarged."""
        peak = np.float32(np.iinfo(image.dtype).max)
        seen = [window_of(image, tile, min_side_px=self._card.size_rules.min_side_px) for tile in tiles]
        windows = np.stack([pixels for pixels, _ in seen])
        made = network.run(torch.from_numpy(windows.astype(np.float32) / peak).permute(0, 3, 1, 2))
        whole = (made * float(peak)).round().permute(0, 2, 3, 1).cpu().numpy()
        return [
            large[keep.top * SCALE : keep.bottom * SCALE, keep.left * SCALE : keep.right * SCALE].astype(image.dtype)
            for large, (_, keep) in zip(whole, seen, strict=True)
        ]


def _weighted_sum(sources: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    total = sources[0] if coefficients[0] == 1.0 else sources[0] * coefficients[0]
    for source, factor in zip(sources[1:], coefficients[1:], strict=True):
        total = torch.add(total, source, alpha=factor)
    return total


def _exact_float32() -> AbstractContextManager[None]:
    """Keep cuDNN from computing float32 with 10 bits, as it does by default; float16 is not touched."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=False, allow_tf32=False
    )
    return flags
