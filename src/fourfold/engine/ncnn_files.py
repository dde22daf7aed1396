"""Read a network from ncnn's pair of files: the layers from ``.param`` (text), their weights from ``.bin``.

Only the layer kinds and options that super-resolution networks use are known; anything else is refused by name, because
a layer that is read wrongly gives a wrong picture without a word.

Shapes: weights of a convolution are ``[out, in, k, k]``; slopes and biases are ``[channels]``.

Source: ncnn ``src/modelbin.cpp:ModelBinFromDataReader::load`` (the flag before a blob of weights),
``src/paramdict.cpp`` (keys below -23300 are arrays), and the ``load_param`` / ``load_model`` of each layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from fourfold.errors import ModelUnavailableError

MAGIC: Final = "7767517"
_FLOAT16_FLAG: Final = 0x01306B47
_FLOAT32_FLAG: Final = 0
_ARRAY_KEY: Final = -23300
_LEAKY_RELU: Final = 2


@dataclass(frozen=True, slots=True)
class Input:
    """The picture: RGB, 0..1."""

    outputs: tuple[str, ...]
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Copy:
    """The same blob under several names."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Convolution:
    """Stride 1, zero padding that keeps the size; then a leaky ReLU where a slope is given."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: "Weights"  #: [out, in, k, k], k odd
    bias: NDArray[np.float32]  #: [out]
    leaky_slope: float | None = None


@dataclass(frozen=True, slots=True)
class PRelu:
    """A leaky ReLU with a slope for each channel."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    slopes: NDArray[np.float32]  #: [channels]


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """The sum of the inputs, each times its coefficient."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    coefficients: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """The inputs' channels, one after another."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NearestUpscale:
    """Each pixel repeated *factor* times along both sides."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    factor: int


@dataclass(frozen=True, slots=True)
class PixelShuffle:
    """Channels become space: output channel c is woven of *factor* squared ones, from ``c * factor**2`` on."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    factor: int


Layer: TypeAlias = Input | Copy | Convolution | PRelu | WeightedSum | Concat | NearestUpscale | PixelShuffle
Weights: TypeAlias = NDArray[np.float16] | NDArray[np.float32]
_Number = TypeVar("_Number", np.uint32, np.float16, np.float32)
_Value: TypeAlias = float | tuple[float, ...]


def read_network(param: bytes, weights: bytes) -> tuple[Layer, ...]:
    """Return the layers of the network in the order of computation; its last layer gives the result.

    Args:
        param: the whole ``.param`` file.
        weights: the whole ``.bin`` file.

    Returns:
        Layers whose inputs were each made by an earlier layer; every weight is read, none is left over.

    Raises:
        ModelUnavailableError: the files are malformed, do not belong together, or use what is not known here.
    """
    try:
        lines = [line.split() for line in param.decode("ascii").splitlines() if line.strip()]
        if len(lines) < 2 or lines[0] != [MAGIC]:
            raise _MalformedError(f"the first line must be {MAGIC}")
        layer_count, blob_count = (int(word) for word in lines[1])
        if layer_count != len(lines) - 2 or layer_count == 0:
            raise _MalformedError(f"{layer_count} layers announced, {len(lines) - 2} found")
        blobs = _Blobs(weights)
        known: set[str] = set()
        layers = tuple(_read_layer(words, known, blobs) for words in lines[2:])
        if len(known) != blob_count:
            raise _MalformedError(f"{blob_count} blobs announced, {len(known)} found")
        blobs.finish()
    except (_MalformedError, ValueError, UnicodeDecodeError) as exc:
        raise ModelUnavailableError(f"the network's files cannot be read: {exc}") from exc
    return layers


class _MalformedError(Exception):
    """Something in the files is not as it must be; the text says what."""


class _Blobs:
    """Reads the ``.bin`` file from front to back."""

    def __init__(self, content: bytes) -> None:
        self._content = bytearray(content)  # writeable: OpenVINO shares no other arrays, and would copy them
        self._at = 0

    def weights(self, count: int) -> Weights:
        """Return the next *count* weights: a flag for their type, then float16 padded to 4 bytes, or float32."""
        flag = int(self._take(np.uint32, 1)[0])
        if flag == _FLOAT32_FLAG:
            return self.floats(count)
        if flag != _FLOAT16_FLAG:
            raise _MalformedError(f"weights of the unknown type {flag:#010x}")
        values = self._take(np.float16, count)
        self._at += -self._at % 4
        return values

    def floats(self, count: int) -> NDArray[np.float32]:
        """Return the next *count* bare float32 values."""
        return self._take(np.float32, count)

    def finish(self) -> None:
        """Check that the file ends here."""
        if self._at != len(self._content):
            raise _MalformedError(f"{len(self._content) - self._at} bytes of weights are left over")

    def _take(self, kind: type[_Number], count: int) -> NDArray[_Number]:
        dtype = np.dtype(kind).newbyteorder("<")
        end = self._at + count * dtype.itemsize
        if count < 0 or end > len(self._content):
            raise _MalformedError(f"the weights end at byte {len(self._content)}, byte {end} is needed")
        values = np.frombuffer(self._content, dtype, count, self._at)
        self._at = end
        return values


def _read_layer(words: Sequence[str], known: set[str], blobs: _Blobs) -> Layer:
    """Return the layer that one line describes, and add its outputs to *known*."""
    if len(words) < 4:
        raise _MalformedError(f"a layer needs a kind, a name and two counts, got {' '.join(words)!r}")
    kind, name = words[:2]
    input_count, output_count = int(words[2]), int(words[3])
    ends = 4 + input_count, 4 + input_count + output_count
    inputs, outputs = tuple(words[4 : ends[0]]), tuple(words[ends[0] : ends[1]])
    if len(inputs) != input_count or len(outputs) != output_count:
        raise _MalformedError(f"{kind} {name} announces more blobs than it names")
    if unknown := set(inputs) - known:
        raise _MalformedError(f"{kind} {name} uses {', '.join(sorted(unknown))} before any layer makes it")
    if again := known.intersection(outputs):
        raise _MalformedError(f"{kind} {name} makes {', '.join(sorted(again))} a second time")
    known.update(outputs)
    options = _Options(f"{kind} {name}", words[ends[1] :])
    layer = _build(kind, inputs, outputs, options, blobs)
    options.finish()
    return layer


def _build(kind: str, inputs: tuple[str, ...], outputs: tuple[str, ...], options: "_Options", blobs: _Blobs) -> Layer:
    """Return the typed layer; whatever option it does not ask for must be absent."""
    match kind, len(inputs), len(outputs):
        case "Input", 0, 1:
            return Input(outputs)
        case "Split", 1, _:
            return Copy(inputs, outputs)
        case "Concat", _, 1:
            return Concat(inputs, outputs)
        case "Convolution", 1, 1:
            return _build_convolution(inputs, outputs, options, blobs)
        case "PReLU", 1, 1:
            return PRelu(inputs, outputs, blobs.floats(options.whole(0)))
        case "Eltwise", n, 1 if n > 0:
            options.must_be(0, 1)  # 1 = sum
            coefficients = options.array(1)
            if len(coefficients) != n:
                raise _MalformedError(f"{options.layer} has {n} inputs and {len(coefficients)} coefficients")
            return WeightedSum(inputs, outputs, coefficients)
        case "BinaryOp", 2, 1:
            options.must_be(0, 0, absent=0)  # 0 = add
            return WeightedSum(inputs, outputs, (1.0, 1.0))
        case "Interp", 1, 1:
            options.must_be(0, 1)  # 1 = nearest
            factor = options.whole(1)
            options.must_be(2, factor)
            return NearestUpscale(inputs, outputs, factor)
        case "PixelShuffle", 1, 1:
            return PixelShuffle(inputs, outputs, options.whole(0))
    raise _MalformedError(f"{options.layer} with {len(inputs)} inputs and {len(outputs)} outputs is not known here")


def _build_convolution(
    inputs: tuple[str, ...], outputs: tuple[str, ...], options: "_Options", blobs: _Blobs
) -> Convolution:
    out_channels, side, total = options.whole(0), options.whole(1), options.whole(6)
    options.must_be(4, (side - 1) // 2)  # padding
    options.must_be(5, 1)  # a bias follows
    if side % 2 == 0 or total % (out_channels * side * side):
        raise _MalformedError(
            f"{options.layer}: {total} weights are not {out_channels} x in x {side} x {side}, side odd"
        )
    slope = None
    if options.has(9):
        options.must_be(9, _LEAKY_RELU)
        (slope,) = options.array(10)
    weights = blobs.weights(total).reshape(out_channels, -1, side, side)
    return Convolution(inputs, outputs, weights, blobs.floats(out_channels), slope)


class _Options:
    """A layer's ``key=value`` words. Each must be asked for, so that none is overlooked."""

    def __init__(self, layer: str, words: Sequence[str]) -> None:
        self.layer = layer
        self._key_to_value: dict[int, _Value] = dict(_parse_option(word) for word in words)

    def has(self, key: int) -> bool:
        """Say whether *key* is given."""
        return key in self._key_to_value

    def whole(self, key: int) -> int:
        """Return the positive whole number under *key*."""
        value = self._key_to_value.pop(key, None)
        if not isinstance(value, float) or not value.is_integer() or value < 1:
            raise _MalformedError(f"{self.layer} needs a positive whole number under {key}, got {value}")
        return int(value)

    def array(self, key: int) -> tuple[float, ...]:
        """Return the array under *key*."""
        value = self._key_to_value.pop(key, None)
        if not isinstance(value, tuple):
            raise _MalformedError(f"{self.layer} needs an array under {key}, got {value}")
        return value

    def must_be(self, key: int, expected: int, *, absent: int | None = None) -> None:
        """Check that *key* has the one value that is known here."""
        value = self._key_to_value.pop(key, absent)
        if value != expected:
            raise _MalformedError(f"{self.layer} has {key}={value}, only {expected} is known here")

    def finish(self) -> None:
        """Check that every option has been asked for."""
        if self._key_to_value:
            raise _MalformedError(f"{self.layer} has options that are not known here: {dict(self._key_to_value)}")


def _parse_option(word: str) -> tuple[int, _Value]:
    """Return ``(key, value)`` of ``key=value``; an array ``-(23300 + key)=n,v1..vn`` comes under its bare key."""
    key, _, value = word.partition("=")
    numbers = tuple(float(part) for part in value.split(","))
    if int(key) > _ARRAY_KEY:
        (number,) = numbers
        return int(key), number
    if len(numbers) != int(numbers[0]) + 1:
        raise _MalformedError(f"array {word!r} does not have the length it announces")
    return _ARRAY_KEY - int(key), numbers[1:]
