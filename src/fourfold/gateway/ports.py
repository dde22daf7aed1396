"""What the gateway is handed from outside: a codec for pictures and a clock. The store is ``fourfold.results``."""

import asyncio
import time
from pathlib import Path
from typing import Any, Protocol

from fourfold.config import LimitSettings


class Recipe(Protocol):
    """What :meth:`Codec.finish` has to put back: alpha, profile, metadata."""

    @property
    def is_identity(self) -> bool:
        """Whether there is nothing to put back, so that the worker's own bytes are the result."""


class Prepared(Protocol):
    """A picture in canonical form."""

    @property
    def path(self) -> Path:
        """The canonical file; the source itself where that is canonical already."""

    @property
    def width(self) -> int:
        """Pixels, upright."""

    @property
    def height(self) -> int:
        """Pixels, upright."""

    @property
    def recipe(self) -> Recipe:
        """What to put back afterwards."""


class Codec(Protocol):
    """Decodes and encodes pictures somewhere that is not the event loop."""

    async def prepare(self, source: Path, folder: Path, limits: LimitSettings, /) -> Prepared:
        """Bring *source* to canonical form, in *folder* if a new file is needed.

        Raises: UnsupportedFormatError, ImageTooLargeError, InvalidImageError.
        """

    async def verify(self, path: Path, width: int, height: int, /) -> None:
        """Check that *path* is a whole picture of that size. Raises: BadResultError if not."""

    async def finish(self, image: Path, recipe: Any, target: Path, /) -> None:
        """Write *image* with *recipe* (that of :meth:`prepare`, of whatever type) applied to *target*."""


class Clock(Protocol):
    """Time, as an argument."""

    def monotonic(self) -> float:
        """Seconds that never go back, from an arbitrary start."""

    def time(self) -> float:
        """Seconds since the epoch."""

    async def sleep(self, seconds: float) -> None:
        """Return *seconds* later."""


class SystemClock:
    """The real one."""

    def monotonic(self) -> float:
        """Return the machine's monotonic clock."""
        return time.monotonic()

    def time(self) -> float:
        """Return the machine's wall clock."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Sleep in the event loop."""
        await asyncio.sleep(seconds)
