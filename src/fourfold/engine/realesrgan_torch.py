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
from fourfold.engine.pieces import Network, join
from fourfold.engine.settings import EngineSettings
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
        replace(card, bytes_per_input_pixel=BYTES_PER_PIXEL),
        settings=settings,
        make_network=make,
        compiler=settings.compiler,
    )
    return engine


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


def _weighted_sum(sources: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    total = sources[0] if coefficients[0] == 1.0 else sources[0] * coefficients[0]
    for source, factor in zip(sources[1:], coefficients[1:], strict=True):
        total = torch.add(total, source, alpha=factor)
    return total
