"""Go on with smaller parts where a part of a picture ran out of memory; what is finished stays.

The plan promised that the part fits. That it did not (another program took the memory, or a card's formula is wrong) is
an error of the plan: it is told, so that it is counted, and the part and all that come after it are made smaller.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fourfold.engine.base import MemoryRanOut, RegionDone
from fourfold.engine.turns import Extra, Work
from fourfold.errors import OutOfMemoryError

Part = TypeVar("Part")
"""What is computed at once: a tile, or several in one batch."""

Computation = Generator[object, None, Sequence[RegionDone]]
"""Yields between two steps; returns the finished regions."""


@dataclass(frozen=True, slots=True)
class Computer(Generic[Part]):
    """How an engine computes a part of a picture, and makes do with less memory."""

    compute: Callable[[Part], Computation]
    smaller: Callable[[Part], Sequence[Part]]  #: what to compute instead of it in less memory; nothing: it is the least
    pixels: Callable[[Part], int]  #: input pixels that are computed at once
    give_back: Callable[[], None] = field(default=lambda: None)  #: frees what a failed part left behind


def in_parts(
    job_id: str, parts: Iterable[Part], computer: Computer[Part], *, steps: int, notes: dict[str, Any]
) -> Work:
    """Compute *parts*, each *steps* planned steps, in order; make do with smaller ones once memory has run out.

    Only planned steps count as such, so that a job's total holds whatever happens: those of a part that is replaced are
    counted when the last of its replacements is done.

    Args: *notes*, of the job: told of the tiles that became more, and warned that memory was short.
    Raises: OutOfMemoryError: the smallest part, too, does not fit; nothing of it has been delivered.
    """
    shrunk = tiles = 0
    for part in parts:
        pending = deque(_shrunk([part], computer, shrunk))
        counted = 0
        while pending:
            work = computer.compute(pending[0])
            regions: Sequence[RegionDone] | None = None
            failure = ""
            while True:
                try:
                    next(work)
                except StopIteration as end:
                    regions = end.value
                    break
                except (OutOfMemoryError, MemoryError) as exc:
                    # Its words alone: the error's traceback holds the arrays that there was no room for.
                    failure = str(exc) or "no memory left"
                    break
                if shrunk:
                    yield Extra()
                else:
                    counted += 1
                    yield []
            if regions is None:
                del work
                computer.give_back()
                pixels = computer.pixels(pending[0])
                less = _shrunk(pending, computer, 1) if computer.smaller(pending[0]) else []
                yield Extra([MemoryRanOut(job_id, pixels, goes_on=bool(less))])
                if not less:
                    raise OutOfMemoryError(f"not even the smallest part, of {pixels} pixels, fits: {failure}")
                pending, shrunk = deque(less), shrunk + 1
                _warn(notes, shrunk)
                continue
            pending.popleft()
            tiles += len(regions)
            if shrunk:
                notes["tiles"] = tiles
            if pending:
                yield Extra(regions)
                continue
            for _ in range(counted, steps - 1):
                yield []
            yield regions


def _shrunk(parts: Iterable[Part], computer: Computer[Part], times: int) -> list[Part]:
    """Return *parts* made smaller *times* times; those that cannot be any smaller stay as they are."""
    less = list(parts)
    for _ in range(times):
        less = [piece for part in less for piece in (computer.smaller(part) or [part])]
    return less


def _warn(notes: dict[str, Any], shrunk: int) -> None:
    others = [warning for warning in notes.get("warnings", []) if not warning.startswith(_WARNING)]
    notes["warnings"] = [*others, f"{_WARNING} {shrunk} times: the rest was computed in smaller tiles, which is slower"]


_WARNING = "the device ran out of memory"
