"""The GPU's engine of the Real-ESRGAN family, here on the CPU: the CPU engine's picture from the same files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the [diffusion] extra")

import torch

from fourfold.engine import registry
from fourfold.engine.base import EngineJob, JobFailed, MemoryRanOut, RegionDone, UpscaleEngine
from fourfold.engine.ncnn_files import read_network
from fourfold.engine.pieces import join
from fourfold.engine.realesrgan import RealEsrganEngine
from fourfold.engine.realesrgan_torch import TorchNetwork, load_realesrgan_engine
from fourfold.engine.settings import EngineSettings
from fourfold.engine.weights import read_weights
from fourfold.errors import InvalidImageError, OutOfMemoryError

COMPACT = "fourfold/realesr-animevideov3"
PHOTO = Path(__file__).parents[3] / "examples" / "photo.jpg"
SETTINGS = EngineSettings(threads=1)


def run(engine: UpscaleEngine, image: Any) -> tuple[Any, dict[str, Any]]:
    """Return the whole picture, put together of its regions, and the notes."""
    engine.admit(EngineJob("a", image))
    made = np.zeros((image.shape[0] * 4, image.shape[1] * 4, 3), image.dtype)
    covered = np.zeros(made.shape[:2], int)
    events: list[Any] = []
    while engine.busy:
        events += engine.step()
    for event in events:
        if isinstance(event, RegionDone):
            height, width = event.pixels.shape[:2]
            made[event.y : event.y + height, event.x : event.x + width] = event.pixels
            covered[event.y : event.y + height, event.x : event.x + width] += 1
    assert (covered == 1).all()
    return made, events[-1].notes


def photo(width: int, height: int, dtype: Any = np.uint8) -> Any:
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(1)
    image = np.stack([x * 5 + y, 255 - y * 3, x * 2], axis=-1) % 256 * 0.8 + rng.integers(0, 50, (height, width, 3))
    return (image / 255 * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize(("dtype", "bound"), [(np.uint8, 1), (np.uint16, 8)])
@pytest.mark.parametrize("size", [(40, 28), (2, 3)])
def test_the_picture_is_the_cpu_engines(size: tuple[int, int], dtype: Any, bound: int) -> None:
    """In float32 within one level of 8 bits, within 8 of 16: the order of additions differs."""
    card, image = registry.card(COMPACT), photo(*size, dtype)
    ours, notes = run(load_realesrgan_engine(card, settings=SETTINGS), image)
    theirs, _ = run(RealEsrganEngine(card, settings=SETTINGS), image)

    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= bound
    assert notes["precision"] == "float32"


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_id", ["fourfold/realesrgan-x4plus", "fourfold/realsr-df2k", "fourfold/realesrgan-x4plus-anime"]
)
def test_the_large_networks_give_the_cpu_engines_picture(model_id: str) -> None:
    card, image = registry.card(model_id), photo(24, 20)
    ours, _ = run(load_realesrgan_engine(card, settings=SETTINGS), image)
    theirs, _ = run(RealEsrganEngine(card, settings=SETTINGS), image)

    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_float16_is_within_a_level_of_float32() -> None:
    """On a photo; what a GPU runs for 8-bit pictures, here on the CPU."""
    network = join(read_network(*(read_weights(file) for file in registry.card(COMPACT).weights)))
    pixels = np.asarray(Image.open(PHOTO).convert("RGB"))[60:84, 60:92]
    planes = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.inference_mode():
        half, whole = (
            (TorchNetwork(network, device=torch.device("cpu"), dtype=dtype).run(planes) * 255).round()
            for dtype in (torch.float16, torch.float32)
        )

    assert 0 < (half - whole).abs().max() <= 1


def test_batched_tiles_give_the_whole_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a level: a tile's margin is wide enough, and tiles of one step do not mix."""
    from dataclasses import replace

    card, image = registry.card(COMPACT), photo(150, 90)
    tiled_card = replace(card, tile_pixels=96 * 96, core_px=64)
    calls: list[int] = []
    original = TorchNetwork.run
    monkeypatch.setattr(TorchNetwork, "run", lambda self, x: calls.append(x.shape[0]) or original(self, x))
    whole, _ = run(load_realesrgan_engine(card, settings=SETTINGS), image)
    tiled, notes = run(load_realesrgan_engine(tiled_card, settings=SETTINGS), image)

    assert notes["tiles"] > 1
    assert calls == [1, notes["tiles"]]
    assert np.abs(tiled.astype(int) - whole.astype(int)).max() <= 1


def test_what_does_not_fit_is_refused_and_what_is_no_picture_too() -> None:
    card = registry.card(COMPACT)
    engine = load_realesrgan_engine(card, settings=EngineSettings(threads=1, memory_budget_bytes=card.fixed_bytes))
    with pytest.raises(OutOfMemoryError):
        engine.admit(EngineJob("a", photo(64, 64)))
    with pytest.raises(InvalidImageError):
        engine.admit(EngineJob("a", np.zeros((4, 4), np.uint8)))
    assert not engine.busy


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_full_memory_fails_the_job_and_not_the_next_one(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_realesrgan_engine(registry.card(COMPACT), settings=SETTINGS)

    def full(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(TorchNetwork, "run", full)
        engine.admit(EngineJob("a", photo(8, 8)))
        (ran_out,) = engine.step()
        (failed,) = engine.step()
    assert ran_out == MemoryRanOut("a", 64, goes_on=False)
    assert isinstance(failed, JobFailed) and isinstance(failed.error, OutOfMemoryError)
    assert run(engine, photo(8, 8))[0].shape == (32, 32, 3)


def test_cancelled_and_closed_engines_hold_nothing() -> None:
    engine = load_realesrgan_engine(registry.card(COMPACT), settings=SETTINGS)
    engine.admit(EngineJob("a", photo(8, 8)))
    engine.cancel("a")
    assert not engine.busy and engine.step() == []
    engine.admit(EngineJob("b", photo(8, 8)))
    engine.close()
    assert not engine.busy


def test_the_registry_takes_the_engine_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU by torch, a CPU by OpenVINO."""
    import fourfold.engine.realesrgan_torch as module

    made: list[str] = []
    monkeypatch.setattr(module, "load_realesrgan_engine", lambda card, *, settings: made.append(settings.device))
    registry.load_engine(COMPACT, settings=EngineSettings(threads=1, device="cuda:0"))

    assert made == ["cuda:0"]
    assert isinstance(registry.load_engine(COMPACT, settings=SETTINGS), RealEsrganEngine)
