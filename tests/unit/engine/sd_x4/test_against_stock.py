"""The picture is the stock pipeline's: same files, same seeds, float32, on one thread.

A few cases at the real model's depth; all of them, on a shallower one: `test_matrix`.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionUpscalePipeline

from fourfold.engine import registry
from fourfold.engine.base import DiffusionOptions, EngineJob, Mode
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.testing.sd_x4_stock import Stock, job, picture, pixels, run, upscale

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' DPM++

# Sizes cover: none, one and both sides padded, and a side below 64, which becomes 128.
SAMPLE = [
    ((64, 64), 5, 9.0, 20),
    ((64, 64), 1, 1.0, 0),
    ((68, 60), 1, 9.0, 350),
    ((128, 72), 2, 1.0, 20),
    ((64, 64), 12, 9.0, 0),
]


def compare(engine: StableDiffusionX4Engine, stock: Stock, each: EngineJob, scheduler: Any = None) -> None:
    """Latents within 1e-5 of their size, pixels within one level."""
    engine.admit(each)
    (running,) = engine._running
    while not running.is_denoised:
        engine.step()
    latents = running.latents
    expected = stock.latents(each, scheduler)
    assert (latents - expected).abs().max() <= 1e-5 * expected.abs().max()

    levels = np.abs(pixels(run(engine)).astype(int) - stock.decoded(each, expected).astype(int))
    assert levels.max() <= 1


@pytest.mark.parametrize(("size", "steps", "guidance", "noise"), SAMPLE)
def test_latents_and_pixels_are_the_stock_pipelines(
    engine: StableDiffusionX4Engine, stock: Stock, size: tuple[int, int], steps: int, guidance: float, noise: int
) -> None:
    """Where we pad, the stock pipeline gets the same padded picture and its result is cropped."""
    each = job("a", picture(*size), steps=steps, guidance_scale=guidance, noise_level=noise, seed=steps)

    compare(engine, stock, each)


def test_what_is_not_said_is_what_the_stock_pipeline_assumes() -> None:
    stock = {name: each.default for name, each in signature(StableDiffusionUpscalePipeline.__call__).parameters.items()}
    options, card = DiffusionOptions(), registry.card("stabilityai/stable-diffusion-x4-upscaler")

    assert options.mode is Mode.EXACT
    assert (options.guidance_scale, options.noise_level) == (stock["guidance_scale"], stock["noise_level"])
    assert card.default_steps == stock["num_inference_steps"]


def test_a_negative_prompt_means_what_it_means_to_the_stock_pipeline(
    engine: StableDiffusionX4Engine, stock: Stock
) -> None:
    each = job("a", negative_prompt="blurry, dark", prompt="a white cat", seed=3)

    compare(engine, stock, each)


@pytest.mark.parametrize("steps", [6, 16])
def test_fast_mode_is_dpm_plus_plus(engine: StableDiffusionX4Engine, stock: Stock, steps: int) -> None:
    """Fast mode equals the stock pipeline with its scheduler exchanged for DPM++ 2M."""
    each = job("a", steps=steps, mode=Mode.FAST)

    compare(engine, stock, each, DPMSolverMultistepScheduler.from_config(stock.pipe.scheduler.config))


def test_jobs_in_a_batch_keep_their_own_picture_prompt_and_seed(
    make_engine: Callable[..., StableDiffusionX4Engine], stock: Stock
) -> None:
    """Two pictures, each with two prompts, in one call: the stock pipeline pairs several outputs wrongly.

    Each equals a stock run of its own, in latents and pixels.
    """
    engine = make_engine(rows=(4,))
    jobs = [
        job("a", picture(seed=1), prompt="a white cat", seed=0, steps=2, noise_level=0),
        job("b", picture(seed=1), prompt="dog", seed=1, steps=3, guidance_scale=4.5),
        job("c", picture(seed=2), prompt="a white cat", seed=2**64 - 1, steps=4, noise_level=350),
        job("d", picture(seed=2), prompt="dog", seed=2**40, steps=2, negative_prompt="a white cat"),
    ]
    for each in jobs:
        engine.admit(each)
    admitted = list(engine._running)

    events = run(engine)

    for each, running in zip(jobs, admitted, strict=True):
        expected = stock.latents(each)
        assert (running.latents - expected).abs().max() <= 1e-5 * expected.abs().max()
        levels = np.abs(pixels(events, each.job_id).astype(int) - stock.decoded(each, expected).astype(int))
        assert levels.max() <= 1


def test_16_bit_pictures_keep_their_depth(engine: StableDiffusionX4Engine) -> None:
    """A 16-bit picture gives 16 bits, the same picture as its 8-bit version would."""
    eight = picture()
    deep = upscale(engine, job("a", eight.astype(np.uint16) * 257))

    assert deep.dtype == np.uint16
    assert np.abs(deep / 257 - upscale(engine, job("b", eight))).max() <= 0.51


def test_the_fp16_variant_gives_nearly_the_same_picture(
    engine: StableDiffusionX4Engine, stock: Stock, tiny_folder: Any, tmp_path: Any
) -> None:
    """Where only 16-bit files are there, they are read, and computed with in float32 on a CPU."""
    import shutil

    folder = tmp_path / "half"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*model.safetensors"))
    half = StableDiffusionX4Engine(engine.card, settings=engine._settings, folder=folder)

    assert half._modules.dtype == torch.float32
    difference = upscale(half, job()).astype(int) - stock.image(job()).astype(int)
    assert np.sqrt(np.mean(difference**2)) < 3
