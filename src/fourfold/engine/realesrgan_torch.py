"""The Real-ESRGAN family on a GPU, by torch, from the same weight files as the CPU's engine.

In float32 the picture equals the CPU engine's within one level of 8 bits: the sums are the same, their order is not.
float16 is within one level of that, too, on a photo (72 to 77 dB, computed on a CPU; a GPU adds in another order).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional

from fourfold.engine.base import EngineCard, UpscaleEngine
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
from fourfold.engine.pieces import Network, Piece, join
from fourfold.engine.settings import EngineSettings
from fourfold.engine.tiles_kernels import Stage, run_stages
from fourfold.engine.tiles_torch import TorchTilesEngine
from fourfold.engine.weights import read_weights

BYTES_PER_PIXEL: Final = 12_500
"""float32 memory per input pixel: three maps of 64 channels at the output's size."""

_Op = Callable[..., torch.Tensor]


def load_realesrgan_engine(card: EngineCard, *, settings: EngineSettings) -> UpscaleEngine:
    """Load the network of this card.

    Raises: ModelUnavailableError: the weights are missing, damaged, or not such a network.
    """
    param, weights = (read_weights(file) for file in card.weights)
    network = join(read_network(param, weights))
    device = torch.device(settings.device)

    def make(dtype: torch.dtype) -> TorchNetwork:
        return TorchNetwork(network, device=device, dtype=dtype)

    engine: UpscaleEngine = TorchTilesEngine(
        replace(card, bytes_per_input_pixel=BYTES_PER_PIXEL), settings=settings, make_network=make
    )
    return engine


class TorchNetwork:
    """One network's weights in one number type on one device."""

    def __init__(self, network: Network, *, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self.stages = self._in_stages(network)

    def run(self, picture: torch.Tensor) -> torch.Tensor:
        """Return ``[n, 3, 4 h, 4 w]`` float32 in 0 .. 1 of ``[n, 3, h, w]`` in 0 .. 1."""
        return run_stages(self.stages, picture.to(self._device)).float().clamp(0, 1)

    def _in_stages(self, network: Network) -> tuple[Stage, ...]:
        pieces = network.by_blocks()
        last_use = {blob: i for i, piece in enumerate(pieces) for blob in piece.entering}
        functions: dict[tuple[object, ...], _Function] = {}
        return tuple(
            Stage(
                functions.setdefault(network.alike(piece), _Function(piece, self._dtype)),
                tuple(self._tensor(array) for layer in piece.layers for array in _weights_of(layer)),
                reads=tuple(piece.entering),
                makes=piece.leaving,
                drops=tuple(blob for blob in piece.entering if last_use[blob] == i),
            )
            for i, piece in enumerate(pieces)
        )

    def _tensor(self, array: Any) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(array)).to(self._device, self._dtype)
        is_filter = tensor.dim() == 4 and self._device.type != "cpu"
        return tensor.contiguous(memory_format=torch.channels_last) if is_filter else tensor


class _Function:
    """What the pieces that are alike compute, of what enters them and then their weights."""

    def __init__(self, piece: Piece, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._entering = tuple(piece.entering)
        self._leaving = piece.leaving
        last_use = {blob: i for i, layer in enumerate(piece.layers) for blob in layer.inputs}
        self._steps = tuple(
            (
                _op(layer),
                layer.inputs,
                layer.outputs[0],
                len(_weights_of(layer)),
                tuple({blob for blob in layer.inputs if last_use[blob] == i and blob not in piece.leaving}),
            )
            for i, layer in enumerate(piece.layers)
        )

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        at = len(self._entering)
        # The picture comes in float32; what other pieces made is as it should be.
        alive = {blob: self._given(tensor) for blob, tensor in zip(self._entering, tensors[:at], strict=True)}
        for op, inputs, output, weights, dead in self._steps:
            alive[output] = op(*(alive[blob] for blob in inputs), *tensors[at : at + weights])
            at += weights
            for blob in dead:
                del alive[blob]
        return tuple(alive[blob] for blob in self._leaving)

    def _given(self, tensor: torch.Tensor) -> torch.Tensor:
        given = tensor.to(self._dtype)
        return given if given.device.type == "cpu" else given.contiguous(memory_format=torch.channels_last)


def _weights_of(layer: Layer) -> tuple[Any, ...]:
    match layer:
        case Convolution():
            return layer.weights, layer.bias
        case PRelu():
            return (layer.slopes,)
    return ()


def _op(layer: Layer) -> _Op:
    """Return what computes *layer* of its inputs and then its weights."""
    match layer:
        case Convolution():
            return _convolution(layer.weights.shape[2] // 2, layer.leaky_slope)
        case PRelu():
            return lambda x, slopes: functional.prelu(x, slopes)
        case WeightedSum():
            return lambda *sources: _weighted_sum(sources, layer.coefficients)
        case Concat():
            return lambda *sources: torch.cat(sources, dim=1)
        case NearestUpscale():
            return lambda x: functional.interpolate(x, scale_factor=float(layer.factor), mode="nearest")
        case PixelShuffle():
            return lambda x: functional.pixel_shuffle(x, layer.factor)
    raise AssertionError(f"a network holds no {type(layer).__name__}")


def _convolution(padding: int, slope: float | None) -> _Op:
    def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        made = functional.conv2d(x, weight, bias, padding=padding)
        return made if slope is None else functional.leaky_relu_(made, slope)

    return convolve


def _weighted_sum(sources: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    total = sources[0] if coefficients[0] == 1.0 else sources[0] * coefficients[0]
    for source, factor in zip(sources[1:], coefficients[1:], strict=True):
        total = torch.add(total, source, alpha=factor)
    return total
