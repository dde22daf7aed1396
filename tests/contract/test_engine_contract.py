"""What every engine promises, whatever model it runs."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourfold.engine.base import EngineEvent, EngineJob, JobDone, Precision, Progress, RegionDone, UpscaleEngine
from fourfold.engine.inference import Tuning
from fourfold.engine.lanczos import LanczosEngine
from fourfold.engine.realesrgan import RealEsrganEngine
from fourfold.engine.registry import card, load_engine
from fourfold.engine.settings import EngineSettings
from fourfold.errors import InvalidImageError, OutOfMemoryError

ONE_THREAD = EngineSettings(threads=1)


def shipped(model_id: str) -> Callable[[], UpscaleEngine]:
    """The model as it is loaded by its id."""
    return lambda: load_engine(model_id, settings=ONE_THREAD)


def lanczos_in_tiles() -> UpscaleEngine:
    """Several tiles, so that order and seams show at sizes that take no time."""
    about = replace(card("fourfold/lanczos"), tile_pixels=12 * 12, core_px=5)
    return LanczosEngine(about, settings=EngineSettings(threads=2))


def compact_in_tiles() -> UpscaleEngine:
    """Several tiles in several pieces; the card's own margin."""
    about = replace(card("fourfold/realesr-animevideov3"), tile_pixels=48 * 48, core_px=8)
    return RealEsrganEngine(about, settings=ONE_THREAD, tuning=Tuning(parts=2, small_pixels=0))


def compact_by_torch() -> UpscaleEngine:
    """What a GPU would run, here on the CPU; several tiles."""
    pytest.importorskip("torch", reason="needs the [diffusion] extra")
    from fourfold.engine.realesrgan_torch import load_realesrgan_engine

    about = replace(card("fourfold/realesr-animevideov3"), tile_pixels=48 * 48, core_px=8)
    return load_realesrgan_engine(about, settings=ONE_THREAD)


def own_network() -> UpscaleEngine:
    """A file of an operator's own, run by spandrel; several tiles. Its content is in memory once it is loaded."""
    pytest.importorskip("torch", reason="needs the [networks] extra")
    from fourfold.engine.network_torch import load_network_engine
    from fourfold.engine.networks import network_card
    from fourfold.testing.networks import write_compact

    with tempfile.TemporaryDirectory() as folder:
        network = write_compact(Path(folder) / "mine.safetensors")
        about = replace(network_card("local/mine", network), tile_pixels=48 * 48, core_px=8, margin_px=16)
        return load_network_engine(about, settings=replace(ONE_THREAD, networks={"local/mine": network}))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(shipped("fourfold/lanczos"), id="lanczos"),
        pytest.param(lanczos_in_tiles, id="lanczos-in-tiles"),
        pytest.param(shipped("fourfold/realesr-animevideov3"), id="compact"),
        pytest.param(compact_in_tiles, id="compact-in-tiles"),
        pytest.param(compact_by_torch, id="compact-by-torch"),
        pytest.param(own_network, id="own-network"),
        pytest.param(shipped("fourfold/realesrgan-x4plus"), id="photo", marks=pytest.mark.slow),
        pytest.param(shipped("fourfold/realsr-df2k"), id="clean-photo", marks=pytest.mark.slow),
        pytest.param(shipped("fourfold/realesrgan-x4plus-anime"), id="anime", marks=pytest.mark.slow),
    ],
)
def engine(request: pytest.FixtureRequest) -> Iterator[UpscaleEngine]:
    """One engine for the whole module, as in a worker: what one test leaves in it, the next one sees."""
    made: UpscaleEngine = request.param()
    yield made
    made.close()


def picture(height: int, width: int, dtype: Any = np.uint8, seed: int = 0) -> Any:
    """Return soft shapes with an edge and some noise, full range."""
    y, x = np.mgrid[:height, :width]
    unit = np.stack([0.5 + 0.5 * np.sin(x / 5 + seed), 0.5 + 0.4 * np.cos(y / 4 - x / 9), x / width], axis=-1)
    unit[height // 2 :, width // 3 : width // 2] = (0.9, 0.1, 0.3)
    unit += np.random.default_rng(seed).normal(0, 0.02, unit.shape)
    return np.rint(np.clip(unit, 0, 1) * np.iinfo(dtype).max).astype(dtype)


def drain(engine: UpscaleEngine) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    while engine.busy:
        events.extend(engine.step())
    return events


def assemble(events: list[EngineEvent], job: EngineJob) -> Any:
    """Return the output image of *job*, having checked that each of its pixels was delivered exactly once."""
    height, width = job.image.shape[:2]
    made = np.zeros((4 * height, 4 * width, 3), job.image.dtype)
    times = np.zeros((4 * height, 4 * width), np.int32)
    for event in events:
        if isinstance(event, RegionDone) and event.job_id == job.job_id:
            h, w = event.pixels.shape[:2]
            assert event.pixels.dtype == job.image.dtype
            assert 0 <= event.x <= 4 * width - w
            assert 0 <= event.y <= 4 * height - h
            made[event.y : event.y + h, event.x : event.x + w] = event.pixels
            times[event.y : event.y + h, event.x : event.x + w] += 1
    assert (times == 1).all()
    return made


def upscale(engine: UpscaleEngine, image: Any, **options: Any) -> Any:
    job = EngineJob("job", image, **options)
    engine.admit(job)
    return assemble(drain(engine), job)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 37), (37, 1), (2, 3), (5, 7), (33, 40)])
def test_any_size_and_depth_comes_out_four_times_as_large(
    engine: UpscaleEngine, height: int, width: int, dtype: Any
) -> None:
    """Every pixel once, in the depth that went in, and recognisably the same picture."""
    image = picture(height, width, dtype)
    made = upscale(engine, image)

    assert abs(made.mean() - image.mean()) < 0.12 * np.iinfo(dtype).max


def test_a_flat_picture_stays_about_flat(engine: UpscaleEngine) -> None:
    """No seams, no frame at the border beyond what a zero-padding network draws, no drift of the level."""
    made = upscale(engine, np.full((40, 52, 3), 128, np.uint8))

    assert np.abs(made[40:-40, 40:-40].astype(int) - 128).max() <= 6


def test_progress_runs_to_the_announced_total_before_the_end(engine: UpscaleEngine) -> None:
    """Regions and progress come before the end, which comes once and says how it ran."""
    engine.admit(EngineJob("a", picture(33, 40)))
    events = drain(engine)

    progress = [event for event in events if isinstance(event, Progress)]
    ends = [event for event in events if isinstance(event, JobDone)]
    assert [p.done for p in progress] == list(range(1, progress[0].total + 1))
    assert {p.total for p in progress} == {len(progress)}
    assert ends == [events[-1]]
    assert ends[0].notes["precision"] == "float32"
    assert ends[0].notes["tiles"] == sum(isinstance(event, RegionDone) for event in events)


def test_one_step_does_not_do_everything(engine: UpscaleEngine) -> None:
    """What has several steps shows them one at a time, so that the pipe is read in between."""
    engine.admit(EngineJob("a", picture(33, 40)))
    steps = 0
    while engine.busy:
        steps += 1
        progress = [event for event in engine.step() if isinstance(event, Progress)]
        assert [p.done for p in progress] == [steps]


def test_the_same_job_gives_the_same_bytes(engine: UpscaleEngine) -> None:
    """Alone on one device, whatever ran before."""
    image = picture(20, 30)
    first = upscale(engine, image)
    upscale(engine, picture(9, 8, np.uint16))

    assert np.array_equal(first, upscale(engine, image))


def test_prompt_seed_and_steps_change_nothing_where_the_card_says_so(engine: UpscaleEngine) -> None:
    """A model that is blind to them says so, instead of refusing them."""
    assert not engine.card.guided_by_prompt
    image = picture(8, 9)

    made = upscale(engine, image, prompt="a white cat", seed=2**64 - 1, num_inference_steps=99)
    assert np.array_equal(upscale(engine, image), made)


def test_float32_may_be_asked_for(engine: UpscaleEngine) -> None:
    """It is what these settings run anyway."""
    image = picture(8, 9)

    assert np.array_equal(upscale(engine, image), upscale(engine, image, precision=Precision.FLOAT32))


def test_the_picture_is_read_not_written(engine: UpscaleEngine) -> None:
    """It may be a read-only memory map, or a view of something larger."""
    image = picture(20, 30)
    image.setflags(write=False)
    view = np.zeros((20, 60, 3), np.uint8)[:, ::2]
    view[:] = image

    assert np.array_equal(upscale(engine, image), upscale(engine, view))


def test_a_memory_map_is_a_picture(engine: UpscaleEngine, tmp_path: Any) -> None:
    """As the worker's child hands it over."""
    image = picture(20, 30, np.uint16)
    stored = np.memmap(tmp_path / "image.raw", np.uint16, "w+", shape=image.shape)
    stored[:] = image

    assert np.array_equal(upscale(engine, image), upscale(engine, stored))


def test_two_jobs_share_the_device_and_get_their_own(engine: UpscaleEngine) -> None:
    """Both are as they would be alone, and neither waits for the whole of the other."""
    jobs = [EngineJob("a", picture(40, 40, seed=1)), EngineJob("b", picture(33, 20, np.uint16, seed=2))]
    alone = [upscale(engine, job.image) for job in jobs]
    for job in jobs:
        engine.admit(job)
    events = drain(engine)

    for job, expected in zip(jobs, alone, strict=True):
        assert np.array_equal(assemble(events, job), expected)
    order = [event.job_id for event in events if isinstance(event, RegionDone)]
    assert order.index("b") <= 1


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint16),
    ],
)
def test_wrong_arrays_are_refused_at_the_door(engine: UpscaleEngine, image: Any) -> None:
    """Nothing of them stays behind."""
    with pytest.raises(InvalidImageError):
        engine.admit(EngineJob("a", image))

    assert not engine.busy
    assert engine.step() == []


def test_a_cancelled_job_says_nothing_more(engine: UpscaleEngine) -> None:
    """Before its first step and between two; the other job goes on as if alone."""
    image = picture(33, 40)
    expected = upscale(engine, image)
    kept = EngineJob("kept", image)
    engine.admit(EngineJob("early", image))
    engine.admit(kept)
    engine.admit(EngineJob("late", image))
    engine.cancel("early")
    events = list(engine.step())
    engine.cancel("late")
    events += drain(engine)

    assert {event.job_id for event in events} == {"kept"}
    assert np.array_equal(assemble(events, kept), expected)


@pytest.mark.parametrize("turn", range(3))
def test_a_job_is_cancelled_from_another_thread_in_mid_step(engine: UpscaleEngine, turn: int) -> None:
    """Wherever the step is just then; the next job gets what it would have got."""
    image = picture(20, 30)
    expected = upscale(engine, image)
    reading = threading.Event()

    class Watched(np.ndarray):  # type: ignore[type-arg]
        """Tells when the engine reads a region, which it does within a step."""

        def __getitem__(self, index: Any) -> Any:
            reading.set()
            return np.asarray(super().__getitem__(index))

    def cancel() -> None:
        reading.wait()
        engine.cancel("doomed")

    engine.admit(EngineJob("doomed", picture(60, 70 + turn).view(Watched)))
    thread = threading.Thread(target=cancel)
    thread.start()
    while engine.busy and not reading.is_set():
        engine.step()
    thread.join()
    after = [event for event in drain(engine) if event.job_id == "doomed"]

    assert after == []
    assert np.array_equal(upscale(engine, image), expected)


def test_cancelling_what_is_not_there_is_fine(engine: UpscaleEngine) -> None:
    """The job may just have ended."""
    engine.cancel("nobody")
    upscale(engine, picture(3, 4))
    engine.cancel("job")

    assert not engine.busy


def test_an_idle_engine_has_nothing_to_say(engine: UpscaleEngine) -> None:
    """The child's loop may step it at any time."""
    assert not engine.busy
    assert list(engine.step()) == []


@pytest.mark.parametrize("make", [lanczos_in_tiles, compact_in_tiles])
def test_a_closed_engine_has_forgotten_its_jobs(make: Callable[[], UpscaleEngine]) -> None:
    """Closing frees the memory whether or not there is work left."""
    engine = make()
    engine.admit(EngineJob("a", picture(33, 40)))
    engine.step()
    engine.close()

    assert not engine.busy


@pytest.mark.parametrize("model_id", ["fourfold/lanczos", "fourfold/realesr-animevideov3"])
def test_a_job_that_cannot_fit_is_refused_at_the_door(model_id: str) -> None:
    """By the card's own formula, before anything is computed; what fits is still taken."""
    about = card(model_id)
    small = 12 * 12
    engine = load_engine(model_id, settings=replace(ONE_THREAD, memory_budget_bytes=about.peak_bytes(small)))
    with pytest.raises(OutOfMemoryError, match="the memory budget is"):
        engine.admit(EngineJob("a", picture(300, 300)))

    assert not engine.busy
    assert upscale(engine, picture(12, 12)).shape == (48, 48, 3)
    engine.close()
