"""What holds for every test on a GPU. All of them: ``python -m pytest tests/gpu``, some minutes, compilers included."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the [diffusion] extra")

from fourfold.engine import registry
from fourfold.engine.devices import prepare_environment
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.engine.settings import EngineSettings
from fourfold.testing.sd_x4 import write_pipe

prepare_environment(os.environ)  # as a worker's child does, before anything asks for the GPU

Make = Callable[..., StableDiffusionX4Engine]
_FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let drivers, compilers and torch's debugging modes warn: nobody here foresees of what."""
    for item in items:
        if _FOLDER in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.timeout(540))


@pytest.fixture(scope="session", autouse=True)
def compilers_processes() -> Iterator[None]:
    """End the processes in which torch compiles for a GPU: it would keep them as long as this one runs."""
    yield
    compiling = sys.modules.get("torch._inductor.async_compile")
    if compiling is not None:
        compiling.shutdown_compile_workers()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some MB, with a 16-bit variant."""
    return write_pipe(tmp_path_factory.mktemp("tiny"), half=True)


@pytest.fixture(scope="session")
def make_engine(tiny_folder: Path) -> Make:
    """Make an engine on the first GPU; its kernels are eager unless a compiler is named."""

    def make(
        rows: tuple[int, ...] = (1,),
        *,
        folder: Path = tiny_folder,
        device: str = "cuda:0",
        compiler: str | None = None,
        budget: int | None = None,
    ) -> StableDiffusionX4Engine:
        settings = EngineSettings(
            threads=1, device=device, batch_rows=rows, compiler=compiler, memory_budget_bytes=budget
        )
        card = registry.card("stabilityai/stable-diffusion-x4-upscaler")
        return StableDiffusionX4Engine(card, settings=settings, folder=folder)

    return make
