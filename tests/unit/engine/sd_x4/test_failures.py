"""What a job is refused for, what breaks in it, and what is told: the right error, nothing held, the next job fine."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fourfold.engine import sd_x4_decode, sd_x4_unet
from fourfold.engine.base import DiffusionOptions, EngineJob, JobFailed, Mode
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.errors import (
    InvalidImageError,
    InvalidParameterError,
    OutOfMemoryError,
    WorkerFailedError,
)
from fourfold.testing.sd_x4_stock import job, notes, picture, pixels, run, upscale

Make = Callable[..., StableDiffusionX4Engine]


def failure(events: Any) -> Any:
    (failed,) = [event for event in events if isinstance(event, JobFailed)]
    return failed.error


# Parameters.


@pytest.mark.parametrize("noise_level", [-1, 351, 20.7, float("nan"), True, "20"])
def test_a_noise_level_that_is_no_whole_number_from_0_to_350_is_refused(noise_level: Any) -> None:
    with pytest.raises(InvalidParameterError, match="noise_level"):
        DiffusionOptions(noise_level=noise_level)


@pytest.mark.parametrize("guidance", [-3.0, float("nan"), float("inf")])
def test_guidance_must_be_a_number_of_at_least_0(guidance: float) -> None:
    with pytest.raises(InvalidParameterError, match="guidance_scale"):
        DiffusionOptions(guidance_scale=guidance)


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_guidance_up_to_1_asks_only_once(engine: StableDiffusionX4Engine, guidance: float) -> None:
    """The picture with 0 is that with 1: the prompt is followed without emphasis, as in the stock pipeline."""
    assert np.array_equal(
        upscale(engine, job(steps=1, guidance_scale=guidance)), upscale(engine, job(steps=1, guidance_scale=0.5))
    )


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("steps", [0, -1, 1000, 1001])
def test_a_step_count_out_of_range_is_refused(engine: StableDiffusionX4Engine, steps: int, mode: Mode) -> None:
    """1000 as well: the first timestep would be 1000, of 0 to 999; the stock pipeline ends with an IndexError."""
    with pytest.raises(InvalidParameterError, match="num_inference_steps must be 1 to 999"):
        engine.admit(job(steps=steps, mode=mode))


@pytest.mark.parametrize("mode", Mode)
def test_the_largest_step_count_is_taken(engine: StableDiffusionX4Engine, mode: Mode) -> None:
    engine.admit(job(steps=999, mode=mode))
    timesteps = [step.timestep for step in engine._running[0].steps]
    engine.cancel("a")

    assert len(timesteps) == 999
    assert max(timesteps) <= 999


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(engine: StableDiffusionX4Engine, seed: int) -> None:
    with pytest.raises(InvalidParameterError, match="seed"):
        engine.admit(job(seed=seed))


def test_a_model_may_know_fewer_noise_levels(engine: StableDiffusionX4Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_modules", replace(engine._modules, max_noise_level=10))
    with pytest.raises(InvalidParameterError, match="up to 10"):
        engine.admit(job(noise_level=11))


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))])
def test_what_is_no_picture_is_refused(engine: StableDiffusionX4Engine, image: Any) -> None:
    with pytest.raises(InvalidImageError):
        engine.admit(EngineJob("a", image))


def test_absent_steps_are_the_cards_and_fast_ones_fewer(engine: StableDiffusionX4Engine) -> None:
    for mode, steps in ((Mode.EXACT, 75), (Mode.FAST, 25)):
        engine.admit(job(mode.value, steps=None, mode=mode))
        assert len(engine._running[0].steps) == steps
        assert engine._running[0].notes["mode"] == mode.value
        engine.cancel(mode.value)


def test_tokens_that_the_model_cannot_read_are_told(engine: StableDiffusionX4Engine) -> None:
    """A prompt beyond 77 tokens still runs; the job's end says what was left out."""
    long = notes(run(engine, job(steps=1, prompt="cat " * 80, negative_prompt="cat " * 76)))
    short = notes(run(engine, job(steps=1)))

    assert long["warnings"] == [
        "the last 5 tokens of the prompt were not used: the model reads 77",
        "the last 1 tokens of the negative_prompt were not used: the model reads 77",
    ]
    assert "warnings" not in short


def test_libraries_write_nothing_into_the_log(
    make_engine: Callable[..., StableDiffusionX4Engine], capfd: pytest.CaptureFixture[str]
) -> None:
    """No bar while weights are loaded, no warning of what the job's end tells."""
    engine = make_engine()
    engine.admit(job(prompt="cat " * 80))
    engine.close()

    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [(1, 1), (65, 67)])
def test_every_size_comes_back_exactly_four_times_as_large(
    engine: StableDiffusionX4Engine, size: tuple[int, int]
) -> None:
    made = upscale(engine, job("a", picture(*size), steps=1, guidance_scale=1.0))

    assert made.shape == (size[1] * 4, size[0] * 4, 3)


def test_pictures_of_different_sizes_keep_their_own(make_engine: Make) -> None:
    """The stock pipeline squashes a list of pictures to the first one's size."""
    events = run(make_engine(rows=(1, 2)), job("a", picture(64, 64), steps=1), job("b", picture(100, 40), steps=1))

    assert pixels(events, "a").shape == (256, 256, 3)
    assert pixels(events, "b").shape == (160, 400, 3)


# Numbers and memory.


def test_latents_that_are_not_finite_are_an_error_never_a_black_picture(
    engine: StableDiffusionX4Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = engine._predict
    with monkeypatch.context() as broken:
        broken.setattr(engine, "_predict", lambda rows, **how: [a * np.nan for a in original(rows, **how)])
        error = failure(run(engine, job(steps=1)))

    assert isinstance(error, WorkerFailedError)
    assert "network's answer is not finite" in error.message
    assert upscale(engine, job(steps=1)).std() > 0


def test_a_decode_that_overflows_is_done_again_in_float32(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 ends at 65,504; the picture is then the float32 one, and the job's end says so."""
    engine = make_engine()
    large = replace(engine._modules, scaling_factor=1e-7)
    monkeypatch.setattr(engine, "_modules", large)
    expected = upscale(engine, job(steps=1))
    monkeypatch.setattr(engine, "_modules", replace(large, decode_dtype=torch.float16))
    events = run(engine, job(steps=1))

    assert notes(events)["warnings"] == ["decoding in float16 overflowed"]
    assert np.array_equal(pixels(events), expected)


@pytest.mark.slow
def test_a_decode_in_float16_is_nearly_the_float32_one(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    expected = upscale(engine, job(steps=1))
    monkeypatch.setattr(engine, "_modules", replace(engine._modules, decode_dtype=torch.float16))

    half = upscale(engine, job(steps=1))
    assert np.sqrt(np.mean((half.astype(int) - expected.astype(int)) ** 2)) < 2


def test_a_decode_that_is_never_finite_fails(make_engine: Make) -> None:
    engine = make_engine()
    engine._modules.vae.decoder.conv_out.bias.data.fill_(torch.nan)

    assert "not finite" in failure(run(engine, job(steps=1))).message


def out_of_memory(times: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """Fail *times* times, then work."""
    left = [times]

    def maybe(*args: Any, **kwargs: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256.00 GiB")
        return original(*args, **kwargs)

    return maybe


@pytest.mark.parametrize(
    ("rows", "count", "expected_calls"),
    [
        ((1, 2), 1, [(1, 2), (1, 1), (1, 1)]),
        ((1, 2), 2, [(2, 2), (1, 2), (1, 2)]),
        ((4,), 2, [(4, 2), (1, 1), (1, 1), (1, 1), (1, 1)]),
    ],
    ids=["one", "two", "strict"],
)
def test_a_step_that_runs_out_of_memory_is_halved_once(
    make_engine: Make,
    monkeypatch: pytest.MonkeyPatch,
    rows: tuple[int, ...],
    count: int,
    expected_calls: list[tuple[int, int]],
) -> None:
    """A batch in two parts, a single row one prompt at a time: the same pictures to a level. Rows and ways of calls."""
    engine = make_engine(rows=rows)
    jobs = [job(name, steps=1, seed=i) for i, name in enumerate("ab"[:count])]
    expected = [pixels(run(engine, each), each.job_id) for each in jobs]
    calls: list[tuple[int, int]] = []
    short = out_of_memory(1, sd_x4_unet.predict)

    def counting(unet: Any, sample: Any, *rest: Any, ways: int) -> Any:
        calls.append((len(sample), ways))
        return short(unet, sample, *rest, ways=ways)

    monkeypatch.setattr("fourfold.engine.sd_x4_kernels.predict", counting)
    events = run(engine, *jobs)

    assert calls == expected_calls
    for each, before in zip(jobs, expected, strict=True):
        assert np.abs(pixels(events, each.job_id).astype(int) - before.astype(int)).max() <= 1
        assert notes(events, each.job_id)["out_of_memory_retries"] == 1


def test_a_step_that_runs_out_of_memory_twice_fails_with_the_size_that_would_fit(
    make_engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    with monkeypatch.context() as full:
        full.setattr("fourfold.engine.sd_x4_kernels.predict", out_of_memory(2, None))
        error = failure(run(engine, job("a", picture(128, 128), steps=1)))

    assert isinstance(error, OutOfMemoryError)
    assert "64 px square" in error.message
    assert upscale(engine, job(steps=1)).std() > 0


@pytest.mark.parametrize(("times", "fails"), [(1, False), (2, True)])
def test_a_decode_that_runs_out_of_memory_is_tried_again_in_smaller_strips(
    make_engine: Make, monkeypatch: pytest.MonkeyPatch, times: int, fails: bool
) -> None:
    engine = make_engine()
    expected = upscale(engine, job(steps=1))
    monkeypatch.setattr(sd_x4_decode, "_attend", out_of_memory(times, sd_x4_decode._attend))
    events = run(engine, job(steps=1))

    if fails:
        assert isinstance(failure(events), OutOfMemoryError)
    else:
        assert np.abs(pixels(events).astype(int) - expected.astype(int)).max() <= 1


def test_a_full_memory_is_understood_by_its_text_and_other_errors_are_not_swallowed(
    make_engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch has no class for a full memory on a CPU, nor in a GPU's libraries; else it reaches the process's edge."""
    engine = make_engine()
    full = [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
    ]
    messages = iter([*(text for text in full for _ in range(2)), "CUDA error: an illegal memory access"])

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError(next(messages))

    monkeypatch.setattr("fourfold.engine.sd_x4_kernels.predict", broken)
    for _ in full:
        assert isinstance(failure(run(engine, job(steps=1))), OutOfMemoryError)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(engine, job(steps=1))


def test_a_picture_that_cannot_fit_is_refused_before_anything_runs(make_engine: Make) -> None:
    engine = make_engine(budget=800_000_000)
    with pytest.raises(OutOfMemoryError, match="square"):
        engine.admit(job("a", picture(512, 512)))

    assert not engine.busy
    assert engine.card.fixed_bytes < 10_000_000  # the real weights' size, not the card's guess
