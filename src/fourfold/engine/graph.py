"""Build OpenVINO models in memory from the pieces of a network."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from fourfold.engine.ncnn_files import Concat, Convolution, Layer, NearestUpscale, PixelShuffle, PRelu, WeightedSum
from fourfold.engine.pieces import Piece

PEAK: Final = "peak"
"""The model's extra input where it ends the network: ``float32[1]``, the largest value of the wanted pixels."""

ANY_SIZE: Final = (-1, -1)
"""Height and width left open."""


def build_model(piece: Piece, *, size: tuple[int, int] = ANY_SIZE, is_last: bool) -> ov.Model:
    """Return the model of *piece*.

    Args:
        piece: its weights are not copied: they must live as long as the model.
        size: height and width of what enters, pixels.
        is_last: the piece ends the network: 0..1 is then scaled to 0..peak, clipped, and rounded half to even. Beside
            giving whole numbers this keeps the end in float32 under a bf16 hint: +1 dB, measured.

    Returns:
        A model with the entering blobs as inputs, each ``float32[1, c, h, w]``, by name; then `PEAK` if *is_last*.
        Outputs: the leaving blobs, in order.
    """
    parameters = {
        blob: ops.parameter([1, channels, *size], np.float32, name=blob) for blob, channels in piece.entering.items()
    }
    blob_to_node: dict[str, Any] = dict(parameters)
    for layer in piece.layers:
        blob_to_node[layer.outputs[0]] = _node(layer, [blob_to_node[blob] for blob in layer.inputs])
    results = [blob_to_node[blob] for blob in piece.leaving]
    if is_last:
        parameters[PEAK] = ops.parameter([1], np.float32, name=PEAK)
        unit = ops.clamp(results[0], 0.0, 1.0)
        results = [ops.round(ops.multiply(unit, parameters[PEAK]), "half_to_even")]
    for blob, node in parameters.items():
        node.output(0).set_names({blob})
    return ov.Model(results, list(parameters.values()))


def _node(layer: Layer, sources: Sequence[Any]) -> Any:
    """Return the OpenVINO node that computes *layer*."""
    match layer:
        case Convolution():
            return _convolution(layer, sources[0])
        case PRelu():
            return ops.prelu(sources[0], layer.slopes)
        case WeightedSum():
            return _weighted_sum(layer, sources)
        case Concat():
            return ops.concat(list(sources), axis=1)
        case NearestUpscale():
            factors = np.full(2, layer.factor, np.float32)
            return ops.interpolate(
                sources[0], factors, "nearest", "scales", axes=np.array([2, 3]),
                coordinate_transformation_mode="asymmetric", nearest_mode="floor",
            )  # fmt: skip
        case PixelShuffle():
            return ops.depth_to_space(sources[0], "depth_first", layer.factor)
    raise AssertionError(f"a piece holds no {type(layer).__name__}")


def _convolution(layer: Convolution, source: Any) -> Any:
    weights = ops.convert(ops.constant(layer.weights, shared_memory=True), "f32")
    pad = [layer.weights.shape[2] // 2] * 2
    node = ops.convolution(source, weights, strides=[1, 1], pads_begin=pad, pads_end=pad, dilations=[1, 1])
    node = ops.add(node, layer.bias.reshape(1, -1, 1, 1))
    return node if layer.leaky_slope is None else ops.prelu(node, np.array([layer.leaky_slope], np.float32))


def _weighted_sum(layer: WeightedSum, sources: Sequence[Any]) -> Any:
    terms = [
        source if factor == 1.0 else ops.multiply(source, np.float32(factor))
        for source, factor in zip(sources, layer.coefficients, strict=True)
    ]
    total = terms[0]
    for term in terms[1:]:
        total = ops.add(total, term)
    return total
