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

_LEAST_BLOCK: Final = 16
"""Layers of a block that is worth to be told from others: fewer cost more to call than they do."""

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

    def by_blocks(self) -> tuple[Piece, ...]:
        """Return the network as what comes before, each of, and what comes after its equal blocks; else in one piece.

        Equal blocks compute the same of other blobs with other weights.
        """
        start, period, count = self._longest_repetition()
        if count < 2:
            return (self.whole(),)
        edges = [start + period * i for i in range(count + 1)]
        edges = sorted({0, *edges, len(self.layers)})
        return tuple(self._piece(begin, end) for begin, end in pairwise(edges))

    def alike(self, piece: Piece) -> tuple[object, ...]:
        """Return what *piece* has in common with the pieces that compute the same."""
        made = [layer.outputs[0] for layer in piece.layers]
        where = {blob: i for i, blob in enumerate([*piece.entering, *made])}
        return (
            tuple((_kind_of(layer), *(where[blob] for blob in layer.inputs)) for layer in piece.layers),
            tuple(piece.entering.values()),
            tuple(where[blob] for blob in piece.leaving),
        )

    def _longest_repetition(self) -> tuple[int, int, int]:
        """Return where blocks of at least `_LEAST_BLOCK` layers begin, how long each is and how many there are."""
        maker = {self.picture: -1} | {layer.outputs[0]: i for i, layer in enumerate(self.layers)}
        kinds = [
            hash((_kind_of(layer), *(i - maker[blob] if blob != self.picture else -1 for blob in layer.inputs)))
            for i, layer in enumerate(self.layers)
        ]
        best = 0, 0, 0
        for period in range(_LEAST_BLOCK, len(kinds) // 2 + 1):
            run = 0  # layers up to here that are as those one period before
            for i in range(period, len(kinds) + 1):
                if i < len(kinds) and kinds[i] == kinds[i - period]:
                    run += 1
                    continue
                count = run // period + 1
                if (count - 1) * period > (best[2] - 1) * best[1]:
                    # Any start within what is over would do: one that few blobs cross, as after a convolution comes
                    # what is best computed with it.
                    starts = range(i - run - period, i - count * period + 1)
                    best = min(starts, key=self._cost_of_cutting), period, count
                run = 0
        return best

    def _cost_of_cutting(self, at: int) -> tuple[int, bool]:
        """Return how bad a place to begin a block is: blobs that cross it, and whether no convolution comes next."""
        return len(self._crossing(at)), not isinstance(self.layers[at], Convolution)

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


def _kind_of(layer: Layer) -> tuple[object, ...]:
    """Return what *layer* computes, its blobs and the values of its weights left out."""
    match layer:
        case Convolution():
            return "convolution", layer.weights.shape, layer.leaky_slope
        case PRelu():
            return "prelu", layer.slopes.shape
        case WeightedSum():
            return "sum", layer.coefficients
        case NearestUpscale() | PixelShuffle():
            return type(layer).__name__, layer.factor
        case Concat():
            return ("concat",)
    raise AssertionError(f"a network holds no {type(layer).__name__}")


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
