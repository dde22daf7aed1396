"""Every command that a page tells its reader to type is run by some test, or stands here with the reason why not."""

import ast
import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from PIL import Image

import fourfold.cli
from fourfold.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "ops/**/*.md")
    for path in ROOT.glob(pattern)
)
BASE_URL = "http://127.0.0.1:9935"
BLOCK_S = 240.0

_PULLED = "tests/acceptance/test_models_command.py::test_a_pulled_model_is_offered_offline_and_mended_and_removed"
#: First line of a block -> the test that runs it.
ELSEWHERE = {
    "make demo": "tests/acceptance/test_demo.py::test_the_demo_upscales_the_photo_though_the_default_ports_are_taken",
    "curl -F model_id=fourfold/realesrgan-x4plus": "tests/docs/test_readme.py::test_curl_gets_a_picture",
    "fourfold upscale examples/photo.jpg -o large.png": (
        "tests/docs/test_readme.py::test_the_upscale_command_writes_a_picture"
    ),
    "fourfold models  ": _PULLED,
    "fourfold models pull": _PULLED,
    "fourfold worker --port 8000": "tests/docs/test_readme.py::test_the_roles_make_a_network_one_by_one",
}
#: First line of a block -> why no test runs it.
NOT_RUN = {
    "pip install .": "`make install`, which every test run begins with, does that; `fourfold up` is run by many tests",
    ".venv/bin/python bench/sd_x4_gpu.py": "no GPU is here; see tests/unit/bench, and --cpu-smoke",
    "docker build": "no container engine is here; tests/acceptance/container carries out its steps",
    "make check": "it is what runs the quick tests, this one among them",
    "make test": "it is what runs this test",
}


def blocks() -> Iterator[tuple[str, str]]:
    """Yield page and text of each shell block; those of "Add a model" have a test of their own, as they go together."""
    for page in PAGES:
        text = (ROOT / page).read_text()
        if page == "CONTRIBUTING.md":
            text = text.partition("\n## Add a model\n")[0]
        for block in re.findall(r"^```(?:sh|bash|shell|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            yield page, block


def listed(block: str) -> str | None:
    """Return the entry that stands for *block*."""
    return next((start for start in (*ELSEWHERE, *NOT_RUN) if block.startswith(start)), None)


RUN_HERE = [pytest.param(block, id=f"{page}-{block.split()[0]}") for page, block in blocks() if listed(block) is None]


def test_what_is_not_run_here_is_still_on_a_page() -> None:
    """Neither list has an entry that nobody needs."""
    assert {listed(block) for _, block in blocks()} - {None} == {*ELSEWHERE, *NOT_RUN}


@pytest.mark.parametrize("test", ELSEWHERE.values())
def test_what_runs_it_elsewhere_exists(test: str) -> None:
    """A function of that name in that file."""
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / file).read_text())

    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """A reader's folder with the pictures that pages speak of."""
    folder = tmp_path / "reader"
    for name in ("photo.jpg", "holidays/a.jpg", "holidays/sea/b.png", "scans/2019/c.tif"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(ROOT / "examples" / "photo.jpg") as photo:
            photo.resize((32, 24)).save(folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN_HERE)
def test_the_commands_of_a_block_work(block: str, base_url: str, reader: Path) -> None:
    """Typed one after another, as the page has them; one that fails ends it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", block.replace(BASE_URL, base_url)],
        cwd=reader,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=BLOCK_S,
    )

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for name in re.findall(r"#\s(\S+-4x\.\w+), beside it", block):
        with Image.open(reader / name) as made:
            assert made.size == (128, 96)


def commands_on_pages() -> set[str]:
    """Return the first words of each `fourfold ...` in a page's text and blocks."""
    pages = "\n".join((ROOT / page).read_text() for page in PAGES)
    return set(re.findall(r"(?:`|^|/bin/)fourfold ([a-z]+(?: [a-z]+)?)", pages, re.MULTILINE))


@pytest.mark.parametrize("words", sorted(commands_on_pages()))
def test_a_command_that_a_page_names_exists(words: str) -> None:
    """Also those in the middle of a sentence; a second word counts where the first is a group of commands."""
    for module in pkgutil.iter_modules(fourfold.cli.__path__, "fourfold.cli."):
        importlib.import_module(module.name)  # each adds its commands to `app`
    command = typer.main.get_command(app)
    for word in shlex.split(words):
        nested = getattr(command, "commands", None)
        if nested is None:
            break
        assert word in nested
        command = nested[word]
