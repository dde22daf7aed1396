"""The parent's side of the codec processes: a small pool, started ahead of time, each member killable."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

from fourfold.config import LimitSettings
from fourfold.errors import BadResultError, FourfoldError, InvalidImageError, WorkerFailedError, error_for
from fourfold.imaging.canvas import Canvas
from fourfold.imaging.fidelity import Measures, Written
from fourfold.imaging.options import OutputOptions
from fourfold.imaging.recipe import Recipe
from fourfold.imaging.values import Compared, Header, Opened, Prepared
from fourfold.processes.child import Child, ChildDiedError

log = logging.getLogger(__name__)

_MEMORY_BYTES: Final = 2 * 2**30
_MODULE: Final = "fourfold.imaging.server"
_DEFAULT: Final = OutputOptions()
#: Pixels that a codec is given ``timeout_s`` for; more pixels get more time.
_TIMED_PIXELS: Final = 64_000_000


class Codec:
    """Decodes and encodes in processes of its own, off every event loop. Use as a context manager.

    A picture that ends two processes one after the other, or takes longer than *timeout_s*, is refused like any other
    damaged picture; each process is replaced, and nobody else's picture suffers. Once is no proof: the system may have
    killed a process that had done nothing.
    """

    def __init__(
        self,
        *,
        processes: int = 1,
        timeout_s: float = 60.0,
        memory_bytes: int = _MEMORY_BYTES,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        self._count = processes
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._on_restart = on_restart
        self._idle: asyncio.Queue[Child | None] = asyncio.Queue()
        self._children: set[Child] = set()
        self._burials: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            for child in await asyncio.gather(*(self._start() for _ in range(self._count))):
                self._idle.put_nowait(child)
        except ChildDiedError as exc:
            await self.close()
            raise WorkerFailedError(f"a codec process cannot start: {exc.reason}; its message stands above") from exc
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End every process and wait until they are gone."""
        await asyncio.gather(*(child.close() for child in self._children), *self._burials)
        self._children.clear()

    async def inspect(self, source: Path, limits: LimitSettings) -> Header:
        """Return what the header of *source* says. Raises: see ``imaging.formats.inspect``."""
        return Header(**await self._ask("inspect", source=str(source), limits=_plain(limits)))

    async def prepare(
        self, source: Path, folder: Path, limits: LimitSettings, *, wrap_px: int = 0, alpha_wrap_px: int = 0
    ) -> Prepared:
        """Bring *source* to canonical form, encoded. Raises: see ``imaging.files.prepare``."""
        done = await self._ask(
            "prepare",
            source=str(source),
            folder=str(folder),
            limits=_plain(limits),
            wrap_px=wrap_px,
            alpha_wrap_px=alpha_wrap_px,
        )
        recipe = Recipe.from_json(done["recipe"])
        canvas = Canvas.from_json(done["canvas"]) if done["canvas"] else None
        return Prepared(Path(done["path"]), done["width"], done["height"], recipe, done["bits"], canvas)

    async def open_canvas(
        self, source: Path, folder: Path, limits: LimitSettings, *, wrap_px: int = 0, max_bits: int = 16
    ) -> Opened:
        """Bring *source* to canonical form, decoded. Raises: see ``imaging.files.prepare``."""
        done = await self._ask(
            "open_canvas",
            source=str(source),
            folder=str(folder),
            limits=_plain(limits),
            wrap_px=wrap_px,
            max_bits=max_bits,
        )
        return Opened(Canvas.from_json(done["canvas"]), Recipe.from_json(done["recipe"]))

    async def encode(self, canvas: Canvas, recipe: Recipe, target: Path, options: OutputOptions = _DEFAULT) -> Written:
        """Write the upscaled *canvas* as *options* say, with what *recipe* took away put back.

        Raises: InvalidParameterError if that size or format cannot be; StorageFullError.
        """
        done = await self._ask(
            "encode",
            canvas=canvas.to_json(),
            recipe=recipe.to_json(),
            target=str(target),
            options=options.to_json(),
            crash=WorkerFailedError,
            pixels=canvas.width * canvas.height,
        )
        return Written.from_json(done)

    async def finish(self, source: Path, recipe: Recipe, target: Path, options: OutputOptions = _DEFAULT) -> Written:
        """Write the upscaled file *source* as *options* say, with what *recipe* took away put back.

        Raises: BadResultError if *source* cannot be read; InvalidParameterError, StorageFullError.
        """
        done = await self._ask(
            "finish",
            source=str(source),
            recipe=recipe.to_json(),
            target=str(target),
            options=options.to_json(),
            crash=BadResultError,
            pixels=16 * recipe.intake.width * recipe.intake.height,
        )
        return Written.from_json(done)

    async def verify(self, source: Path, width: int, height: int, original: Path | Canvas | None = None) -> Measures:
        """Decode all of *source*, and compare it with the canonical *original* it was made of, if that is given.

        Raises: BadResultError if it is no sound picture of *width* x *height*.
        """
        done = await self._ask(
            "verify",
            source=str(source),
            width=width,
            height=height,
            original=str(original) if isinstance(original, Path) else None,
            canvas=original.to_json() if isinstance(original, Canvas) else None,
            crash=BadResultError,
            pixels=width * height,
        )
        return Measures(**done)

    async def measure(self, original: Canvas, result: Canvas) -> Measures:
        """Compare the upscaled *result* with the canvas *original* it was made of."""
        done = await self._ask(
            "measure",
            original=original.to_json(),
            result=result.to_json(),
            crash=WorkerFailedError,
            pixels=result.width * result.height,
        )
        return Measures(**done)

    async def compare(self, a: Path, b: Path, target: Path, limits: LimitSettings | None = None) -> Compared:
        """Write *a* and *b* side by side, labelled with their names, to the PNG *target*; return how alike they are.

        Where their sizes differ the smaller one is enlarged to the larger one's, by Lanczos.

        Raises: as :meth:`inspect`, StorageFullError.
        """
        limits = limits or LimitSettings(input_pixels=100_000_000, side_px=2**16)
        done = await self._ask("compare", a=str(a), b=str(b), target=str(target), limits=_plain(limits))
        return Compared(**done)

    async def _start(self) -> Child:
        child = await Child.start(_MODULE, ["--memory-bytes", str(self._memory_bytes)], name="codec")
        self._children.add(child)
        try:
            await child.receive()  # ready
        except BaseException:  # whoever wanted it left meanwhile: nobody else knows of it
            self._bury(child)
            raise
        return child

    def _bury(self, child: Child) -> None:
        """Kill *child* and forget it; its end is awaited at the latest by :meth:`close`."""
        child.kill()
        burial = asyncio.create_task(child.close(), name="bury-codec")
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)
        self._children.discard(child)

    async def _ask(
        self, op: str, *, crash: type[FourfoldError] = InvalidImageError, pixels: int = 0, **request: Any
    ) -> dict[str, Any]:
        """Have a process do *op* on *pixels*; *crash* is the error if neither it nor a second one survives."""
        limit_s = self._timeout_s * max(1.0, pixels / _TIMED_PIXELS)
        try:
            reply = await self._ask_one(op, request, limit_s)
        except ChildDiedError as first:
            log.warning("codec_died", extra={"op": op, "how": first.reason})
            try:
                reply = await self._ask_one(op, request, limit_s)
            except ChildDiedError as exc:
                log.warning("codec_died", extra={"op": op, "how": exc.reason})
                raise crash(f"the picture cannot be processed: its codec process {exc.reason}, twice") from exc
        except TimeoutError as exc:
            log.warning("codec_died", extra={"op": op, "how": "timeout"})
            raise crash(f"the picture cannot be processed: it took longer than {limit_s:g} s") from exc
        if "error" in reply:
            raise error_for(reply["error"], reply["message"], otherwise=crash)
        result: dict[str, Any] = reply["ok"]
        return result

    async def _ask_one(self, op: str, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Have the next idle process do *op*. Raises: ChildDiedError, TimeoutError: it is replaced."""
        child = await self._idle.get()
        is_sound = False
        try:
            if child is None:
                child = await self._start()
                self._on_restart()
            async with asyncio.timeout(limit_s):
                await child.send({"op": op, **request})
                reply = await child.receive()
            is_sound = True
            return reply
        finally:
            # A process that still works for a caller who was cancelled is as lost as a dead one.
            if child is not None and not is_sound:
                self._bury(child)
            self._idle.put_nowait(child if is_sound else None)


def _plain(limits: LimitSettings) -> dict[str, int]:
    """Return what of *limits* is about the picture itself."""
    return {"input_pixels": limits.input_pixels, "side_px": limits.side_px}
