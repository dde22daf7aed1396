"""What a step costs beside the network's work: no waiting for the device, no copies, and memory within its budget."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fourfold.engine import registry
from fourfold.engine.base import JobFailed, MemoryRanOut, Mode
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.engine.sd_x4_job import Running
from fourfold.engine.sd_x4_unet import predict
from fourfold.engine.settings import EngineSettings
from fourfold.errors import OutOfMemoryError
from fourfold.testing.sd_x4_stock import Stock, job, notes, picture, pixels, run, upscale

MODEL = "stabilityai/stable-diffusion-x4-upscaler"
Make = Callable[..., StableDiffusionX4Engine]


class Calls(TorchDispatchMode):
    """Counts the operations below it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Crossings(TorchDispatchMode):
    """Notes the operations below it that have tensors of two devices: each brings numbers from one to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, out))
        if len({leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}) > 1:
            self.names.append(func.overloadpacket.__name__)
        return out


@pytest.mark.parametrize(
    ("options", "is_tiled"),
    [({}, False), ({"guidance_scale": 1.0}, True), ({"mode": Mode.FAST}, False)],
    ids=["exact", "tiled", "fast"],
)
def test_a_gpus_step_waits_for_nothing_and_keeps_its_numbers_apart(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], is_tiled: bool
) -> None:
    """On torch's "meta" device, which has no numbers: a step that asked for one, as the host waits for a GPU, raises.

    The network computes in float16, channels last; latents, picture and sampler stay in float32.
    """
    settings = EngineSettings(threads=1, batch_rows=(1, 2, 4), device="meta")
    card = registry.card(MODEL)
    if is_tiled:
        card = replace(card, core_px=32, margin_px=16, tile_pixels=64 * 64)
    engine = StableDiffusionX4Engine(card, settings=settings, folder=tiny_folder)
    samples: list[torch.Tensor] = []
    sampled: list[torch.Tensor] = []
    eager, go_on = engine._kernels.eager, Running._go_on

    def noting(running: Running, answer: torch.Tensor) -> None:
        sampled.extend([running.latents, answer])
        go_on(running, answer)

    monkeypatch.setattr(Running, "_go_on", noting)
    monkeypatch.setattr(engine._kernels, "eager", lambda ways, *rest: samples.append(rest[0]) or eager(ways, *rest))
    width = 128 if is_tiled else 64
    for each in (
        job("a", picture(width), steps=5, **options),
        job("b", picture(width), steps=6, prompt="cat", **options),
    ):
        engine.admit(each)
    running = list(engine._running)
    while min(each.at for each in running) < 1:  # draws the noise and reads the prompts
        engine.step()
    with Crossings() as crossings:
        while min(each.at for each in running) < 2:
            engine.step()
    engine.close()

    assert (len(running[0].plan.tiles) > 1) is is_tiled
    assert crossings.names == []
    kept = [tensor for each in running for tensor in (each.latents, each.picture)]
    assert {tensor.dtype for tensor in [*sampled, *kept]} == {torch.float32}
    assert {tensor.device.type for tensor in [*sampled, *kept]} == {"meta"}
    assert {sample.dtype for sample in samples} == {torch.float16}
    assert all(sample.is_contiguous(memory_format=torch.channels_last) for sample in samples)


def test_a_step_takes_fewer_operations_than_the_stock_pipelines(engine: StableDiffusionX4Engine, stock: Stock) -> None:
    """Launching them is what a small picture spends its time on."""
    counts = []
    for steps in (2, 3):
        with Calls() as calls:
            stock.latents(job(steps=steps))
        counts.append(sum(calls.names.values()))
    engine.admit(job(steps=3))
    engine.step()
    with Calls() as ours:
        engine.step()
    engine.cancel("a")

    assert sum(ours.names.values()) <= 0.9 * (counts[1] - counts[0])


def test_torchs_default_type_changes_no_picture(engine: StableDiffusionX4Engine) -> None:
    """Who loads a model in another thread sets it, for all threads."""
    expected = upscale(engine, job(steps=1))
    torch.set_default_dtype(torch.float64)
    try:
        made = upscale(engine, job(steps=1))
    finally:
        torch.set_default_dtype(torch.float32)

    assert np.array_equal(made, expected)


@pytest.mark.parametrize(
    ("rows", "beside", "interleaves"),
    [(1, 64 * 64 - 1, False), (1, 64 * 64, True), (4, 64 * 64, False), (4, 128 * 128, True)],
)
def test_decoding_and_denoising_share_the_memory(make_engine: Make, rows: int, beside: int, interleaves: bool) -> None:
    """Where both do not fit, a half-decoded picture is finished first; where they do, the small job goes on.

    *beside*, the pixels that there is room for beside the large picture. Dummy rows take room like others.
    """
    small = job("small", picture(64, 64), steps=2, guidance_scale=1.0)
    large = job("large", picture(128, 128), steps=1, guidance_scale=1.0)
    engine = make_engine(rows=(rows,), budget=make_engine().card.peak_bytes(128 * 128 + beside))
    engine.admit(large)
    engine.step()
    engine.step()  # the first layer of its decoding is held
    engine.admit(small)
    (held,) = [running for running in engine._running if running.decoding is not None]
    held.served += 10**9  # it would not be its turn for long
    events = [*engine.step(), *engine.step()]
    assert ("small" in {event.job_id for event in events}) is interleaves
    assert {event.job_id for event in run(engine)} == {"small", "large"}


def test_a_batch_that_does_not_fit_is_one_row(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strict: four of a small picture, one of a larger one of which four were never planned for, whoever is there."""
    calls: list[tuple[int, int]] = []

    def counting(unet: Any, sample: Any, *rest: Any, ways: int) -> Any:
        calls.append((sample.shape[-1], len(sample)))
        return predict(unet, sample, *rest, ways=ways)

    monkeypatch.setattr("fourfold.engine.sd_x4_kernels.predict", counting)
    engine = make_engine(rows=(4,), budget=make_engine().card.peak_bytes(4 * 64 * 64))
    run(
        engine,
        *(
            job(f"{side}, {seed}", picture(side, side), seed=seed, steps=1, guidance_scale=1.0)
            for side in (64, 128)
            for seed in (0, 1)
        ),
    )

    assert sorted(calls) == [(64, 4), (128, 1), (128, 1)]


def test_only_the_half_that_does_not_fit_fails(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two jobs in one call, the one whose half runs out again; the other gets its picture."""
    engine = make_engine(rows=(1, 2))
    expected = upscale(engine, job("b", seed=1, steps=1))
    original, answers = engine._kernels.eager, iter([False, False, True])

    def full(ways: int, sample: Any, *rest: Any) -> Any:
        if not next(answers, True):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(ways, sample, *rest)

    with monkeypatch.context() as short:
        short.setattr(engine._kernels, "eager", full)
        events = run(engine, job("a", steps=1), job("b", seed=1, steps=1))

    counted = [(event.job_id, event.goes_on) for event in events if isinstance(event, MemoryRanOut)]
    assert counted == [("a", True), ("b", True), ("a", False)]
    (failed,) = [event for event in events if isinstance(event, JobFailed)]
    assert failed.job_id == "a" and isinstance(failed.error, OutOfMemoryError)
    assert np.abs(pixels(events, "b").astype(int) - expected.astype(int)).max() <= 1
    assert notes(events, "b")["out_of_memory_retries"] == 1
    assert not engine.busy
