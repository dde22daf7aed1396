"""Running a network tile by tile."""

import threading
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest

from fourfold.engine.base import Pixels8or16
from fourfold.engine.inference import Inference, Tuning
from fourfold.engine.ncnn_files import read_network
from fourfold.engine.pieces import join
from fourfold.engine.tiling import Box
from fourfold.errors import CancelledByClientError, ModelUnavailableError, WorkerFailedError

IN_ONE_GO = Tuning(parts=3, small_pixels=10**6)
IN_PIECES = Tuning(parts=3, small_pixels=0)


def inference(files: tuple[bytes, bytes], tuning: Tuning) -> Inference:
    return Inference(join(read_network(*files)), is_bf16=False, threads=1, tuning=tuning)


def run(work: Generator[tuple[()], None, Pixels8or16]) -> tuple[int, Pixels8or16]:
    """Return how many steps *work* took, and its result."""
    steps = 1
    while True:
        try:
            next(work)
        except StopIteration as end:
            return steps, end.value
        steps += 1


def never() -> bool:
    return False


def picture(height: int, width: int, dtype: Any = np.uint8) -> Any:
    return np.random.default_rng(3).integers(0, np.iinfo(dtype).max, (height, width, 3), dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tuning", [IN_ONE_GO, IN_PIECES])
def test_the_result_is_what_the_layers_say(
    network_files: tuple[bytes, bytes], compute: Callable[..., Any], tuning: Tuning, dtype: Any
) -> None:
    """Every way to run it gives the levels that the definition in float64 gives, rounded."""
    image = picture(7, 5, dtype)
    peak = np.iinfo(dtype).max
    _, made = run(inference(network_files, tuning).run(image, Box(0, 0, 5, 7), is_stopped=never))

    unit = compute(read_network(*network_files), image.transpose(2, 0, 1) / peak)
    expected = np.clip(unit, 0, 1).transpose(1, 2, 0) * peak
    assert made.shape == (28, 20, 3)
    assert dtype == made.dtype
    assert np.abs(made - expected).max() <= 0.5 + peak * 1e-5


@pytest.mark.parametrize("tuning", [IN_ONE_GO, IN_PIECES])
def test_only_the_wanted_part_is_returned(
    network_files: tuple[bytes, bytes], tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The margin is computed and left away, whatever the bands of the tail."""
    monkeypatch.setattr("fourfold.engine.inference.BAND_PIXELS", 40)
    image = picture(23, 17)
    engine = inference(network_files, tuning)
    _, whole = run(engine.run(image, Box(0, 0, 17, 23), is_stopped=never))
    for keep in (Box(0, 0, 17, 23), Box(3, 5, 9, 11), Box(16, 22, 17, 23), Box(0, 22, 1, 23), Box(5, 0, 17, 2)):
        _, part = run(engine.run(image, keep, is_stopped=never))
        expected = whole[4 * keep.top : 4 * keep.bottom, 4 * keep.left : 4 * keep.right]
        assert np.abs(part.astype(int) - expected).max() <= 1


def test_the_steps_are_as_announced(rrdb_files: tuple[bytes, bytes]) -> None:
    """A small tile is one step, a large one as many as the body has pieces; float32 counts as large sooner."""
    engine = inference(rrdb_files, Tuning(parts=3, small_pixels=200))
    for size, expected in (((10, 10), 1), ((10, 11), 3), ((1, 1), 1)):
        steps, _ = run(engine.run(picture(*size), Box(0, 0, size[1], size[0]), is_stopped=never))
        assert expected == steps == engine.steps(*size)


def test_a_change_of_size_compiles_anew(rrdb_files: tuple[bytes, bytes]) -> None:
    """Pieces are made for one size; the next size gets its own, and the first one again its own."""
    engine = inference(rrdb_files, IN_PIECES)
    images = [picture(9, 6), picture(6, 9), picture(9, 6)]
    made = [run(engine.run(im, Box(0, 0, *im.shape[1::-1]), is_stopped=never))[1] for im in images]

    assert [m.shape for m in made] == [(36, 24, 3), (24, 36, 3), (36, 24, 3)]
    assert np.array_equal(made[0], made[2])


@pytest.mark.parametrize("tuning", [IN_ONE_GO, IN_PIECES])
def test_nothing_is_started_for_a_stopped_job(network_files: tuple[bytes, bytes], tuning: Tuning) -> None:
    """The last look before the processor is set to work."""
    with pytest.raises(CancelledByClientError):
        run(inference(network_files, tuning).run(picture(4, 4), Box(0, 0, 4, 4), is_stopped=lambda: True))


def test_stopping_ends_a_running_tile(rrdb_files: tuple[bytes, bytes]) -> None:
    """The other thread waits for the start, stops it, and the tile after it is right."""
    engine = inference(rrdb_files, IN_ONE_GO)
    image, started = picture(700, 700), threading.Event()
    box = Box(0, 0, 4, 4)
    _, before = run(engine.run(image[:4, :4], box, is_stopped=never))

    def stop() -> None:
        started.wait()
        engine.stop()  # waits for the lock that `is_stopped` is asked under: the tile runs by then

    def starting() -> bool:
        started.set()
        return False

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(WorkerFailedError, match="OpenVINO failed"):
        run(engine.run(image, Box(0, 0, 700, 700), is_stopped=starting))
    thread.join()

    _, after = run(engine.run(image[:4, :4], box, is_stopped=never))
    assert np.array_equal(before, after)


def test_stopping_while_nothing_runs_changes_nothing(rrdb_files: tuple[bytes, bytes]) -> None:
    """A cancellation may come a moment too late."""
    engine = inference(rrdb_files, IN_ONE_GO)
    engine.stop()
    steps, _ = run(engine.run(picture(4, 4), Box(0, 0, 4, 4), is_stopped=never))

    assert steps == 1


def test_a_network_that_openvino_cannot_compile_is_unavailable(rrdb_files: tuple[bytes, bytes]) -> None:
    """Its exceptions do not leave the package."""
    with pytest.raises(ModelUnavailableError, match="OpenVINO cannot compile the network"):
        Inference(join(read_network(*rrdb_files)), is_bf16=False, threads=-1, tuning=IN_ONE_GO)


def test_a_tuning_is_no_promise_of_pieces(network_files: tuple[bytes, bytes]) -> None:
    """A network with fewer narrow places than parts has fewer steps."""
    engine = inference(network_files, Tuning(parts=99, small_pixels=0))
    steps, _ = run(engine.run(picture(3, 3), Box(0, 0, 3, 3), is_stopped=never))

    assert 1 < steps == engine.steps(3, 3) < 99
