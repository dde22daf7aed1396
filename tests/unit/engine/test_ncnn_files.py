"""Reading ncnn's pair of files."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fourfold.engine.ncnn_files import Concat, Convolution, Input, NearestUpscale, PRelu, WeightedSum, read_network
from fourfold.errors import ModelUnavailableError


def test_the_layers_come_with_their_weights(rrdb_files: tuple[bytes, bytes]) -> None:
    """Kinds, blobs, options and shapes are as the text says."""
    layers = read_network(*rrdb_files)
    convolutions = [layer for layer in layers if isinstance(layer, Convolution)]

    assert isinstance(layers[0], Input)
    assert [c.weights.shape for c in convolutions[:3]] == [(8, 3, 3, 3), (4, 8, 3, 3), (8, 12, 3, 3)]
    assert [c.leaky_slope for c in convolutions[:3]] == [None, 0.2, None]
    assert [la.coefficients for la in layers if isinstance(la, WeightedSum)] == [(0.2, 1.0), (0.2, 1.0), (1.0, 1.0)]
    assert [layer.factor for layer in layers if isinstance(layer, NearestUpscale)] == [2, 2]
    assert next(layer.inputs for layer in layers if isinstance(layer, Concat)) == ("b0_1", "b0_a")


def test_float16_and_float32_weights_are_told_apart(files: Any) -> None:
    """Each blob of weights carries a flag; the padding after an odd number of float16 is skipped."""
    files.conv("data", "a", (3, 1), half=True)
    files.conv("a", "b", (1, 1), half=False)
    files.prelu("b", "c", 1)
    first, second, slopes = read_network(files.param(), bytes(files.weights))[1:]

    assert isinstance(first, Convolution) and first.weights.dtype == np.float16
    assert isinstance(second, Convolution) and second.weights.dtype == np.float32
    assert isinstance(slopes, PRelu) and abs(slopes.slopes[0]) <= 0.5
    reference = np.random.default_rng(7)
    assert np.allclose(first.weights.ravel(), reference.normal(0, 27**-0.5, 27), atol=1e-3)
    assert np.allclose(first.bias, reference.normal(0, 0.1, 1))
    assert np.allclose(second.weights.ravel(), reference.normal(0, 9**-0.5, 9))


CONV = "Convolution c 1 1 data out 0=2 1=3 4=1 5=1 6=54"


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([CONV.replace("0=2", "0=2 99=1")], "options that are not known here"),
        ([CONV.replace("4=1", "4=0")], "4=0.0, only 1 is known"),
        ([CONV.replace("4=1 ", "")], "4=None, only 1 is known"),
        ([CONV.replace("6=54", "6=53")], "53 weights are not 2 x in x 3 x 3"),
        ([CONV.replace("1=3 4=1", "1=2 4=0")], "side odd"),
        ([CONV.replace("0=2", "0=2.5")], "a positive whole number under 0, got 2.5"),
        ([CONV.replace("0=2", "0=-2")], "a positive whole number under 0, got -2.0"),
        ([CONV.replace("0=2", "0=inf")], "a positive whole number under 0, got inf"),
        ([CONV.replace("0=2", "0=nan")], "a positive whole number under 0, got nan"),
        ([CONV.replace("6=54", "6=x")], "could not convert"),
        ([CONV.replace("6=54", "6=1,2")], "cannot be read"),
        ([CONV + " 9=1"], "9=1.0, only 2 is known"),
        ([CONV + " 9=2"], "needs an array under 10, got None"),
        ([CONV + " 9=2 -23310=2,0.1"], "does not have the length it announces"),
        ([CONV.replace("data", "nothing")], "uses nothing before any layer makes it"),
        ([CONV.replace("out", "data")], "makes data a second time"),
        (["Convolution c 2 1 data data out 0=2"], "Convolution c with 2 inputs and 1 outputs is not known here"),
        (["Softmax s 1 1 data out"], "Softmax s with 1 inputs and 1 outputs is not known here"),
        (["Concat c 3 1 data out"], "announces more blobs than it names"),
        (["Concat c 1"], "needs a kind, a name and two counts"),
        (["Concat c one 1 data out"], "invalid literal"),
        (["Interp i 1 1 data out 0=2 1=2 2=2"], "0=2.0, only 1 is known"),
        (["Interp i 1 1 data out 0=1 1=2 2=3"], "2=3.0, only 2 is known"),
        (["Eltwise e 1 1 data out 0=1 -23301=2,1.0,1.0"], "1 inputs and 2 coefficients"),
        (["Eltwise e 1 1 data out 0=0"], "0=0.0, only 1 is known"),
        (["BinaryOp b 1 1 data out 0=2"], "is not known here"),
    ],
)
def test_what_is_not_known_or_malformed_is_refused_by_name(lines: list[str], complaint: str) -> None:
    """A layer that is read wrongly would give a wrong picture without a word."""
    param = "\n".join(["7767517", f"{len(lines) + 1} 2", "Input in 0 1 data", *lines]).encode()

    with pytest.raises(ModelUnavailableError, match=complaint):
        read_network(param, bytes(1000))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda param, weights: (b"", weights), "the first line must be 7767517"),
        (lambda param, weights: (param.replace(b"7767517", b"1"), weights), "the first line must be 7767517"),
        (lambda param, weights: (b"\xff" + param, weights), "cannot be read"),
        (lambda param, weights: (param.rsplit(b"\n", 2)[0], weights), "layers announced"),
        (lambda param, weights: (b"7767517\n0 0\n", weights), "0 layers announced"),
        (lambda param, weights: (b"7767517\n1\n" + param, weights), "cannot be read"),
        (lambda param, weights: (param, weights[:-1]), "the weights end at byte"),
        (lambda param, weights: (param, weights + bytes(4)), "4 bytes of weights are left over"),
        (lambda param, weights: (param, b"\x01\x02\x03\x04" + weights[4:]), "unknown type 0x04030201"),
    ],
)
def test_damaged_files_are_refused(
    rrdb_files: tuple[bytes, bytes], damage: Callable[[bytes, bytes], tuple[bytes, bytes]], complaint: str
) -> None:
    """Truncated, swapped or foreign files never become a network."""
    with pytest.raises(ModelUnavailableError, match=complaint):
        read_network(*damage(*rrdb_files))


def test_a_wrong_number_of_blobs_is_refused(rrdb_files: tuple[bytes, bytes]) -> None:
    """The header's second count is checked, too."""
    param, weights = rrdb_files
    header = param.splitlines()[1]

    with pytest.raises(ModelUnavailableError, match="blobs announced"):
        read_network(param.replace(header, header + b"0"), weights)
