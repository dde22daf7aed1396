"""Blocks in the pages are labelled, and what they show is what they say it is. Commands: test_commands.py."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fourfold.config import load

ROOT = Path(__file__).resolve().parents[2]
#: Licences are left as their authors wrote them.
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "ops/**/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "THIRD_PARTY_NOTICES.md"
)


def blocks(label: str) -> Iterator[object]:
    """Yield each block of that label, the page as its test's name."""
    for page in PAGES:
        for text in re.findall(rf"^```{label}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
            yield pytest.param(text, id=page)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    """So that a command is known as one."""
    fences = re.findall(r"^```(\w*)$", (ROOT / page).read_text(), re.MULTILINE)

    assert all(fences[::2])
    assert not any(fences[1::2])


@pytest.mark.parametrize("text", list(blocks("toml")))
def test_settings_are_accepted(text: str, tmp_path: Path) -> None:
    """As they would stand in fourfold.toml."""
    file = tmp_path / "fourfold.toml"
    file.write_text(text)

    assert load(file, environ={}).settings


@pytest.mark.parametrize("text", list(blocks("json")))
def test_answers_are_json(text: str) -> None:
    """Parts that differ each time stand in their strings."""
    assert json.loads(text)
