"""docs/operate.md lists what the code logs and counts; other pages of docs/ are what the code is, too."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fourfold
from fourfold.telemetry import Metrics

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operate.md").read_text()
SOURCES = sorted(Path(fourfold.__file__).parent.rglob("*.py"))
LEVELS = {"debug", "info", "warning", "error", "exception"}


def section(title: str) -> str:
    """Return the text below a heading."""
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def first_cells(text: str) -> list[str]:
    """Return the names in backticks of each row's first cell."""
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]


def logged_events() -> Iterator[str]:
    """Yield the event of each call of a module's logger that names it in place."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and ast.unparse(node.func.value) == "log"
                and isinstance(node.args[0], ast.Constant)
            ):
                yield node.args[0].value


def test_every_event_is_listed() -> None:
    """A new event gets its row."""
    assert set(logged_events()) - set(first_cells(section("Log"))) == set()


def test_every_listed_event_is_in_the_code() -> None:
    """Also those that are chosen among before they are logged."""
    code = "".join(path.read_text() for path in SOURCES)

    assert [event for event in first_cells(section("Log")) if f'"{event}"' not in code] == []


def test_every_metric_is_listed() -> None:
    """By the name under which it is exposed, and no other."""
    exposed = set(re.findall(r"^# TYPE (\w+) ", Metrics("test").exposition().decode(), re.MULTILINE))

    assert {name for name in exposed if not name.endswith("_created")} == set(first_cells(section("Metrics")))


def test_every_benchmark_is_listed() -> None:
    """docs/benchmarks.md says what each answers."""
    page = (ROOT / "docs" / "benchmarks.md").read_text()

    assert [path.name for path in (ROOT / "bench").glob("*.py") if f"`bench/{path.name}`" not in page] == []


@pytest.mark.parametrize("page", ["configuration", "openapi"])
def test_a_page_that_is_written_by_a_script_is_current(page: str) -> None:
    """``--check`` finds nothing to change."""
    script = ROOT / "scripts" / f"export_{page}.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
