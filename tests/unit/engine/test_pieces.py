"""Cutting networks."""

from typing import Any

import pytest

from fourfold.engine import pieces, registry
from fourfold.engine.ncnn_files import Convolution, Copy, Input, NearestUpscale, read_network
from fourfold.engine.pieces import join
from fourfold.engine.weights import read_weights
from fourfold.errors import ModelUnavailableError


def test_joining_resolves_copies(network_files: tuple[bytes, bytes]) -> None:
    """Every blob has one name, and every input is the picture or made before."""
    network = join(read_network(*network_files))
    made = {network.picture}
    for layer in network.layers:
        assert not isinstance(layer, Copy | Input)
        assert made >= set(layer.inputs)
        made.update(layer.outputs)


@pytest.mark.parametrize("parts", [1, 2, 3, 50])
def test_the_pieces_are_the_network_in_order(network_files: tuple[bytes, bytes], parts: int) -> None:
    """What a piece needs was made before it, and nothing is lost or done twice."""
    network = join(read_network(*network_files))
    body, tail = network.cut(parts)
    pieces = [*body, tail] if tail else list(body)

    assert network.layers == tuple(layer for piece in pieces for layer in piece.layers)
    alive = {network.picture}
    for piece in pieces:
        assert alive >= set(piece.entering)
        assert piece.layers
        alive.update(piece.leaving)
    assert network.layers[-1].outputs == pieces[-1].leaving


def test_the_tail_begins_where_the_picture_gets_larger(rrdb_files: tuple[bytes, bytes]) -> None:
    """It sees one blob, and of that hardly more than its own pixel."""
    body, tail = join(read_network(*rrdb_files)).cut(2)

    assert tail is not None
    assert dict(tail.entering) == {"body": 8}
    assert isinstance(tail.layers[0], NearestUpscale)
    assert tail.reach_px == 1  # 1/2 px of the first convolution and 1/4 of the second
    assert len(body) == 2
    assert not any(isinstance(layer, NearestUpscale) for piece in body for layer in piece.layers)


def test_the_body_is_cut_where_two_blobs_are_alive(rrdb_files: tuple[bytes, bytes]) -> None:
    """More cross inside a block: its input and all that its convolutions have made."""
    body, _ = join(read_network(*rrdb_files)).cut(3)

    assert len(body) == 3
    for piece in body[1:]:
        assert len(piece.entering) == 2
        assert "first" in piece.entering


def test_without_convolutions_after_the_enlarging_there_is_no_tail(files: Any) -> None:
    """A network that only weaves its last channels into a picture gains nothing by bands."""
    files.conv("data", "a", (3, 48))
    files.layer("PixelShuffle", ["a"], ["out"], "0=4")
    body, tail = join(read_network(files.param(), bytes(files.weights))).cut(1)

    assert tail is None
    assert sum(len(piece.layers) for piece in body) == 2


def test_a_network_that_never_enlarges_has_no_tail(files: Any) -> None:
    """The cut does not depend on the scale."""
    files.conv("data", "out", (3, 3))
    body, tail = join(read_network(files.param(), bytes(files.weights))).cut(1)

    assert tail is None
    assert isinstance(body[0].layers[0], Convolution)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["Interp i 1 1 data out 0=1 1=4 2=4", "Input in2 0 1 data2"], "one RGB picture"),
        ([], "one RGB picture"),
        (["Concat c 2 1 data data out"], "one RGB picture"),
        (["PixelShuffle p 1 1 data out 0=2"], r"PixelShuffle out does not fit inputs of \[3\] channels"),
        (["Concat c 2 1 data data six", "BinaryOp b 2 1 data six out"], r"WeightedSum out does not fit .*\[3, 6\]"),
    ],
)
def test_what_is_no_network_of_pictures_is_refused(files: Any, lines: list[str], complaint: str) -> None:
    """Channels that do not fit are found before OpenVINO sees them."""
    files.lines.extend(lines)
    with pytest.raises(ModelUnavailableError, match=complaint):
        join(read_network(files.param(), b""))


def test_weights_for_other_channels_are_refused(files: Any) -> None:
    """A convolution and slopes are made for a number of channels."""
    files.conv("data", "a", (4, 3))
    with pytest.raises(ModelUnavailableError, match="Convolution a does not fit"):
        join(read_network(files.param(), bytes(files.weights)))


def test_slopes_for_other_channels_are_refused(files: Any) -> None:
    """One slope a channel."""
    files.prelu("data", "a", 4)
    with pytest.raises(ModelUnavailableError, match="PRelu a does not fit"):
        join(read_network(files.param(), bytes(files.weights)))


def test_the_shipped_network_is_cut_into_equal_work() -> None:
    """Progress is even: in x4plus the largest piece has at most 1.4 times the work of the smallest."""
    from fourfold.engine.realesrgan import MODEL_TO_TUNING
    from fourfold.engine.registry import card
    from fourfold.engine.weights import read_weights

    model_id = "fourfold/realesrgan-x4plus"
    param, weights = (read_weights(file) for file in card(model_id).weights)
    network = join(read_network(param, weights))
    body, tail = network.cut(MODEL_TO_TUNING[model_id].parts)
    work = [sum(la.weights.size for la in piece.layers if isinstance(la, Convolution)) for piece in body]

    assert tail is not None and tail.reach_px == 2
    assert MODEL_TO_TUNING[model_id].parts == len(body)
    assert max(work) <= 1.4 * min(work)


def test_equal_blocks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six in an embedded network: one blob enters each, and all compute the same; at both ends is what is left."""
    card = registry.card("fourfold/realesrgan-x4plus-anime")
    network = join(read_network(*(read_weights(file) for file in card.weights)))
    first, *blocks, last = network.by_blocks()

    assert network.layers == tuple(layer for piece in (first, *blocks, last) for layer in piece.layers)
    assert [(len(piece.layers), list(piece.entering.values())) for piece in blocks] == [(31, [64])] * 6
    assert len({network.alike(piece) for piece in blocks}) == 1
    assert len({network.alike(piece) for piece in (first, blocks[0], last)}) == 3
    monkeypatch.setattr(pieces, "_LEAST_BLOCK", 100)
    assert network.by_blocks() == (network.whole(),)
