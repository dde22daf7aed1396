"""A tiny model with random weights, the stock pipeline over the same files, and an engine to compare with it."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="needs the [diffusion] extra")

from fourfold.engine import registry
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.engine.settings import EngineSettings
from fourfold.testing.sd_x4 import write_pipe
from fourfold.testing.sd_x4_stock import Stock

MODEL = "stabilityai/stable-diffusion-x4-upscaler"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder in the hub's layout, with a 16-bit variant."""
    return write_pipe(tmp_path_factory.mktemp("tiny"), half=True)


@pytest.fixture(scope="session")
def make_engine(tiny_folder: Path) -> Callable[..., StableDiffusionX4Engine]:
    """Make an engine over the tiny model; card's numbers and settings can be changed."""

    def make(*, rows: tuple[int, ...] = (1,), budget: int | None = None, **card: Any) -> StableDiffusionX4Engine:
        settings = EngineSettings(threads=1, batch_rows=rows, memory_budget_bytes=budget)
        return StableDiffusionX4Engine(replace(registry.card(MODEL), **card), settings=settings, folder=tiny_folder)

    return make


@pytest.fixture(scope="session")
def shared_engine(make_engine: Callable[..., StableDiffusionX4Engine]) -> StableDiffusionX4Engine:
    return make_engine()


@pytest.fixture
def engine(shared_engine: StableDiffusionX4Engine) -> Iterator[StableDiffusionX4Engine]:
    """An engine with no job, and without one afterwards."""
    yield shared_engine
    assert not shared_engine.busy


@pytest.fixture(scope="session")
def stock(tiny_folder: Path) -> Stock:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Stock(tiny_folder)
