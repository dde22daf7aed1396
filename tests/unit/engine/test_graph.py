"""Networks as OpenVINO models."""

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import pytest

from fourfold.engine.graph import ANY_SIZE, PEAK, build_model
from fourfold.engine.ncnn_files import Input, read_network
from fourfold.engine.pieces import Piece, join

FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


@pytest.mark.parametrize("size", [ANY_SIZE, (6, 9)])
def test_a_model_computes_what_the_layers_say(
    network_files: tuple[bytes, bytes], compute: Callable[..., Any], size: tuple[int, int]
) -> None:
    """The same as the layers' definitions in float64, clipped and in whole levels; open or fixed sizes."""
    layers = read_network(*network_files)
    network = join(layers)
    picture = np.random.default_rng(1).random((3, 6, 9))
    model = build_model(network.whole(), size=size, is_last=True)
    inputs = {network.picture: picture[None].astype(np.float32), PEAK: np.array([65535], np.float32)}
    (made,) = ov.Core().compile_model(model, "CPU", FLOAT32)(inputs).values()

    expected = np.clip(compute(layers, picture), 0, 1) * 65535
    assert np.mean((expected > 0) & (expected < 65535)) > 0.2  # the picture is not all black and white
    assert np.array_equal(made, np.rint(made))
    assert np.abs(made[0] - expected).max() <= 0.5 + 65535 * 1e-5  # float32 against float64


def test_a_piece_in_the_middle_hands_on_its_blobs_as_they_are(
    rrdb_files: tuple[bytes, bytes], compute: Callable[..., Any]
) -> None:
    """No scaling, no clipping, no rounding between pieces."""
    layers = read_network(*rrdb_files)
    network = join(layers)
    (first, _), _ = network.cut(2)
    picture = np.random.default_rng(1).random((3, 5, 4))
    model = build_model(first, is_last=False)
    made = ov.Core().compile_model(model, "CPU", FLOAT32)({network.picture: picture[None].astype(np.float32)})

    assert len(first.leaving) == 2
    for blob, array in zip(first.leaving, made.values(), strict=True):
        upto = next(i for i, layer in enumerate(layers) if blob in layer.outputs)
        assert np.abs(array[0] - compute(layers[: upto + 1], picture)).max() < 1e-5


def test_only_layers_of_pieces_become_nodes() -> None:
    """Input and Copy are resolved before."""
    with pytest.raises(AssertionError, match="a piece holds no Input"):
        build_model(Piece((Input(("a",)),), {}, ("a",)), is_last=False)
