"""A gateway: discovery, dispatch, the store of results and the HTTP that clients see."""

import asyncio
import shutil

from fourfold.compose.common import Announce, background, sweep_forever
from fourfold.config import Settings
from fourfold.engine import registry
from fourfold.errors import ConfigError
from fourfold.gateway.app import create_app
from fourfold.gateway.board import JobBoard
from fourfold.gateway.discovery import Discovery
from fourfold.gateway.dispatch import Dispatcher
from fourfold.gateway.pinning import Pins
from fourfold.gateway.submission import Submitter
from fourfold.imaging import Codec
from fourfold.processes.lock import ORPHAN_PATIENCE_S, FolderLock
from fourfold.processes.role import announce_ready
from fourfold.processes.serving import serve
from fourfold.processes.sockets import authority, listen
from fourfold.results import FilesystemStore
from fourfold.telemetry import Metrics


async def run_gateway(settings: Settings, stop: asyncio.Event, announce: Announce = announce_ready) -> None:
    """Serve clients; ready once one offer is known. Shutdown: refuse new jobs, finish the open ones, close."""
    ours = settings.gateway
    if not ours.orchestrators:
        raise ConfigError(
            "a gateway needs an orchestrator: --orchestrator https://host:8935, or [gateway] orchestrators = [...]"
        )
    folder = settings.data_dir / "gateway"
    metrics = Metrics("gateway")
    pins = Pins(mode=ours.pin, timeout_s=ours.discovery_timeout_s)
    discovery = Discovery(
        ours.orchestrators, pins=pins, interval_s=ours.discovery_interval_s, timeout_s=ours.discovery_timeout_s
    )
    submitter = Submitter(
        pins=pins,
        connect_s=ours.discovery_timeout_s,
        result_bytes=ours.result_download_bytes,
        result_hosts=ours.result_hosts,
    )
    with listen(ours.host, ours.port) as sock, FolderLock(folder, patience_s=ORPHAN_PATIENCE_S):
        spool = folder / "spool"
        shutil.rmtree(spool, ignore_errors=True)  # what a killed predecessor left
        spool.mkdir()
        store = FilesystemStore(folder / "results", ttl_s=ours.result_ttl_s, max_bytes=ours.result_bytes)
        board = JobBoard(max_jobs=ours.max_jobs, metrics=metrics)
        async with (
            Codec(processes=ours.codec_processes, on_restart=lambda: metrics.restarted("codec")) as codec,
            Dispatcher(
                ours,
                discovery=discovery,
                submitter=submitter,
                codec=codec,
                store=store,
                metrics=metrics,
                known=registry.cards(),
            ) as dispatcher,
            background(discovery.run(), name="discovery"),
            background(sweep_forever(store), name="sweep"),
        ):
            app = create_app(
                ours,
                board=board,
                discovery=discovery,
                dispatcher=dispatcher,
                store=store,
                metrics=metrics,
                cards=registry.cards(),
                spool=spool,
            )
            url = f"http://{authority(sock)}"
            closing = asyncio.Event()
            async with (
                background(_announce_when_ready(discovery, announce, url), name="announce"),
                background(_drain(board, stop, closing, ours.drain_s), name="drain"),
            ):
                await serve(app, sock, stop=closing, drain_s=ours.drain_s)
        shutil.rmtree(spool, ignore_errors=True)


async def _announce_when_ready(discovery: Discovery, announce: Announce, url: str) -> None:
    """Announce the gateway once somebody offers something."""
    await discovery.first_offer.wait()
    announce({"role": "gateway", "url": url, "models": sorted(discovery.offered_models())})


async def _drain(board: JobBoard, stop: asyncio.Event, closing: asyncio.Event, drain_s: float) -> None:
    """On *stop* refuse new jobs, with an answer, until the open ones have ended; only then close the port."""
    await stop.wait()
    await board.drain(drain_s)
    closing.set()
