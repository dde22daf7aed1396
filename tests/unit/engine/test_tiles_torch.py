"""An engine of torch compiles its network beside its jobs, once for windows of every size; here for a tiny network.

``eager``, as torch calls the compiler that does nothing after tracing, serves: what sizes kernels hold for is decided
before. With ``inductor`` on a CPU, the embedded networks' pictures were the eager ones to the bit, in windows of four
sizes by one compilation.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [diffusion] extra")

import torch

from fourfold.engine import pieces, registry, tiles_torch
from fourfold.engine.base import EngineJob, JobDone, RegionDone, Remark
from fourfold.engine.compiling import Compiler
from fourfold.engine.ncnn_files import (
    Concat,
    Convolution,
    Input,
    NearestUpscale,
    PixelShuffle,
    PRelu,
    WeightedSum,
)
from fourfold.engine.pieces import Network, join
from fourfold.engine.realesrgan_torch import TorchNetwork
from fourfold.engine.settings import EngineSettings
from fourfold.engine.tiles_torch import TorchTilesEngine

#: Small tiles; torch on a CPU makes other kernels for windows of less than 20,480 numbers.
CARD = replace(registry.card("fourfold/realesr-animevideov3"), tile_pixels=128 * 100, core_px=32, margin_px=4)
RNG = np.random.default_rng(0)


def convolution(source: str, made: str, channels: tuple[int, int], slope: float | None = None) -> Convolution:
    weights = (RNG.standard_normal((*channels, 3, 3)) / 9).astype(np.float32)
    return Convolution((source,), (made,), weights, np.zeros(channels[0], np.float32), slope)


#: Every kind of layer that the family's networks have.
NETWORK = join(
    [
        Input(("picture",)),
        convolution("picture", "a", (4, 3), 0.2),
        PRelu(("a",), ("b",), np.full(4, 0.25, np.float32)),
        Concat(("a", "b"), ("c",)),
        convolution("c", "d", (48, 8)),
        PixelShuffle(("d",), ("e",), 4),
        NearestUpscale(("picture",), ("f",), 4),
        WeightedSum(("f", "e"), ("g",), (1.0, 0.2)),
    ]
)


#: Four equal blocks of two layers, between a beginning and an end that also reads the picture and the first of them.
BLOCKS = join(
    [
        Input(("picture",)),
        convolution("picture", "0", (4, 3)),
        *(
            layer
            for i in range(4)
            for layer in (
                convolution(str(i), f"inside {i}", (4, 4), 0.2),
                WeightedSum((str(i), f"inside {i}"), (str(i + 1),), (1.0, 0.5)),
            )
        ),
        WeightedSum(("0", "4"), ("body",), (1.0, 1.0)),
        convolution("body", "d", (48, 4)),
        PixelShuffle(("d",), ("e",), 4),
        NearestUpscale(("picture",), ("f",), 4),
        WeightedSum(("f", "e"), ("g",), (1.0, 0.2)),
    ]
)


@contextmanager
def compiling(compiler: str | None = "eager", network: Network = NETWORK) -> Iterator[TorchTilesEngine]:
    """Yield an engine that compiles; its thread has ended afterwards."""
    engine = TorchTilesEngine(
        CARD,
        settings=EngineSettings(threads=1, compiler=compiler),
        make_network=lambda dtype: TorchNetwork(network, device=torch.device("cpu"), dtype=dtype),
    )
    yield engine
    engine.close()
    if (thread := engine._kernels._compiler._thread) is not None:
        thread.join()


@pytest.fixture(autouse=True)
def pixels_a_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """One tile at a time, unless a test calls this."""
    monkeypatch.setattr(tiles_torch, "STEP_PIXELS", 1)
    return lambda pixels: monkeypatch.setattr(tiles_torch, "STEP_PIXELS", pixels)


def picture(width: int, height: int, dtype: Any = np.uint8) -> Any:
    return RNG.integers(0, np.iinfo(dtype).max + 1, (height, width, 3)).astype(dtype)


def run(engine: TorchTilesEngine, image: Any, job_id: str = "a") -> tuple[Any, dict[str, Any], list[str]]:
    """Return the whole picture, the notes, and the names of the remarks."""
    engine.admit(EngineJob(job_id, image))
    events: list[Any] = []
    while engine.busy:
        events += engine.step()
    regions = [event for event in events if isinstance(event, RegionDone)]
    height, width = (max(r.y + r.pixels.shape[0] for r in regions), max(r.x + r.pixels.shape[1] for r in regions))
    made = np.zeros((height, width, 3), regions[0].pixels.dtype)
    for region in regions:
        made[region.y : region.y + region.pixels.shape[0], region.x : region.x + region.pixels.shape[1]] = region.pixels
    (notes,) = (event.notes for event in events if isinstance(event, JobDone))
    return made, notes, [event.name for event in events if isinstance(event, Remark)]


def settled(engine: TorchTilesEngine) -> TorchTilesEngine:
    engine._kernels.settle()
    return engine


def test_a_job_has_one_kind_of_kernels_from_its_first_tile_to_its_last(gate: Callable[[], None]) -> None:
    """Those that there were when it came; the pictures are the same."""
    image = picture(150, 140)
    with compiling(None) as eager:
        expected, notes, _ = run(eager, image)
        assert (notes["kernels"], notes["tiles"] > 1) == ("eager", True)
    with compiling() as engine:
        first = run(engine, image)
        engine.admit(EngineJob("begun", image))
        engine.step()
        gate()
        settled(engine)
        *_, done, told = engine.step()
        later = run(engine, image, "later")

    assert isinstance(done, JobDone) and isinstance(told, Remark)
    assert [first[1]["kernels"], done.notes["kernels"], later[1]["kernels"]] == ["eager", "eager", "compiled"]
    assert (told.name, told.facts["precision"]) == ("kernels_ready", "float32")
    assert np.array_equal(first[0], expected)
    assert np.array_equal(later[0], expected)


def test_one_compilation_serves_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture in one piece and in tiles, of any shape; none is compiled for again, and none is computed eagerly."""
    sizes = ((128, 96), (90, 90), (400, 20), (300, 150))
    images = [picture(*size) for size in sizes]
    with compiling(None) as eager:
        expected = [run(eager, image)[0] for image in images]
    with compiling() as engine:
        *_, first = run(engine, images[0])
        settled(engine)
        monkeypatch.setattr(Compiler, "_compile", lambda *_: pytest.fail("another compilation"))
        made = [run(engine, image) for image in images]

    assert [notes["kernels"] for _, notes, _ in made] == ["compiled"] * len(sizes)
    assert [name for told in (first, *(told for *_, told in made)) for name in told] == ["kernels_ready"]
    assert all(np.array_equal(ours, theirs) for (ours, *_), theirs in zip(made, expected, strict=True))


def test_equal_blocks_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its own weights; what is before and after them on its own."""
    monkeypatch.setattr(pieces, "_LEAST_BLOCK", 2)
    images = [picture(100, 100), picture(90, 120)]
    with compiling(None, BLOCKS) as eager:
        expected = [run(eager, image)[0] for image in images]
    with compiling(network=BLOCKS) as engine:
        run(engine, images[0])
        compiled = [part.at for part in settled(engine)._kernels._compiler._ready]
        made = [run(engine, image) for image in images]

    assert compiled == [0, 1, 5]
    assert [notes["kernels"] for _, notes, _ in made] == ["compiled"] * 2
    assert all(np.array_equal(ours, theirs) for (ours, *_), theirs in zip(made, expected, strict=True))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_several_tiles_at_once_have_kernels_of_their_own(dtype: Any, pixels_a_step: Callable[[int], None]) -> None:
    """A job of three tiles, two at once, has both kinds; 8 and 16 bits each have theirs."""
    image = picture(64, 500, dtype)
    pixels_a_step(2 * 64 * 180)
    with compiling(None) as eager:
        expected, _, _ = run(eager, image)
    with compiling() as engine:
        _, first, early = run(engine, image)
        made, notes, told = run(settled(engine), image)

    assert (first["tiles"], first["kernels"]) == (3, "eager")
    assert (notes["kernels"], early + told) == ("compiled", ["kernels_ready"] * 2)
    assert np.array_equal(made, expected)


def test_a_closed_engine_holds_no_weights() -> None:
    """Neither does torch for what it compiled, nor does it take a collection to see that."""
    with compiling() as engine:
        run(engine, picture(100, 100))
        run(settled(engine), picture(100, 100))
        alive = weakref.ref(engine._kernels._dtype_to_network[torch.float32].stages[0].weights[0])
        gc.disable()
    try:
        assert alive() is None
    finally:
        gc.enable()


def test_a_window_that_kernels_do_not_hold_for_is_eager_once() -> None:
    """As torch on a CPU has them for large windows and small ones; then for both."""
    large, small = picture(100, 100), picture(30, 30)
    with compiling() as engine:
        run(engine, large)
        kernels = [run(settled(engine), image)[1]["kernels"] for image in (large, small, small, large)]

    assert kernels == ["compiled", "eager", "compiled", "compiled"]


def test_a_compiler_that_fails_is_told_once_and_everything_stays_eager() -> None:
    image = picture(60, 40)
    with compiling("no_such_compiler") as engine:
        told = [run(settled(engine), image)[1:] for _ in range(3)]

    assert [notes["kernels"] for notes, _ in told] == ["eager"] * 3
    assert [name for _, names in told for name in names] == ["compile_failed"]
