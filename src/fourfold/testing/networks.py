"""Embedded networks as files of the kind that other programs write: for tests of networks of one's own."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fourfold.engine import registry
from fourfold.engine.ncnn_files import Convolution, PRelu, read_network
from fourfold.engine.networks import LocalNetwork
from fourfold.engine.weights import read_weights


def write_compact(path: Path, model_id: str = "fourfold/realesr-animevideov3") -> LocalNetwork:
    """Write an embedded SRVGG network under Real-ESRGAN's own names: ``body.N`` in the order of its layers."""
    return save(path, {f"body.{n}.{name}": tensor for n, name, tensor in _tensors(model_id)})


def write_esrgan(path: Path, model_id: str = "fourfold/realesrgan-x4plus-anime") -> LocalNetwork:
    """Write an embedded RRDB network under Real-ESRGAN's own names."""
    tensors = list(_tensors(model_id))
    count = tensors[-1][0] + 1
    blocks = (count - 6) // 15
    names = ["conv_first"]
    names += [f"body.{b}.rdb{r}.conv{c}" for b in range(blocks) for r in (1, 2, 3) for c in range(1, 6)]
    names += ["conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    return save(path, {f"{names[n]}.{name}": tensor for n, name, tensor in tensors})


def save(path: Path, tensors: dict[str, Any]) -> LocalNetwork:
    """Write *tensors*, and pin them."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return LocalNetwork(path, hashlib.sha256(path.read_bytes()).hexdigest())


def _tensors(model_id: str) -> Iterator[tuple[int, str, torch.Tensor]]:
    """Yield the layer's number, the tensor's name and the tensor, for each layer that has weights."""
    network = read_network(*(read_weights(file) for file in registry.card(model_id).weights))
    layers = [layer for layer in network if isinstance(layer, Convolution | PRelu)]
    for number, layer in enumerate(layers):
        if isinstance(layer, PRelu):
            yield number, "weight", torch.from_numpy(np.array(layer.slopes))
        else:
            yield number, "weight", torch.from_numpy(np.array(layer.weights, np.float32))
            yield number, "bias", torch.from_numpy(np.array(layer.bias, np.float32))
