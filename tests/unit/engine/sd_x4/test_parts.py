"""Each shortcut is exact on its own: strips, chunks, the shared part, kept keys and values, the sampler's numbers."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor2_0

from fourfold.engine import sd_x4_decode
from fourfold.engine.base import Mode
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.engine.sd_x4_decode import DecodeLimits, decode, decode_steps
from fourfold.engine.sd_x4_schedule import Sampler
from fourfold.engine.sd_x4_text import KEPT_PROMPTS, Lru
from fourfold.engine.sd_x4_unet import predict, time_embeddings
from fourfold.errors import ModelUnavailableError
from fourfold.testing.sd_x4_stock import Stock, job, run

Make = Callable[..., StableDiffusionX4Engine]

ONE_GO = DecodeLimits(10**9, 10**9)


def decoded(vae: Any, latents: torch.Tensor, limits: DecodeLimits, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Decode in one piece; also count the pauses."""
    run_of = decode(vae, latents, dtype=dtype, limits=limits)
    pauses = 0
    with torch.inference_mode():
        while True:
            try:
                next(run_of)
            except StopIteration as end:
                assert pauses == decode_steps(vae)
                return torch.cat([strip for _, strip in end.value], dim=2)
            pauses += 1


@pytest.mark.parametrize("strip_pixels", [1, 300, 1000, 4096, 10**9])
@pytest.mark.parametrize("attention_queries", [1, 50, 10**9])
@pytest.mark.parametrize("is_a_gpus", [True, False])
def test_strips_and_chunks_of_any_height_decode_what_diffusers_decodes(
    engine: StableDiffusionX4Engine,
    stock: Stock,
    monkeypatch: pytest.MonkeyPatch,
    strip_pixels: int,
    attention_queries: int,
    is_a_gpus: bool,
) -> None:
    """Within 1e-5 of the picture's range: only the order of additions differs. So it does the way a GPU is asked to."""
    if is_a_gpus:
        monkeypatch.setattr(sd_x4_decode, "_layout", lambda _: torch.channels_last)
    latents = torch.randn((1, 4, 13, 11), generator=torch.Generator().manual_seed(1)) * 3
    with torch.inference_mode():
        expected = stock.pipe.vae.decode(latents, return_dict=False)[0]
    made = decoded(engine._modules.vae, latents, DecodeLimits(strip_pixels, attention_queries, not is_a_gpus))

    assert made.shape == expected.shape
    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_decode_in_float16_survives_maps_far_beyond_its_range(make_engine: Make) -> None:
    """Maps eight times as large as float16 can hold, and still the picture of float32."""
    vae = make_engine()._modules.vae
    for part in vae.decoder.up_blocks[0].resnets[0].conv2.parameters():
        part.data *= 4e5
    largest = []
    watched = vae.decoder.up_blocks[0].resnets[1].norm1
    watched.register_forward_pre_hook(lambda _, inputs: largest.append(inputs[0].abs().max().item()))
    latents = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(1)) * 3
    with torch.inference_mode():
        vae.decode(latents)
    exact, half = (decoded(vae, latents, ONE_GO, dtype) for dtype in (torch.float32, torch.float16))

    assert max(largest) > 5 * 65_504
    assert 20 * math.log10(2 / (half - exact).pow(2).mean().sqrt()) >= 50


def test_pixels_have_more_levels_than_the_maps(engine: StableDiffusionX4Engine) -> None:
    """Else a picture of 16 bits would come back with the steps of float16."""
    latents = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(1))
    made = decoded(engine._modules.vae, latents, ONE_GO, torch.float16)

    assert made.dtype == torch.float32
    assert (made.half().float() == made).double().mean() < 0.1


def test_decoding_changes_no_weight(engine: StableDiffusionX4Engine) -> None:
    """Decoding in another number type converts copies, not the shared weights."""
    vae = engine._modules.vae
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    decoded(vae, torch.zeros((1, 4, 8, 8)), ONE_GO, torch.bfloat16)

    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("ways", [1, 2])
def test_the_network_answers_as_diffusers_with_shared_parts_and_kept_text(
    engine: StableDiffusionX4Engine, stock: Stock, rows: int, ways: int
) -> None:
    """Rows with different timesteps, noise levels and prompts equal diffusers' forward of the wide batch."""
    modules, prompts = engine._modules, engine._prompts
    generator = torch.Generator().manual_seed(2)
    sample = torch.randn((rows, 7, 64, 64), generator=generator)
    timesteps, levels = [963, 14, 500][:rows], [0, 20, 350][:rows]
    texts = ["", "cat", "a white cat", "white", "x", "dog"][: ways * rows]
    with torch.inference_mode():
        embedding = torch.cat(
            [
                time_embeddings(modules.unet, [timestep], level, dtype=torch.float32)
                for timestep, level in zip(timesteps, levels, strict=True)
            ]
        )
        ours = predict(modules.unet, sample, embedding, prompts.rows(texts), ways=ways)
        expected = stock.pipe.unet(
            sample.repeat(ways, 1, 1, 1),
            torch.tensor(timesteps * ways),
            encoder_hidden_states=torch.cat([prompts.embed(text) for text in texts]),
            class_labels=torch.tensor(levels * ways),
            return_dict=False,
        )[0]

    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_prompts_are_embedded_as_the_stock_pipeline_does(engine: StableDiffusionX4Engine, stock: Stock) -> None:
    with torch.inference_mode():
        expected, _ = stock.pipe.encode_prompt("a white cat", "cpu", 1, False)

        assert torch.equal(engine._prompts.embed("a white cat"), expected)


def test_kept_keys_and_values_are_those_that_attention_would_make(engine: StableDiffusionX4Engine) -> None:
    """For each attention to the text, ours equals diffusers' own processor on the embedding."""
    prompts = engine._prompts
    with torch.inference_mode():
        embedded = prompts.embed("cat")
        kept = prompts.rows(["cat"])
        assert kept
        for name in kept:
            attention = prompts._attentions[name]
            hidden = torch.randn((1, 5, attention.to_q.in_features), generator=torch.Generator().manual_seed(3))
            ours = attention.processor(attention, hidden, embedded, text=kept)
            assert torch.allclose(ours, AttnProcessor2_0()(attention, hidden, embedded), atol=1e-6)


def test_a_prompt_is_encoded_once(engine: StableDiffusionX4Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine._prompts.clear()
    embedded: list[str] = []
    original = engine._prompts.embed
    monkeypatch.setattr(engine._prompts, "embed", lambda text: embedded.append(text) or original(text))

    run(engine, job("a", steps=2, prompt="one"))
    run(engine, job("b", steps=2, prompt="one", seed=1))

    assert embedded == ["", "one"]


def test_the_least_recently_used_prompt_leaves() -> None:
    """A cache of two forgets what was not asked for longest."""
    cache: Lru[str, str] = Lru(2)
    made: list[str] = []
    for key in ["a", "b", "a", "c", "a", "b"]:
        cache.get(key, lambda key=key: made.append(key) or key)

    assert made == ["a", "b", "c", "b"]
    assert len(cache) == 2
    assert KEPT_PROMPTS > 2


CONFIG = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("count", [1, 7, 75])
def test_folded_steps_are_ddims(prediction: str, count: int) -> None:
    """Each step's two numbers do to any latents and answer what diffusers' scheduler does."""
    config = {**CONFIG, "prediction_type": prediction}
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(count)
    x, m = torch.randn((2, 1000), generator=torch.Generator().manual_seed(4))
    for step, timestep in zip(Sampler(config).steps(count, Mode.EXACT), scheduler.timesteps, strict=True):
        expected = scheduler.step(m, timestep, x, return_dict=False)[0]
        made = step.next_x * x + step.next_m * m

        assert step.timestep == timestep
        assert (made - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "EulerDiscreteScheduler"},
        {"clip_sample": True},
        {"thresholding": True},
        {"prediction_type": "flow"},
    ],
)
def test_a_sampler_that_we_do_not_compute_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelUnavailableError, match="known"):
        Sampler({**CONFIG, **change})


def test_making_an_engine_warns_nobody(make_engine: Callable[..., StableDiffusionX4Engine]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_engine().close()
