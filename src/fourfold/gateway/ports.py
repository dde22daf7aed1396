"""What the gateway is handed from outside: a codec for pictures and a clock. The store is ``fourfold.results``."""

import asyncio
import time
from pathlib import Path
from typing import Any, Protocol

from fourfold.config import LimitSettings
from fourfold.imaging import Canvas, Measures, OutputOptions, Recipe, Written


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
        """What :meth:`Codec.finish` has to put back: alpha, profile, metadata."""

    @property
    def canvas(self) -> Canvas | None:
        """Its pixels, where they were kept."""


class Codec(Protocol):
    """Decodes and encodes pictures somewhere that is not the event loop."""

    async def prepare(
        self, source: Path, folder: Path, limits: LimitSettings, /, *, wrap_px: int = 0, alpha_wrap_px: int = 0
    ) -> Prepared:
        """Bring *source* to canonical form, in *folder* if a new file is needed.

        Args: *wrap_px*, extend it by this much of its opposite edges; *alpha_wrap_px*, only the transparency that
            :meth:`finish` puts back.

        Raises: UnsupportedFormatError, ImageTooLargeError, InvalidImageError.
        """

    async def verify(self, path: Path, width: int, height: int, original: Path | Canvas, /) -> Measures:
        """Check that *path* is a whole picture of that size, and compare it with the canonical *original*.

        Raises: BadResultError if it is not.
        """

    async def finish(self, image: Path, recipe: Any, target: Path, options: OutputOptions, /) -> Written:
        """Write *image* to *target* as *options* say, with *recipe* (that of :meth:`prepare`) applied.

        Raises: BadResultError, InvalidParameterError, StorageFullError.
        """


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
