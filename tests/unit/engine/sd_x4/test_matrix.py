"""The stock pipeline's pictures at every size, step count, guidance and noise level; alone, in batches, staggered.

Same files, same seeds, float32, one thread; each of the 72 jobs has a picture, a seed and prompts of its own. The model
is the thinnest that has all levels, as it is the loop that is compared here; wider ones: `test_against_stock`.

``DIFFUSION_MIXES=200`` in the environment runs as many mixes of each kind instead of a few.
"""

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourfold.engine import registry
from fourfold.engine.base import EngineEvent, EngineJob
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.engine.sd_x4_plan import padded_side
from fourfold.engine.settings import EngineSettings
from fourfold.testing.sd_x4 import THIN, write_pipe
from fourfold.testing.sd_x4_stock import Stock, job, picture, pixels, run

pytestmark = pytest.mark.slow

MODEL = "stabilityai/stable-diffusion-x4-upscaler"
SIZES: Final = ((64, 64), (68, 60), (128, 72))
STEPS: Final = (1, 5, 20, 75)
GUIDANCES: Final = (1.0, 9.0)
NOISES: Final = (0, 20, 350)
PROMPTS: Final = ("a white cat", "", "cat", "white white dog", "whi te")
MIXES: Final = int(os.environ.get("DIFFUSION_MIXES", "0"))

Make = Callable[[tuple[int, ...]], StableDiffusionX4Engine]
Expected = Callable[[str], tuple[Any, Any]]


def _jobs() -> Mapping[str, EngineJob]:
    cases = [(size, n, g, noise) for size in SIZES for n in STEPS for g in GUIDANCES for noise in NOISES]
    jobs = {}
    for seed, ((width, height), steps, guidance, noise) in enumerate(cases):
        name = f"{width}x{height}-{steps}-{guidance:g}-{noise}"
        jobs[name] = job(
            name,
            picture(width, height, seed=seed),
            prompt=PROMPTS[seed % 5],
            negative_prompt=PROMPTS[seed * 2 % 7 % 5],
            seed=seed,
            steps=steps,
            guidance_scale=guidance,
            noise_level=noise,
        )
    return jobs


JOBS: Final = _jobs()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipe(tmp_path_factory.mktemp("thin"), THIN)


@pytest.fixture(scope="module")
def make(folder: Path) -> Make:
    """Make an engine of the given batch sizes, once."""

    @functools.cache
    def made(rows: tuple[int, ...]) -> StableDiffusionX4Engine:
        return StableDiffusionX4Engine(
            registry.card(MODEL), settings=EngineSettings(threads=1, batch_rows=rows), folder=folder
        )

    return made


@pytest.fixture(scope="module")
def expected(folder: Path) -> Expected:
    """Return the stock pipeline's latents and pixels for a job, from a run of its own; each is run once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = Stock(folder)

    @functools.cache
    def of(name: str) -> tuple[Any, Any]:
        latents = stock.latents(JOBS[name])
        return latents, stock.decoded(JOBS[name], latents)

    return of


def run_staggered(
    engine: StableDiffusionX4Engine, arrivals: Iterable[tuple[str, int]]
) -> tuple[list[EngineEvent], dict[str, Any]]:
    """Run jobs that each arrive some steps after the one before; return all events, and each job's latents."""
    events: list[EngineEvent] = []
    admitted = {}
    for name, steps_later in arrivals:
        for _ in range(steps_later):
            events += engine.step()
        engine.admit(JOBS[name])
        admitted[name] = engine._running[-1]
    events += run(engine)
    return events, {name: running.latents for name, running in admitted.items()}


def compare(engine: StableDiffusionX4Engine, expected: Expected, arrivals: Iterable[tuple[str, int]]) -> None:
    """Latents within 1e-5 of their size, pixels within a level."""
    events, made = run_staggered(engine, arrivals)
    for name in made:
        latents, image = expected(name)
        assert (made[name] - latents).abs().max() <= 1e-5 * latents.abs().max(), name
        assert np.abs(pixels(events, name).astype(int) - image.astype(int)).max() <= 1, name


@pytest.mark.parametrize("name", JOBS)
def test_a_job_alone_is_the_stock_pipelines(make: Make, expected: Expected, name: str) -> None:
    """Where we pad, the stock pipeline gets the same padded picture and its result is cropped."""
    compare(make((1,)), expected, [(name, 0)])


@pytest.mark.parametrize("guidance", GUIDANCES)
@pytest.mark.parametrize("canvas", [64, 128])
def test_jobs_in_batches_of_four_are_the_stock_pipelines(
    make: Make, expected: Expected, canvas: int, guidance: float
) -> None:
    """All jobs of one canvas at once: each call has four rows, of other pictures, settings and progress."""
    names = [
        name
        for name, each in JOBS.items()
        if each.options.guidance_scale == guidance and padded_side(each.image.shape[1]) == canvas
    ]

    compare(make((4,)), expected, [(name, 0) for name in names])


def mixes_of(names: Iterable[str]) -> st.SearchStrategy[list[tuple[str, int]]]:
    """Draw a few of *names*, each with the steps that it arrives after the one before: 1 to 7."""
    arrival = st.tuples(st.sampled_from(list(names)), st.integers(1, 7))
    return st.lists(arrival, min_size=2, max_size=5, unique_by=lambda one: one[0])


@given(arrivals=mixes_of(JOBS))
@settings(max_examples=MIXES or 4, suppress_health_check=list(HealthCheck))
def test_staggered_jobs_are_the_stock_pipelines(
    make: Make, expected: Expected, arrivals: list[tuple[str, int]]
) -> None:
    """Any of them, with several batch sizes."""
    compare(make((1, 2, 4)), expected, arrivals)


@pytest.fixture(scope="module")
def alone(make: Make) -> Callable[[str], Any]:
    """Return a job's picture when nothing else runs, with one batch size."""
    return functools.cache(lambda name: pixels(run(make((4,)), JOBS[name]), name))


@given(arrivals=mixes_of(name for name, each in JOBS.items() if each.image.size == 64 * 64 * 3 and each.seed < 12))
@settings(max_examples=MIXES or 20, suppress_health_check=list(HealthCheck))
def test_strict_pictures_are_the_same_bytes_in_many_mixes(
    make: Make, alone: Callable[[str], Any], arrivals: list[tuple[str, int]]
) -> None:
    """With one batch size, order, delays and neighbours do not change a single bit."""
    events, made = run_staggered(make((4,)), arrivals)

    for name in made:
        assert np.array_equal(pixels(events, name), alone(name))
