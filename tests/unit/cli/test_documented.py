"""`docs/cli.md` against the commands."""

import re
from pathlib import Path

import pytest
import typer.main

from fourfold.cli import compare, upscale  # noqa: F401  # each adds its command
from fourfold.cli.app import app
from fourfold.cli.status import FAILED_STATUS, INPUT_STATUS, INTERRUPTED_STATUS
from fourfold.processes.role import CONFIG_EXIT_STATUS

PAGE = (Path(__file__).parents[3] / "docs/cli.md").read_text("utf-8")


@pytest.mark.parametrize("name", ["upscale", "compare"])
def test_every_option_is_documented(name: str) -> None:
    """Under the name that one types."""
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    options = {word for parameter in command.params for word in parameter.opts if word.startswith("-")}

    assert sorted(option for option in options if f"`{option}`" not in PAGE and f"`{option} " not in PAGE) == []


def test_every_documented_option_exists() -> None:
    """None of the table is wishful."""
    command = typer.main.get_command(app).commands["upscale"]  # type: ignore[attr-defined]
    options = {word for parameter in command.params for word in parameter.opts}
    rows = re.findall(r"^\| (`-.*?) \|", PAGE, re.MULTILINE)

    assert [word for row in rows for word in re.findall(r"`([^`]+)`", row) if word not in options] == []


def test_the_documented_statuses_are_those_of_the_code() -> None:
    """And no other."""
    documented = [int(status) for status in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)]

    terminated, usage = 143, 2
    assert documented == sorted(
        [0, FAILED_STATUS, usage, INPUT_STATUS, CONFIG_EXIT_STATUS, INTERRUPTED_STATUS, terminated]
    )
