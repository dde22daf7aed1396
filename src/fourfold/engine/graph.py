"""Build an OpenVINO model in memory from the layers of a network."""

from collections.abc import Sequence

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from fourfold.engine.ncnn_files import (
    Concat,
    Convolution,
    Copy,
    Input,
    Layer,
    NearestUpscale,
    PixelShuffle,
    PRelu,
    WeightedSum,
)


def build_model(layers: Sequence[Layer], *, name: str) -> ov.Model:
    """Return the model: ``float32[1, 3, h, w]`` in 0..1 to ``float32[1, 3, 4h, 4w]``, any h and w."""
    blob_to_node: dict[str, ov.Output] = {}
    parameters = []
    for layer in layers:
        sources = [blob_to_node[blob] for blob in layer.inputs]
        match layer:
            case Input():
                node = ops.parameter([1, 3, -1, -1], np.float32, name=layer.outputs[0])
                parameters.append(node)
            case Copy():
                node = sources[0]
            case Convolution():
                node = _convolution(sources[0], layer)
            case PRelu():
                node = ops.prelu(sources[0], layer.slopes)
            case WeightedSum():
                node = _weighted_sum(sources, layer.coefficients)
            case Concat():
                node = ops.concat(sources, 1)
            case NearestUpscale():
                f = float(layer.factor)
                node = ops.interpolate(
                    sources[0],
                    np.array([f, f], np.float32),
                    "nearest",
                    "scales",
                    axes=np.array([2, 3]),
                    coordinate_transformation_mode="asymmetric",
                    nearest_mode="floor",
                )
            case PixelShuffle():
                node = ops.depth_to_space(sources[0], "depth_first", layer.factor)
        out = node if isinstance(node, ov.Output) else node.output(0)
        for blob in layer.outputs:
            blob_to_node[blob] = out
    return ov.Model([blob_to_node[layers[-1].outputs[0]]], parameters, name)


def _convolution(source, layer):
    pad = layer.weights.shape[2] // 2
    node = ops.convolution(source, layer.weights, [1, 1], [pad, pad], [pad, pad], [1, 1])
    node = ops.add(node, layer.bias.reshape(1, -1, 1, 1))
    if layer.leaky_slope is not None:
        node = ops.prelu(node, np.array([layer.leaky_slope], np.float32))
    return node


def _weighted_sum(sources, coefs):
    terms = [s if c == 1.0 else ops.multiply(s, np.float32(c)) for s, c in zip(sources, coefs)]
    node = terms[0]
    for t in terms[1:]:
        node = ops.add(node, t)
    return node
