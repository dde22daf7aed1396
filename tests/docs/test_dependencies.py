"""docs/dependencies.md has a line for what is installed, and constraints.txt a version."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def names(requirements: list[str]) -> set[str]:
    """Return the packages' names, without their versions."""
    return {re.split(r"[\s<>=!~;\[]", requirement)[0].lower() for requirement in requirements}


def direct() -> set[str]:
    """Return everything that pyproject.toml names."""
    extras = PROJECT["project"].get("optional-dependencies", {}).values()
    groups = PROJECT["dependency-groups"].values()
    return names([*PROJECT["project"]["dependencies"], *(name for group in [*extras, *groups] for name in group)])


def test_every_dependency_has_its_line() -> None:
    """What it is for, its licence, its last release, what was rejected."""
    rows = [line.split("|")[1] for line in (ROOT / "docs" / "dependencies.md").read_text().splitlines() if "|" in line]
    listed = {name.strip() for row in rows for name in row.split(",")}

    assert direct() - listed == set()


def test_every_dependency_is_pinned_for_tests() -> None:
    """A run of today is a run of tomorrow."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}

    assert direct() - pinned == set()


def test_the_pins_name_no_place() -> None:
    """Versions, not addresses: where packages come from is the installer's own affair."""
    for path in [ROOT / "constraints.txt", *(ROOT / "tests" / "acceptance" / "sdk").glob("*.txt")]:
        assert not re.search(r"://|@|--", path.read_text())
