"""Cut a network into pieces that are computed one after another.

Where only two blobs are alive a run can pause cheaply: show progress, see a cancellation, give its memory back. The
last piece is special in networks that first think at the picture's size and then enlarge: this *tail* needs the most
memory per pixel and hardly any context, so it is run band by band over what the pieces before it made.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

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
from fourfold.errors import ModelUnavailableError

_NARROW: Final = 2
"""Blobs alive at a cut. In an RRDB network these are the block's result and the first convolution's."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some consecutive layers of a network, and what crosses their ends."""

    layers: tuple[Layer, ...]  #: without Input and Copy
    entering: Mapping[str, int]  #: blob -> channels, made before this piece
    leaving: tuple[str, ...]  #: made in this piece and used after it; the network's result for its last piece

    @property
    def reach_px(self) -> int:
        """Return how far away, in pixels of what enters, a pixel can change this piece's result."""
        scale, reach = 1, 0.0
        for layer in self.layers:
            if isinstance(layer, NearestUpscale | PixelShuffle):
                scale *= layer.factor
            elif isinstance(layer, Convolution):
                reach += layer.weights.shape[2] // 2 / scale
        return math.ceil(reach)


@dataclass(frozen=True, slots=True)
class Network:
    """The layers of a network, each blob under one name only."""

    layers: tuple[Layer, ...]  #: without Input and Copy
    picture: str  #: the blob that enters
    blob_to_channels: Mapping[str, int]

    def whole(self) -> Piece:
        """Return all layers as one piece."""
        return self._piece(0, len(self.layers))

    def cut(self, parts: int) -> tuple[tuple[Piece, ...], Piece | None]:
        """Return up to *parts* pieces of about equal work, and the tail; without a tail the pieces are everything."""
        tail_start = self._tail_start()
        edges = [0, *self._even_cuts(parts, tail_start), tail_start]
        body = tuple(self._piece(start, stop) for start, stop in pairwise(edges))
        return body, self._piece(tail_start, len(self.layers)) if tail_start < len(self.layers) else None

    def _tail_start(self) -> int:
        """Return the index of the first layer that enlarges, if convolutions follow it; else the end."""
        for i, layer in enumerate(self.layers):
            if isinstance(layer, NearestUpscale | PixelShuffle):
                has_convolution = any(isinstance(later, Convolution) for later in self.layers[i:])
                return i if has_convolution else len(self.layers)
        return len(self.layers)

    def _even_cuts(self, parts: int, end: int) -> list[int]:
        """Return the narrow places before *end* that are nearest to ``1/parts, 2/parts ...`` of the work."""
        work = [0]
        for layer in self.layers[:end]:
            work.append(work[-1] + (layer.weights.size if isinstance(layer, Convolution) else 0))
        narrow = [i for i in range(1, end) if len(self._crossing(i)) <= _NARROW]
        shares = (work[-1] * part / parts for part in range(1, parts))
        return sorted({min(narrow, key=lambda i: abs(work[i] - share)) for share in shares}) if narrow else []

    def _crossing(self, at: int) -> tuple[str, ...]:
        """Return the blobs that are made before layer *at* and used from there on, in the order of their making."""
        used = {blob for layer in self.layers[at:] for blob in layer.inputs}
        made = [self.picture, *(layer.outputs[0] for layer in self.layers[:at])]
        return tuple(blob for blob in made if blob in used)

    def _piece(self, start: int, stop: int) -> Piece:
        layers = self.layers[start:stop]
        used = {blob for layer in layers for blob in layer.inputs}
        made = {layer.outputs[0] for layer in layers}
        after = self._crossing(stop) if stop < len(self.layers) else self.layers[-1].outputs
        return Piece(
            layers,
            entering={blob: self.blob_to_channels[blob] for blob in self._crossing(start) if blob in used},
            leaving=tuple(blob for blob in after if blob in made),
        )


def join(layers: Sequence[Layer]) -> Network:
    """Return the network that *layers* are, its copies resolved.

    Raises:
        ModelUnavailableError: channels do not fit, or it is not one RGB picture that goes in and one that comes out.
    """
    blob_to_root: dict[str, str] = {}
    blob_to_channels: dict[str, int] = {}
    kept: list[Layer] = []
    pictures: list[str] = []
    for layer in layers:
        inputs = tuple(blob_to_root.get(blob, blob) for blob in layer.inputs)
        if isinstance(layer, Copy):
            blob_to_root.update(dict.fromkeys(layer.outputs, inputs[0]))
            continue
        (blob,) = layer.outputs
        blob_to_channels[blob] = _channels(layer, [blob_to_channels[source] for source in inputs])
        if isinstance(layer, Input):
            pictures.append(blob)
        else:
            kept.append(replace(layer, inputs=inputs))
    if len(pictures) != 1 or not kept or blob_to_channels[kept[-1].outputs[0]] != len("RGB"):
        raise ModelUnavailableError("a network must make one RGB picture of one RGB picture")
    return Network(tuple(kept), pictures[0], blob_to_channels)


def _channels(layer: Layer, sources: Sequence[int]) -> int:
    """Return how many channels *layer* makes of inputs with as many channels as *sources* say."""
    match layer:
        case Input():
            return len("RGB")
        case Concat():
            return sum(sources)
        case Convolution(weights=weights) if sources[0] == weights.shape[1]:
            return int(weights.shape[0])
        case PRelu(slopes=slopes) if sources[0] == slopes.size:
            return sources[0]
        case PixelShuffle(factor=factor) if sources[0] % factor**2 == 0:
            return sources[0] // factor**2
        case NearestUpscale():
            return sources[0]
        case WeightedSum() if len(set(sources)) == 1:
            return sources[0]
    raise ModelUnavailableError(
        f"{type(layer).__name__} {layer.outputs[0]} does not fit inputs of {list(sources)} channels"
    )
