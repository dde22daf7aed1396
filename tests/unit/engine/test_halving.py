"""Parts of a picture that run out of memory although they were planned to fit."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fourfold.engine import lanczos
from fourfold.engine.base import EngineEvent, EngineJob, JobDone, JobFailed, MemoryRanOut, Progress, RegionDone
from fourfold.engine.inference import Tuning
from fourfold.engine.lanczos import LanczosEngine
from fourfold.engine.openvino_cpu import Processor
from fourfold.engine.realesrgan import RealEsrganEngine
from fourfold.engine.registry import card
from fourfold.engine.settings import EngineSettings
from fourfold.errors import OutOfMemoryError

LANCZOS = replace(card("fourfold/lanczos"), tile_pixels=64 * 64, core_px=8)
COMPACT = replace(card("fourfold/realesr-animevideov3"), tile_pixels=64 * 64, core_px=8)

Engine = LanczosEngine | RealEsrganEngine


def photo(height: int, width: int) -> Any:
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 2 + y, 255 - y, 128 + 60 * np.sin(x / 9)], axis=-1) % 256 * 0.8
    return (rgb + rng.integers(0, 50, (height, width, 3))).astype(np.uint8)


def drain(engine: Engine, image: Any) -> list[EngineEvent]:
    engine.admit(EngineJob("a", image))
    events: list[EngineEvent] = []
    while engine.busy:
        events.extend(engine.step())
    return events


def put_together(events: list[EngineEvent], image: Any) -> Any:
    """Return the picture; every pixel must have come exactly once."""
    height, width = image.shape[:2]
    made = np.zeros((height * 4, width * 4, 3), image.dtype)
    times = np.zeros(made.shape[:2], int)
    for event in events:
        if isinstance(event, RegionDone):
            h, w = event.pixels.shape[:2]
            made[event.y : event.y + h, event.x : event.x + w] = event.pixels
            times[event.y : event.y + h, event.x : event.x + w] += 1
    assert (times == 1).all()
    return made


def short_of_memory(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, *, after: int, share: float
) -> list[tuple[int, int, int, int]]:
    """Leave no memory for tiles larger than a *share* of the first one once *after* tiles were begun.

    Returns: the windows of all tiles that were begun, filled while the test goes on.
    """
    begun: list[tuple[int, int, int, int]] = []
    compute: Any = engine._compute

    def note(job: EngineJob, part: Any, *more: Any) -> Any:
        window = getattr(part, "tile", part).window
        begun.append((window.left, window.top, window.right, window.bottom))
        return compute(job, part, *more)

    def allocate() -> None:
        first, last = ((right - left) * (bottom - top) for left, top, right, bottom in (begun[0], begun[-1]))
        if len(begun) > after and last > share * first:
            raise MemoryError

    read, run = lanczos.read_around, Processor.run

    def read_around(image: Any, box: Any) -> Any:
        allocate()
        return read(image, box)

    def run_model(self: Processor, model: Any, inputs: Any, **options: Any) -> Any:
        allocate()
        return run(self, model, inputs, **options)

    monkeypatch.setattr(engine, "_compute", note)
    monkeypatch.setattr(lanczos, "read_around", read_around)
    monkeypatch.setattr(Processor, "run", run_model)
    return begun


ENGINES: dict[str, tuple[Callable[[], Engine], int]] = {
    "lanczos": (lambda: LanczosEngine(LANCZOS, settings=EngineSettings(threads=1)), 0),
    "compact": (
        lambda: RealEsrganEngine(COMPACT, settings=EngineSettings(threads=1), tuning=Tuning(parts=2, small_pixels=0)),
        1,
    ),
}


@pytest.mark.parametrize("name", ENGINES)
def test_finished_tiles_stay_and_the_rest_is_halved(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is the one that enough memory gives: bit by bit by Lanczos, within a level in float32."""
    make, bound = ENGINES[name]
    image = photo(80, 120)
    engine = make()
    whole = drain(engine, image)
    expected = put_together(whole, image)
    tiles = sum(isinstance(event, RegionDone) for event in whole)
    with monkeypatch.context() as tight:
        begun = short_of_memory(tight, engine, after=2, share=0.8)
        events = drain(engine, image)
    made = put_together(events, image)

    assert np.abs(made.astype(int) - expected).max() <= bound
    ran_out = [event for event in events if isinstance(event, MemoryRanOut)]
    assert ran_out and all(event.goes_on for event in ran_out)
    assert sum(isinstance(event, RegionDone) for event in events[: events.index(ran_out[0])]) == 2
    assert len(set(begun)) == len(begun)  # nothing was computed twice
    assert len(begun) == len(ran_out) + sum(isinstance(event, RegionDone) for event in events)
    assert [e for e in events if isinstance(e, Progress)] == [e for e in whole if isinstance(e, Progress)]
    done = events[-1]
    assert isinstance(done, JobDone)
    assert done.notes["tiles"] == sum(isinstance(event, RegionDone) for event in events) > tiles
    assert any(f"ran out of memory {len(ran_out)} times" in warning for warning in done.notes["warnings"])
    assert np.array_equal(put_together(drain(engine, image), image), expected)
    engine.close()


@pytest.mark.parametrize("name", ENGINES)
def test_where_the_smallest_tile_does_not_fit_the_job_fails_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the code for it, each failure told; the engine holds nothing of it and does the next job."""
    make, bound = ENGINES[name]
    image = photo(80, 120)
    engine = make()
    expected = put_together(drain(engine, image), image)
    with monkeypatch.context() as tight:
        short_of_memory(tight, engine, after=1, share=0)
        events = drain(engine, image)

    *others, last = [event for event in events if isinstance(event, MemoryRanOut)]
    failed = events[-1]
    assert isinstance(failed, JobFailed) and isinstance(failed.error, OutOfMemoryError)
    assert others and all(event.goes_on for event in others) and not last.goes_on
    assert str(last.pixels) in failed.error.message
    assert not engine.busy
    assert np.abs(put_together(drain(engine, image), image).astype(int) - expected).max() <= bound
    engine.close()


def test_a_cancel_while_memory_is_short_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the failure and the smaller parts it is asked, as between any two steps."""
    engine = ENGINES["lanczos"][0]()
    short_of_memory(monkeypatch, engine, after=0, share=0)
    engine.admit(EngineJob("a", photo(80, 120)))
    (event,) = engine.step()
    engine.cancel("a")

    assert isinstance(event, MemoryRanOut)
    assert not engine.busy
    assert engine.step() == []


def test_a_batch_is_halved_before_its_tiles_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU several tiles run at once; one at a time may fit where all together do not."""
    torch = pytest.importorskip("torch", reason="needs the [diffusion] extra")
    torch.set_num_threads(1)
    from fourfold.engine.realesrgan_torch import TorchNetwork, load_realesrgan_engine

    engine = load_realesrgan_engine(COMPACT, settings=EngineSettings(threads=1))
    image = photo(80, 120)
    expected = put_together(drain(engine, image), image)  # type: ignore[arg-type]
    run, batches = TorchNetwork.run, list[int]()

    def one_at_a_time(self: TorchNetwork, pictures: Any) -> Any:
        batches.append(len(pictures))
        if len(pictures) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, pictures)

    monkeypatch.setattr(TorchNetwork, "run", one_at_a_time)
    events = drain(engine, image)  # type: ignore[arg-type]

    assert np.abs(put_together(events, image).astype(int) - expected).max() <= 1
    assert batches[0] > 1 and batches.count(1) == events[-1].notes["tiles"]  # type: ignore[union-attr]
