"""CONTRIBUTING.md's way to add a model works as it stands: its commands are run and its changes applied, in order."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
STEP_S = 120.0


def blocks() -> list[tuple[str, str]]:
    """Return kind and text of each block of "Add a model"."""
    section = PAGE.partition("\n## Add a model\n")[2].partition("\n## ")[0]
    return re.findall(r"^```(\w+)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def copy_tree(into: Path) -> None:
    """Copy what the page and its commands need; lend the copy our environment."""
    for folder in ("src", "tests", "bench", "examples"):
        shutil.copytree(ROOT / folder, into / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("README.md", "THIRD_PARTY_NOTICES.md", "pyproject.toml"):
        shutil.copy2(ROOT / file, into)
    (into / ".venv").symlink_to(ROOT / ".venv")


@pytest.mark.slow
def test_a_model_is_added_as_the_page_says(tmp_path: Path) -> None:
    """From the weights to the tests of the new model, which pass; it makes a picture."""
    tree = tmp_path / "fourfold"
    copy_tree(tree)
    # The environment has the package of the tree that we are in; the copy's comes first.
    environ = os.environ | {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    said: list[str] = []
    for kind, text in blocks():
        command = {"sh": ["bash", "-e", "-c", text], "diff": ["git", "apply", "-"]}[kind]
        done = subprocess.run(
            command,
            cwd=tree,
            env=environ,
            input=text if kind == "diff" else "",
            capture_output=True,
            text=True,
            timeout=STEP_S,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)

    *_, tests = said
    assert re.search(r"\b(\d\d+) passed\b", tests) and "failed" not in tests and "skipped" not in tests
    assert any("fourfold/cartoon" in text for text in said)
    with Image.open(tree / "cartoon.png") as made:
        assert made.size == (1024, 768)


def test_the_page_has_something_to_follow() -> None:
    """Changes and commands."""
    assert {kind for kind, _ in blocks()} == {"sh", "diff"}
