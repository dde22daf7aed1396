"""The Real-ESRGAN engine: which number type runs, what its weights must be, and that its pictures are right."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fourfold.engine.admission import window_of
from fourfold.engine.base import (
    EngineEvent,
    EngineJob,
    JobDone,
    JobFailed,
    MemoryRanOut,
    Precision,
    Progress,
    RegionDone,
)
from fourfold.engine.inference import Inference, Tuning
from fourfold.engine.realesrgan import RealEsrganEngine
from fourfold.engine.registry import card
from fourfold.engine.settings import EngineSettings
from fourfold.engine.tiling import Box, Tile
from fourfold.errors import ModelUnavailableError

COMPACT = card("fourfold/realesr-animevideov3")


def engine(
    *, has_bf16: bool = False, precision: Precision = Precision.AUTO, tuning: Tuning | None = None
) -> RealEsrganEngine:
    settings = EngineSettings(threads=1, precision=precision, has_bf16=has_bf16)
    return RealEsrganEngine(COMPACT, settings=settings, tuning=tuning)


def drain(model: RealEsrganEngine) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    while model.busy:
        events.extend(model.step())
    return events


def picture(height: int, width: int) -> np.ndarray:
    """Return waves, a ramp, a disc and a line: what the stored numbers below were made of."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack(
        [
            128 + 90 * np.sin(x / 3.1 + y / 7.3),
            128 + 70 * np.sin(y / 2.3) * np.cos(x / 5.9),
            40.0 + 6 * x + 2 * y,
        ],
        axis=-1,
    )
    rgb[(x - width // 2) ** 2 + (y - height // 3) ** 2 < height] = (230, 60, 20)
    rgb[height // 2 :, width // 2 : width // 2 + 2] = 15
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("has_bf16", "settings_precision", "job_precision", "dtype", "expected"),
    [
        (True, Precision.AUTO, Precision.AUTO, np.uint8, "bfloat16"),
        (False, Precision.AUTO, Precision.AUTO, np.uint8, "float32"),
        (True, Precision.FLOAT32, Precision.AUTO, np.uint8, "float32"),
        (True, Precision.AUTO, Precision.FLOAT32, np.uint8, "float32"),
        (True, Precision.AUTO, Precision.AUTO, np.uint16, "float32"),
    ],
)
def test_bfloat16_runs_only_where_nothing_speaks_against_it(
    monkeypatch: pytest.MonkeyPatch,
    has_bf16: bool,
    settings_precision: Precision,
    job_precision: Precision,
    dtype: Any,
    expected: str,
) -> None:
    """The processor has it, nobody asked for float32, and 8 bits are enough; the hint is set in either case."""
    hints = []
    init = Inference.__init__

    def note(self: Inference, network: Any, **options: Any) -> None:
        init(self, network, **options)
        hints.append((options["is_bf16"], self._processor._properties["INFERENCE_PRECISION_HINT"]))

    monkeypatch.setattr(Inference, "__init__", note)
    model = engine(has_bf16=has_bf16, precision=settings_precision)
    model.admit(EngineJob("a", np.zeros((2, 2, 3), dtype), precision=job_precision))
    *_, done = drain(model)

    assert isinstance(done, JobDone)
    assert done.notes["precision"] == expected
    assert hints[-1] == ((True, "bf16") if expected == "bfloat16" else (False, "f32"))
    assert len(hints) == 1 + (has_bf16 and settings_precision is Precision.AUTO and expected == "float32")


def test_jobs_of_both_number_types_run_side_by_side() -> None:
    """The second one is compiled by the first job that needs it, and each result is its own."""
    model = engine(has_bf16=True)
    image = picture(9, 8)
    model.admit(EngineJob("deep", image.astype(np.uint16) * 257))
    model.admit(EngineJob("plain", image))
    regions = {event.job_id: event.pixels for event in drain(model) if isinstance(event, RegionDone)}

    assert regions["deep"].dtype == np.uint16
    assert regions["plain"].dtype == np.uint8
    assert np.abs(regions["deep"] / 257 - regions["plain"]).max() < 8  # bfloat16 against float32


def test_progress_counts_the_pieces_of_all_tiles() -> None:
    """The total never changes, and done reaches it."""
    tiled = replace(COMPACT, tile_pixels=40 * 40, core_px=16, margin_px=4)
    model = RealEsrganEngine(tiled, settings=EngineSettings(threads=1), tuning=Tuning(parts=3, small_pixels=0))
    model.admit(EngineJob("a", picture(30, 70)))
    events = drain(model)

    progress = [event for event in events if isinstance(event, Progress)]
    tiles = sum(isinstance(event, RegionDone) for event in events)
    assert progress == [Progress("a", done, 3 * tiles) for done in range(1, 3 * tiles + 1)]
    assert tiles == 2


def test_a_network_that_nobody_has_measured_runs() -> None:
    """A model needs its card and nothing else; in one go and in pieces it makes the picture of a tuned one."""
    settings = EngineSettings(threads=1)
    unmeasured = RealEsrganEngine(replace(COMPACT, model_id="fourfold/new"), settings=settings)
    for height, width in ((20, 30), (100, 100)):  # the second one is beyond what float32 runs in one go
        images = []
        for model in (unmeasured, engine()):
            model.admit(EngineJob("job", picture(height, width)))
            (made,) = (event for event in drain(model) if isinstance(event, RegionDone))
            images.append(made.pixels.astype(int))

        assert np.abs(images[0] - images[1]).max() <= 1


def test_a_cancel_stops_the_running_tile() -> None:
    """It ends long before its steps are done, says nothing, and the next job gets what it would have got."""
    model = engine()
    small = picture(9, 8)
    model.admit(EngineJob("before", small))
    before = next(event for event in drain(model) if isinstance(event, RegionDone)).pixels
    started = threading.Event()

    class Watched(np.ndarray):  # type: ignore[type-arg]
        """Tells when the engine reads its region, which it does in the step."""

        def __getitem__(self, index: Any) -> Any:
            started.set()
            return np.asarray(super().__getitem__(index))

    def cancel() -> None:
        started.wait()
        while model._turns.is_step_cancelled is False:
            model.cancel("a")

    model.admit(EngineJob("a", np.zeros((600, 600, 3), np.uint8).view(Watched)))
    thread = threading.Thread(target=cancel)
    thread.start()
    assert model.step() == []
    thread.join()
    assert not model.busy

    model.admit(EngineJob("after", small))
    after = next(event for event in drain(model) if isinstance(event, RegionDone)).pixels
    assert np.array_equal(before, after)


def break_model(model: RealEsrganEngine, text: str) -> None:
    """Have the model for small tiles fail once with *text*, as OpenVINO does."""
    broken: Any = model._is_bf16_to_inference[False]
    whole = broken._whole_model

    class Request:
        output_tensors = ()

        def start_async(self, inputs: Any, share_inputs: bool) -> None: ...

        def set_output_tensor(self, i: int, tensor: Any) -> None: ...

        def wait(self) -> None:
            raise RuntimeError(text)

    class Model:
        outputs = whole.outputs

        def create_infer_request(self) -> Request:
            return Request()

        def release_memory(self) -> None: ...

    broken._whole_model = Model()


def test_a_failing_runtime_fails_the_job_and_not_the_engine() -> None:
    """The job's end carries the code for what happened; the next job runs in fresh models."""
    model = engine()
    break_model(model, "Exception from node.cpp:794:\n[CPU] out of luck\n\n")
    model.admit(EngineJob("a", picture(4, 4)))
    (failed,) = drain(model)
    model.admit(EngineJob("b", picture(4, 4)))
    *_, done = drain(model)

    assert isinstance(failed, JobFailed)
    assert failed.error.code == "worker_failed"
    assert "Exception from node.cpp:794: [CPU] out of luck" in failed.error.message
    assert isinstance(done, JobDone)


@pytest.mark.parametrize(
    "text",
    [
        "Check 'ptr' failed at cpu_memory.cpp:257:\nFailed to allocate 10240000 bytes of memory\n",
        "Exception from allocator.cpp:79:\nstd::bad_alloc\n",
    ],
)
def test_a_small_tile_that_runs_out_of_memory_goes_through_pieces(text: str) -> None:
    """In its way for small tiles the runtime needs more memory than in pieces; the picture is the same."""
    model = engine()
    model.admit(EngineJob("whole", picture(9, 8)))
    expected = next(event for event in drain(model) if isinstance(event, RegionDone)).pixels
    break_model(model, text)
    model.admit(EngineJob("a", picture(9, 8)))
    ran_out, region, _, done = drain(model)

    assert ran_out == MemoryRanOut("a", 72, goes_on=True)
    assert isinstance(region, RegionDone) and isinstance(done, JobDone)
    assert np.abs(region.pixels.astype(int) - expected).max() <= 1
    assert done.notes["tiles"] == 1


@pytest.mark.parametrize("wrong", [0, 1])
def test_wrong_weights_are_refused(wrong: int) -> None:
    """The text file as much as the numbers: both make the network."""
    files = list(COMPACT.weights)
    files[wrong] = replace(files[wrong], sha256="0" * 64)
    with pytest.raises(ModelUnavailableError, match=f"{files[wrong].name} .* expected 0{{64}}"):
        RealEsrganEngine(replace(COMPACT, weights=tuple(files)), settings=EngineSettings(threads=1))


def test_files_that_do_not_belong_together_are_refused() -> None:
    """Each is right by itself."""
    files = (COMPACT.weights[0], card("fourfold/realesrgan-x4plus-anime").weights[1])
    with pytest.raises(ModelUnavailableError, match="the network's files cannot be read"):
        RealEsrganEngine(replace(COMPACT, weights=files), settings=EngineSettings(threads=1))


PLACES = ((0, 0), (11, 13), (26, 47), (50, 49), (79, 95))


@pytest.mark.parametrize(
    ("model_id", "mean", "std", "at_places"),
    [
        (
            "fourfold/realesr-animevideov3",
            [0.612817, 0.446354, 0.450435],
            [0.268537, 0.197637, 0.243967],
            [
                [0.49359, 0.4449, 0.1358],
                [0.80175, 0.69485, 0.22632],
                [0.93859, 0.21417, 0.06686],
                [0.11545, 0.16614, 0.19155],
                [0.35026, 0.29669, 0.83991],
            ],
        ),
        pytest.param(
            "fourfold/realesrgan-x4plus",
            [0.604671, 0.440813, 0.432207],
            [0.253888, 0.180708, 0.243924],
            [
                [0.53877, 0.46909, 0.23026],
                [0.77639, 0.67647, 0.23857],
                [0.94588, 0.21322, 0.00789],
                [0.05436, 0.02843, 0.03413],
                [0.33143, 0.42647, 0.71521],
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "fourfold/realesrgan-x4plus-anime",
            [0.621177, 0.445985, 0.425413],
            [0.276257, 0.185298, 0.262389],
            [
                [0.507, 0.41901, 0.1827],
                [0.82444, 0.71221, 0.17812],
                [0.95885, 0.21369, 0.00565],
                [0.06228, 0.03054, 0.04381],
                [0.34265, 0.36591, 0.77092],
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "fourfold/realsr-df2k",
            [0.607726, 0.44017, 0.430058],
            [0.264759, 0.184997, 0.231344],
            [
                [0.52006, 0.4604, 0.14833],
                [0.82633, 0.7008, 0.24036],
                [0.88774, 0.21584, 0.05544],
                [0.02752, 0.02449, 0.04174],
                [0.2753, 0.33643, 0.75923],
            ],
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.parametrize("small_pixels", [10**6, 0])
def test_the_pictures_are_those_of_ncnn(
    model_id: str, mean: list[float], std: list[float], at_places: list[list[float]], small_pixels: int
) -> None:
    """Numbers stored from the ncnn wheel 1.0.20261020 in float32 without Winograd; 16 bits show 5 digits of them."""
    tuning = Tuning(parts=4, small_pixels=small_pixels)
    model = RealEsrganEngine(card(model_id), settings=EngineSettings(threads=1), tuning=tuning)
    model.admit(EngineJob("a", picture(20, 24).astype(np.uint16) * 257))
    regions = [event for event in drain(model) if isinstance(event, RegionDone)]
    made = regions[0].pixels / 65535

    assert made.shape == (80, 96, 3)
    assert np.abs(made.mean(axis=(0, 1)) - mean).max() < 2e-5
    assert np.abs(made.std(axis=(0, 1)) - std).max() < 2e-5
    for (y, x), expected in zip(PLACES, at_places, strict=True):
        assert np.abs(made[y, x] - expected).max() < 5e-5


@pytest.mark.parametrize(
    "model_id",
    [
        "fourfold/realesr-animevideov3",
        pytest.param("fourfold/realesrgan-x4plus", marks=pytest.mark.slow),
        pytest.param("fourfold/realsr-df2k", marks=pytest.mark.slow),
        pytest.param("fourfold/realesrgan-x4plus-anime", marks=pytest.mark.slow),
    ],
)
def test_a_picture_of_a_pixel_or_two_keeps_its_colour(model_id: str) -> None:
    """Alone in the black that convolutions see beyond a border, one came back up to a hundred levels off."""
    model = RealEsrganEngine(card(model_id), settings=EngineSettings(threads=1))
    colour = np.array([10, 70, 25])
    for height, width in ((1, 1), (1, 9), (3, 2), (40, 1)):
        model.admit(EngineJob("a", np.broadcast_to(colour.astype(np.uint8), (height, width, 3)).copy()))
        (made,) = [event.pixels for event in drain(model) if isinstance(event, RegionDone)]

        assert made.shape == (4 * height, 4 * width, 3)
        assert np.abs(made.astype(int).mean(axis=(0, 1)) - colour).max() < 8


def test_what_a_tile_sees_of_a_small_picture_is_continued_by_its_edge() -> None:
    """And not where the picture is large enough."""
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    tile = Tile(Box(0, 0, 3, 2), Box(0, 0, 3, 2))

    seen, keep = window_of(image, tile, min_side_px=5)
    assert (keep, seen.shape) == (Box(1, 1, 4, 3), (5, 5, 3))
    assert np.array_equal(seen[1:3, 1:4], image) and np.array_equal(seen[0, 1:4], image[0])
    whole, kept = window_of(image, tile, min_side_px=2)
    assert whole.shape == image.shape and kept == tile.core
