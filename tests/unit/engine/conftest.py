"""Tiny networks in ncnn's format, the plainest possible way to compute them, and a compiler that waits."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

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

Array = NDArray[np.float64]


@dataclass
class Files:
    """A ``.param`` and a ``.bin`` in the making."""

    lines: list[str] = field(default_factory=lambda: ["Input in 0 1 data"])
    weights: bytearray = field(default_factory=bytearray)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def layer(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], options: str = "") -> None:
        """Append any line."""
        name = f"{kind}_{len(self.lines)}"
        self.lines.append(f"{kind} {name} {len(inputs)} {len(outputs)} {' '.join([*inputs, *outputs])} {options}")

    def conv(
        self, source: str, into: str, channels: tuple[int, int], *, slope: float | None = None, half: bool = True
    ) -> None:
        """Append a 3x3 convolution with random weights that keep values about as large as they were."""
        count = channels[0] * channels[1] * 9
        activation = "" if slope is None else f" 9=2 -23310=1,{slope}"
        options = f"0={channels[1]} 1=3 4=1 5=1 6={count}{activation}"
        self.layer("Convolution", [source], [into], options)
        values = self.rng.normal(0, (9 * channels[0]) ** -0.5, count)
        if half:
            stored = values.astype("<f2").tobytes()
            self.weights += (0x01306B47).to_bytes(4, "little") + stored + bytes(-len(stored) % 4)
        else:
            self.weights += bytes(4) + values.astype("<f4").tobytes()
        self.weights += self.rng.normal(0, 0.1, channels[1]).astype("<f4").tobytes()

    def prelu(self, source: str, into: str, channels: int) -> None:
        """Append a PReLU with random slopes."""
        self.layer("PReLU", [source], [into], f"0={channels}")
        self.weights += self.rng.uniform(-0.5, 0.5, channels).astype("<f4").tobytes()

    def param(self) -> bytes:
        """Return the text file, its counts as they must be."""
        blobs = sum(int(line.split()[3]) for line in self.lines)
        return "\n".join(["7767517", f"{len(self.lines)} {blobs}", *self.lines, ""]).encode()


def _rrdb() -> tuple[bytes, bytes]:
    """Two dense blocks with every layer kind of the large networks, then a tail that enlarges twice."""
    files = Files()
    files.conv("data", "first", (3, 8))
    files.layer("Split", ["first"], ["first_0", "block_0"])
    for block in range(2):
        files.layer("Split", [f"block_{block}"], [f"b{block}_0", f"b{block}_1", f"b{block}_2"])
        files.conv(f"b{block}_0", f"b{block}_a", (8, 4), slope=0.2)
        files.layer("Concat", [f"b{block}_1", f"b{block}_a"], [f"b{block}_c"])
        files.conv(f"b{block}_c", f"b{block}_d", (12, 8))
        files.layer("Eltwise", [f"b{block}_d", f"b{block}_2"], [f"block_{block + 1}"], "0=1 -23301=2,0.2,1.0")
    files.conv("block_2", "after", (8, 8), half=False)
    files.layer("BinaryOp", ["first_0", "after"], ["body"])
    files.layer("Interp", ["body"], ["twice"], "0=1 1=2.0 2=2.0")
    files.conv("twice", "up", (8, 8), slope=0.2)
    files.layer("Interp", ["up"], ["four"], "0=1 1=2.0 2=2.0")
    files.conv("four", "last", (8, 3))
    return files.param(), bytes(files.weights)


def _srvgg() -> tuple[bytes, bytes]:
    """Every layer kind of the compact network."""
    files = Files()
    files.layer("Split", ["data"], ["data_0", "data_1"])
    files.conv("data_0", "a", (3, 6))
    files.prelu("a", "b", 6)
    files.conv("b", "c", (6, 48))
    files.layer("PixelShuffle", ["c"], ["d"], "0=4")
    files.layer("Interp", ["data_1"], ["e"], "0=1 1=4.0 2=4.0")
    files.layer("BinaryOp", ["d", "e"], ["output"])
    return files.param(), bytes(files.weights)


def _compute(layers: Sequence[Layer], picture: Array) -> Array:
    """Return what *layers* make of *picture* ``[3, h, w]``, in float64, straight from the layers' definitions."""
    blobs: dict[str, Array] = {}
    for layer in layers:
        sources = [blobs[blob] for blob in layer.inputs]
        match layer:
            case Input():
                made = picture
            case Copy():
                made = sources[0]
            case Convolution():
                made = _convolve(sources[0], layer.weights.astype(float)) + layer.bias.astype(float)[:, None, None]
                if layer.leaky_slope is not None:
                    made = np.where(made < 0, made * layer.leaky_slope, made)
            case PRelu():
                made = np.where(sources[0] < 0, sources[0] * layer.slopes.astype(float)[:, None, None], sources[0])
            case WeightedSum():
                made = np.sum([s * c for s, c in zip(sources, layer.coefficients, strict=True)], axis=0)
            case Concat():
                made = np.concatenate(sources)
            case NearestUpscale():
                made = sources[0].repeat(layer.factor, axis=1).repeat(layer.factor, axis=2)
            case PixelShuffle():
                r, (c, h, w) = layer.factor, sources[0].shape
                made = sources[0].reshape(c // r**2, r, r, h, w).transpose(0, 3, 1, 4, 2).reshape(-1, h * r, w * r)
        blobs.update(dict.fromkeys(layer.outputs, made))
    return made


def _convolve(source: Array, weights: Array) -> Array:
    """Return the zero-padded correlation that deep learning calls a convolution."""
    side = weights.shape[2]
    padded = np.pad(source, ((0, 0), (side // 2,) * 2, (side // 2,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    return np.einsum("ihwyx,oiyx->ohw", windows, weights)


@pytest.fixture
def files() -> Files:
    """An empty network."""
    return Files()


@pytest.fixture(params=["rrdb", "srvgg"])
def network_files(request: pytest.FixtureRequest) -> tuple[bytes, bytes]:
    """``.param`` and ``.bin`` of a tiny network of each family."""
    return _rrdb() if request.param == "rrdb" else _srvgg()


@pytest.fixture
def rrdb_files() -> tuple[bytes, bytes]:
    """``.param`` and ``.bin`` of a tiny network with a tail."""
    return _rrdb()


@pytest.fixture
def compute() -> Callable[[Sequence[Layer], Array], Array]:
    """The independent way to compute a network."""
    return _compute


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Hold every compilation until this is called."""
    from fourfold.engine.compiling import Compiler  # needs torch, which not every engine does

    opened, original = threading.Event(), Compiler._compile

    def held(self: Compiler[Any], *inputs: Any) -> Any:
        opened.wait()
        return original(self, *inputs)

    monkeypatch.setattr(Compiler, "_compile", held)
    return opened.set
