"""Do a plan: several pictures at once, each whole or not at all; what fails fails alone."""

import asyncio
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final, Protocol

from fourfold.cli.plan import Item
from fourfold.cli.progress import Board, OnProgress
from fourfold.errors import FourfoldError, InvalidParameterError, StorageFullError, UnreachableError

log = logging.getLogger(__name__)

#: So many times in a row nobody answers before a batch gives up.
_UNANSWERED: Final = 3

Status = Enum("Status", ["DONE", "SKIPPED", "FAILED"])
"""Written | there already | not to be had."""


class Upscale(Protocol):
    """Upscales one picture: here, or through a gateway."""

    async def __call__(self, source: Path, target: Path, on_progress: OnProgress) -> dict[str, Any]:
        """Write the upscaled *source* to the file *target*, which exists and is empty; return the facts."""


class Compare(Protocol):
    """Puts two pictures side by side."""

    async def __call__(self, before: Path, after: Path, target: Path) -> object:
        """Write the labelled pair to *target*."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went with one picture."""

    source: Path
    target: Path | None
    status: Status
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: FourfoldError | None = None


async def run_batch(
    items: Sequence[Item],
    upscale: Upscale,
    *,
    jobs: int,
    board: Board,
    on_outcome: Callable[[Outcome], None],
    compare: Compare | None = None,
) -> None:
    """Upscale *items*, *jobs* at once, in their order; tell *on_outcome* of each as it ends.

    To cancel it leaves what is finished and nothing of what is not. Where nobody answers several times in a row, the
    rest is not tried: that is no matter of one picture, and each may take long to fail.
    """
    waiting = iter(items)
    unanswered = 0

    async def work() -> None:
        nonlocal unanswered
        for item in waiting:
            outcome = await _one(item, upscale, compare, board)
            on_outcome(outcome)
            unanswered = unanswered + 1 if isinstance(outcome.error, UnreachableError) else 0
            if unanswered >= _UNANSWERED:
                return

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(min(jobs, len(items))):
                group.create_task(work(), name=f"batch-{number}")
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed  # one cause, told as what it is


def split_existing(items: Sequence[Item]) -> tuple[list[Item], list[Outcome]]:
    """Return the items whose target is not there yet, and the outcome of each other one."""
    todo = [item for item in items if not is_there(item.target)]
    there = [Outcome(item.source, item.target, Status.SKIPPED) for item in items if is_there(item.target)]
    return todo, there


def is_there(target: Path) -> bool:
    """Whether a result is there already."""
    return os.path.isfile(target)  # Path.is_file raises for a name that is too long


async def _one(item: Item, upscale: Upscale, compare: Compare | None, board: Board) -> Outcome:
    started = time.monotonic()
    try:
        with board.follow(item.source.name) as on_progress, ExitStack() as files:
            _check_readable(item.source)
            if item.makes_folder:
                with _told(item.target):
                    item.target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = files.enter_context(whole_or_nothing(item.target))
            facts = await upscale(item.source, unfinished, on_progress)
            if compare is not None:  # before the target appears: one that is there has all that belongs to it
                facts |= await _compare(item, unfinished, compare)
    except FourfoldError as exc:
        return Outcome(item.source, item.target, Status.FAILED, error=exc)
    except Exception as exc:
        # The edge of one picture's task: whatever went wrong with it must not end the others.
        log.exception("picture_failed")
        error = FourfoldError(f"{type(exc).__name__}: {exc}")
        return Outcome(item.source, item.target, Status.FAILED, error=error)
    facts |= {"output": str(item.target), "seconds": round(time.monotonic() - started, 3)}
    return Outcome(item.source, item.target, Status.DONE, facts)


async def _compare(item: Item, unfinished: Path, compare: Compare) -> dict[str, Any]:
    """Write the comparison and return the facts; that there can be none is no reason to lose the picture."""
    try:
        with whole_or_nothing(item.comparison) as pair:
            await compare(item.source, unfinished, pair)
    except FourfoldError as exc:
        return {"comparison": None, "comparison_error": {"code": exc.code, "message": exc.message}}
    return {"comparison": str(item.comparison)}


@contextmanager
def whole_or_nothing(target: Path) -> Iterator[Path]:
    """Yield an empty file of *target*'s name that becomes *target* on success and is gone otherwise.

    It stands in a hidden folder beside *target*, made before the work: what cannot be written is told at once. A link
    stays one: the file that it leads to is replaced.

    Raises: InvalidParameterError if *target* is there and no file, StorageFullError if it cannot be written.
    """
    target = Path(os.path.realpath(target)) if os.path.islink(target) else target
    folder = target.with_name(f".fourfold-{secrets.token_hex(6)}.part")
    unfinished = folder / target.name
    try:
        with _told(target):
            if target.is_dir():
                raise InvalidParameterError(f"{target} is a folder; name a file with -o")
            if target.exists() and not target.is_file():  # /dev/null would become a picture for the whole machine
                raise InvalidParameterError(f"{target} is a device or a pipe; name a file with -o")
            folder.mkdir()
            unfinished.touch()
        yield unfinished
        with _told(target):
            os.replace(unfinished, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _told(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StorageFullError(f"cannot write {target}: {exc.strerror}") from exc


def _check_readable(source: Path) -> None:
    """Raises: InvalidParameterError if *source* cannot be opened."""
    try:
        source.open("rb").close()
    except OSError as exc:
        raise InvalidParameterError(f"cannot read {source}: {exc.strerror}") from exc
