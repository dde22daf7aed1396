"""The embedded networks on a GPU: the CPU engine's pictures, in tiles, compiled, within their memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the [diffusion] extra")

import torch

from fourfold.engine import registry
from fourfold.engine.base import EngineJob, JobDone, JobFailed, Precision, RegionDone, UpscaleEngine
from fourfold.engine.realesrgan import RealEsrganEngine
from fourfold.engine.realesrgan_torch import load_realesrgan_engine
from fourfold.engine.settings import EngineSettings
from fourfold.engine.tiles_torch import TorchTilesEngine

pytestmark = pytest.mark.gpu

COMPACT = "fourfold/realesr-animevideov3"
MODELS = [
    "fourfold/realesrgan-x4plus",
    "fourfold/realsr-df2k",
    COMPACT,
    "fourfold/realesrgan-x4plus-anime",
]
PHOTO = Path(__file__).parents[2] / "examples" / "photo.jpg"


@contextmanager
def on_gpu(model_id: str, *, compiler: str | None = None, **card: Any) -> Iterator[TorchTilesEngine]:
    """Yield the model's engine as the registry makes it; its compiling thread has ended afterwards."""
    settings = EngineSettings(threads=1, device="cuda:0", compiler=compiler)
    made = load_realesrgan_engine(replace(registry.card(model_id), **card), settings=settings)
    assert isinstance(made, TorchTilesEngine)
    yield made
    made.close()
    if (thread := made._kernels._compiler._thread) is not None:
        thread.join()


def photo(width: int, height: int, dtype: Any = np.uint8) -> Any:
    """Return a part of the photo; beyond its edges its mirror images."""
    whole = np.asarray(Image.open(PHOTO).convert("RGB"))
    below, right = max(0, height - whole.shape[0]), max(0, width - whole.shape[1])
    pixels = np.pad(whole, ((0, below), (0, right), (0, 0)), mode="symmetric")[:height, :width]
    return pixels.astype(dtype) * (np.iinfo(dtype).max // 255)


def run(engine: UpscaleEngine, image: Any, precision: Precision = Precision.AUTO) -> tuple[Any, dict[str, Any]]:
    """Return the whole picture, as signed numbers, and the notes."""
    engine.admit(EngineJob("a", image, precision=precision))
    made = np.zeros((image.shape[0] * 4, image.shape[1] * 4, 3), int)
    notes: dict[str, Any] = {}
    while engine.busy:
        for event in engine.step():
            assert not isinstance(event, JobFailed), event
            if isinstance(event, RegionDone):
                height, width = event.pixels.shape[:2]
                made[event.y : event.y + height, event.x : event.x + width] = event.pixels
            elif isinstance(event, JobDone):
                notes = event.notes
    return made, notes


def psnr(made: Any, expected: Any) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((made - expected).astype(float) ** 2))))


@pytest.mark.parametrize("model_id", MODELS)
def test_the_picture_is_the_cpu_engines(model_id: str) -> None:
    """In float32 within a level of 8 bits and, which products of 10 bits would not be, within 16 levels of 16."""
    card, settings = registry.card(model_id), EngineSettings(threads=4, precision=Precision.FLOAT32)
    cpu = RealEsrganEngine(card, settings=settings)
    image, fine = photo(96, 72), photo(96, 72, np.uint16)
    expected, expected_fine = run(cpu, image)[0], run(cpu, fine)[0]
    cpu.close()
    with on_gpu(model_id) as engine:
        whole, whole_notes = run(engine, image, Precision.FLOAT32)
        made_fine, fine_notes = run(engine, fine)
        half, half_notes = run(engine, image)

    assert [notes["precision"] for notes in (whole_notes, fine_notes, half_notes)] == ["float32", "float32", "float16"]
    assert np.abs(whole - expected).max() <= 1
    assert np.abs(made_fine - expected_fine).max() <= 16
    # On a CPU float16 was within a level; a GPU may add in an order that makes it two, of few pixels.
    assert np.abs(half - expected).max() <= 2
    assert psnr(half, expected) >= 60


@pytest.mark.parametrize("compiler", [None, "inductor"])
def test_batched_tiles_give_the_whole_picture(compiler: str | None) -> None:
    image = photo(250, 180)
    with on_gpu(COMPACT) as engine:
        whole, _ = run(engine, image)
    with on_gpu(COMPACT, compiler=compiler, tile_pixels=96 * 96, core_px=64) as engine:
        run(engine, image)
        engine._kernels.settle()
        tiled, notes = run(engine, image)

    assert notes["tiles"] > 1
    assert notes["kernels"] == ("compiled" if compiler else "eager")
    assert np.abs(tiled - whole).max() <= 2


@pytest.mark.parametrize("precision", [Precision.AUTO, Precision.FLOAT32])
@pytest.mark.parametrize("model_id", [COMPACT, "fourfold/realesrgan-x4plus-anime"])
def test_compiled_kernels_give_the_eager_picture_in_any_size(model_id: str, precision: Precision) -> None:
    """By one compilation; a size that needed another would be eager, and say so."""
    images = [photo(*size) for size in ((96, 128), (64, 64), (9, 200), (320, 240))]
    with on_gpu(model_id) as engine:
        expected = [run(engine, image, precision)[0] for image in images]
    with on_gpu(model_id, compiler="inductor") as engine:
        run(engine, images[1], precision)
        engine._kernels.settle()
        remarks = engine._kernels.remarks()
        assert {remark.name for remark in remarks} == {"kernels_ready"}, remarks
        for image, eager in zip(images, expected, strict=True):
            made, notes = run(engine, image, precision)

            assert notes["kernels"] == "compiled"
            assert np.abs(made - eager).max() <= (1 if precision is Precision.FLOAT32 else 2)
            assert psnr(made, eager) >= 60


@pytest.mark.parametrize(
    ("precision", "compiler"), [(Precision.AUTO, None), (Precision.FLOAT32, None), (Precision.AUTO, "inductor")]
)
def test_a_tile_keeps_to_the_cards_memory(precision: Precision, compiler: str | None) -> None:
    """By which the worker decides what fits; here for one tile, the whole picture."""
    image = photo(640, 480)
    with on_gpu("fourfold/realesrgan-x4plus", compiler=compiler) as engine:
        run(engine, photo(64, 64), precision)
        engine._kernels.settle()
        torch.cuda.reset_peak_memory_stats()
        _, notes = run(engine, image, precision)
        peak = torch.cuda.max_memory_allocated()

        assert notes["tiles"] == 1
        assert peak <= engine.card.peak_bytes(image.shape[0] * image.shape[1])


@pytest.mark.parametrize("compiler", [None, "inductor"])
def test_a_closed_engine_gives_its_memory_back(compiler: str | None) -> None:
    before = torch.cuda.memory_allocated()
    with on_gpu(COMPACT, compiler=compiler) as engine:
        for _ in range(2):
            run(engine, photo(64, 64))
            engine._kernels.settle()
        assert torch.cuda.memory_allocated() > before
    del engine

    assert torch.cuda.memory_allocated() <= before


def test_a_cancelled_job_leaves_at_the_next_step() -> None:
    image = photo(250, 180)
    with on_gpu(COMPACT, tile_pixels=96 * 96, core_px=64) as engine:
        engine.admit(EngineJob("a", image))
        engine.admit(EngineJob("b", photo(32, 32)))
        engine.step()
        engine.cancel("a")
        events = []
        while engine.busy:
            events += engine.step()

    assert {event.job_id for event in events} == {"b"}  # type: ignore[union-attr]
    assert isinstance(events[-1], JobDone)
