"""ARCHITECTURE.md and docs/glossary.md name what exists."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fourfold
from fourfold.errors import walk

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()


def rows_of_life() -> list[list[str]]:
    """Return the cells of the table that tells the life of one image."""
    table = PAGE.partition("## The life of one image")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return rows[2:]  # after the head and its underline


def names_in_life() -> Iterator[str]:
    """Yield each name in the section's backticks that is one of ours."""
    section = PAGE.partition("## The life of one image")[2].partition("\n## ")[0]
    for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", section):
        if not name.endswith(".py"):
            yield name


def resolve(name: str) -> object:
    """Return what *name* below the package stands for: a module, or what a module holds."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(["fourfold", *parts[:split]]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"no module fourfold.{parts[0]}")


@pytest.mark.parametrize("name", sorted(set(names_in_life())))
def test_a_name_in_the_life_of_one_image_exists(name: str) -> None:
    """It can be imported under the name that the page gives."""
    assert resolve(name) is not None


def test_each_step_says_where_it_happens_and_the_steps_are_counted() -> None:
    """No row without a place in the code."""
    rows = rows_of_life()

    assert [number for number, *_ in rows] == [str(n) for n in range(1, len(rows) + 1)]
    assert [number for number, _, where, _ in rows if "`" not in where] == []


def test_the_errors_it_names_exist() -> None:
    """Each code is one of the tree's."""
    named = {code for *_, errors in rows_of_life() for code in re.findall(r"[a-z]+(?:_[a-z]+)+|unreachable", errors)}

    assert named - {error.code for error in walk()} == set()


def test_every_package_has_its_line() -> None:
    """The table of packages lists all there are."""
    table = PAGE.partition("## Packages, outermost first")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`(\w+)`", table))
    folder = Path(fourfold.__file__).parent
    there = {path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"}

    assert {name for name in there if not name.startswith("_")} == listed


def glossary() -> list[list[str]]:
    """Return the cells of the glossary's lines."""
    rows = [line for line in GLOSSARY.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1:]]


@pytest.mark.parametrize(
    "name", sorted({name for *_, where in glossary() for name in re.findall(r"`([\w.]+)`", where)})
)
def test_a_name_in_the_glossary_exists(name: str) -> None:
    """It can be imported under the name that the page gives; a whole module is not, as some load torch."""
    module = Path(fourfold.__file__).parent.joinpath(*name.split(".")).with_suffix(".py")
    assert module.exists() or resolve(name) is not None


def test_the_glossary_can_be_looked_up() -> None:
    """A line for each word, in the order of the alphabet, and none twice."""
    words = [word.replace("*", "").lower() for word, *_ in glossary()]

    assert words == sorted(set(words))
    assert [word for word, meaning, _ in glossary() if not meaning] == []
