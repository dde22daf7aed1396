"""A whole gateway in this process, served on loopback, over any orchestrators."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.config import GatewaySettings, LimitSettings
from fourfold.engine.base import EngineCard
from fourfold.gateway.app import create_app
from fourfold.gateway.board import JobBoard
from fourfold.gateway.discovery import Discovery
from fourfold.gateway.dispatch import Dispatcher
from fourfold.gateway.pinning import Pins
from fourfold.gateway.ports import Clock, Codec, SystemClock
from fourfold.gateway.submission import Submitter
from fourfold.imaging import files
from fourfold.imaging.values import Canvas, Measures, OutputOptions, Prepared, Recipe, Written
from fourfold.processes.serving import serve
from fourfold.processes.sockets import authority, listen
from fourfold.results.filesystem import FilesystemStore
from fourfold.telemetry import Metrics


class ThreadCodec:
    """The real codec, in threads of this process: quick to start, and not to be killed."""

    async def prepare(
        self, source: Path, folder: Path, limits: LimitSettings, *, wrap_px: int = 0, alpha_wrap_px: int = 0
    ) -> Prepared:
        """Bring *source* to canonical form."""
        wraps = {"wrap_px": wrap_px, "alpha_wrap_px": alpha_wrap_px}
        return await asyncio.to_thread(files.prepare, source, folder, limits, **wraps)

    async def verify(self, source: Path, width: int, height: int, original: Path | Canvas) -> Measures:
        """Decode all of *source*."""
        return await asyncio.to_thread(files.verify, source, width, height, original)

    async def finish(self, source: Path, recipe: Recipe, target: Path, options: OutputOptions) -> Written:
        """Put back what *recipe* took away."""
        return await asyncio.to_thread(files.finish, source, recipe, target, options)


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """A gateway that serves, and its parts."""

    url: str
    settings: GatewaySettings
    board: JobBoard
    discovery: Discovery
    dispatcher: Dispatcher
    metrics: Metrics
    spool: Path
    results: Path


@asynccontextmanager
async def running_gateway(
    folder: Path,
    orchestrators: Sequence[str],
    *,
    cards: Mapping[str, EngineCard] | None = None,
    codec: Codec | None = None,
    clock: Clock | None = None,
    wall_clock: Callable[[], float] | None = None,
    wait_for_offer: bool = True,
    **settings: Any,
) -> AsyncIterator[RunningGateway]:
    """Run a gateway with *settings* over *orchestrators* until the block ends; its files lie in *folder*."""
    settings = {"discovery_interval_s": 0.2, "discovery_timeout_s": 2.0, "drain_s": 1.0, **settings}
    checked = GatewaySettings(orchestrators=tuple(orchestrators), **settings)
    clock = clock or SystemClock()
    metrics = Metrics("gateway")
    spool, results = folder / "spool", folder / "results"
    spool.mkdir(parents=True)
    pins = Pins(mode=checked.pin, timeout_s=checked.discovery_timeout_s)
    discovery = Discovery(
        checked.orchestrators,
        pins=pins,
        interval_s=checked.discovery_interval_s,
        timeout_s=checked.discovery_timeout_s,
        clock=clock,
    )
    submitter = Submitter(
        pins=pins,
        connect_s=checked.discovery_timeout_s,
        result_bytes=checked.result_download_bytes,
        result_hosts=checked.result_hosts,
    )
    store = FilesystemStore(
        results,
        ttl_s=checked.result_ttl_s,
        max_bytes=checked.result_bytes,
        wall_clock=wall_clock or clock.time,
    )
    board = JobBoard(max_jobs=checked.max_jobs, metrics=metrics, clock=clock)
    dispatcher = Dispatcher(
        checked,
        discovery=discovery,
        submitter=submitter,
        codec=codec or ThreadCodec(),
        store=store,
        metrics=metrics,
        known=cards or {},
        clock=clock,
    )
    app = create_app(
        checked,
        board=board,
        discovery=discovery,
        dispatcher=dispatcher,
        store=store,
        metrics=metrics,
        cards=cards or {},
        spool=spool,
        clock=clock,
    )
    sock = listen("127.0.0.1", 0)
    url = f"http://{authority(sock)}"
    stop = asyncio.Event()
    async with dispatcher:
        discovering = asyncio.create_task(discovery.run(), name="discovery")
        serving = asyncio.create_task(serve(app, sock, stop=stop, drain_s=checked.drain_s), name="gateway")
        try:
            if wait_for_offer:
                async with asyncio.timeout(10):
                    await discovery.first_offer.wait()
            yield RunningGateway(url, checked, board, discovery, dispatcher, metrics, spool, results)
        finally:
            stop.set()
            await serving
            discovering.cancel()
            await asyncio.gather(discovering, return_exceptions=True)
