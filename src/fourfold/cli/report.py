"""What is said of a batch: a line for each picture as it ends, then what failed and why, or all of it as JSON lines."""

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fourfold.cli.batch import Outcome, Status
from fourfold.cli.status import status_of
from fourfold.cli.text import printable
from fourfold.errors import FourfoldError


class Report:
    """Takes outcomes as they come and tells them.

    Args: *as_json*, one object a line, on standard output; *quiet*, failures only; *clock*, seconds.
    """

    def __init__(self, *, as_json: bool, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._as_json = as_json
        self._quiet = quiet
        self._clock = clock
        self._started = clock()
        self._counts: Counter[Status] = Counter()
        self.failures: list[Outcome] = []

    def take(self, outcome: Outcome) -> None:
        """Tell of one picture."""
        self._counts[outcome.status] += 1
        if outcome.status is Status.FAILED:
            self.failures.append(outcome)
        if self._as_json:
            typer.echo(json.dumps(line_of(outcome)))
        elif outcome.status is Status.FAILED and outcome.error is not None:
            typer.echo(f"failed: {printable(outcome.source)} ({outcome.error.code})", err=True)
        elif outcome.status is Status.DONE:
            tell_done(outcome.facts, quiet=self._quiet)

    def close(self, *, left_out: Collection[object] = (), planned: int, signal_number: int | None) -> int:
        """Tell how all of it went; return the exit status.

        Args: *left_out*, results of earlier runs; *planned*, pictures that there were to do;
            *signal_number*, of the signal that ended it before its end.
        """
        errors = [outcome.error for outcome in self.failures if outcome.error is not None]
        status = status_of(errors) if signal_number is None else 128 + signal_number
        interrupted = signal_number is not None
        counts = {one.name.lower(): self._counts[one] for one in Status}
        counts["not_started"] = max(0, planned - sum(counts.values()))
        counts["left_out"] = len(left_out)
        seconds = round(self._clock() - self._started, 3)
        if self._as_json:
            summary = {**counts, "seconds": seconds, "interrupted": interrupted, "exit_status": status}
            typer.echo(json.dumps({"summary": summary}))
            return status
        if self.failures:
            _console().print(_table(self.failures))
        if self.failures or interrupted or not self._quiet:
            typer.echo(_total(counts, seconds), err=True)
        return status


def tell_done(facts: Mapping[str, Any], *, quiet: bool) -> None:
    """Tell a person of a finished picture, in one line after its warnings; no comparison even where *quiet*."""
    if "comparison_error" in facts:
        why = printable(facts["comparison_error"]["message"])
        typer.echo(f"no comparison for {printable(facts['output'])}: {why}", err=True)
    if not quiet:
        for warning in facts.get("fidelity", {}).get("warnings", ()):
            typer.echo(f"{printable(facts['output'])}: {printable(warning)}", err=True)
        size = f"{facts['width']} x {facts['height']}" if "width" in facts else ""  # a foreign gateway does not say
        told = (printable(facts["output"]), size, facts["model_id"] or "", f"{facts['seconds']:.1f} s")
        typer.echo("  ".join(word for word in told if word))


def line_of(outcome: Outcome) -> dict[str, Any]:
    """Return one picture's outcome as plain values."""
    line: dict[str, Any] = {"input": str(outcome.source), "status": outcome.status.name.lower()}
    if outcome.target is not None:
        line["output"] = str(outcome.target)
    if outcome.error is not None:
        line["error"] = {"code": outcome.error.code, "message": outcome.error.message}
    return line | dict(outcome.facts)


def _table(failures: Collection[Outcome]) -> Table:
    table = Table("picture", "error", "why", title="What failed", title_justify="left")
    for outcome in failures:
        error = outcome.error or FourfoldError()
        table.add_row(Text(printable(outcome.source), overflow="fold"), error.code, Text(printable(error.message)))
    return table


def _total(counts: dict[str, int], seconds: float) -> str:
    words = {
        "done": "upscaled",
        "failed": "failed",
        "skipped": "there already",
        "not_started": "not done",
        "left_out": "left alone as results of an earlier run",
    }
    told = [f"{counts[name]} {text}" for name, text in words.items() if counts[name] or name == "done"]
    return f"{', '.join(told)}; {seconds:.1f} s"


def _console() -> Console:
    return Console(stderr=True, highlight=False, markup=False)
