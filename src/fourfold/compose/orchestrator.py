"""An orchestrator: its workers, among them one of its own, its certificate and its one port."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from fourfold.compose.common import Announce, background, drains, load, sweep_forever
from fourfold.compose.models import sold_models
from fourfold.compose.own_worker import OwnWorker, own_worker
from fourfold.config import Settings
from fourfold.imaging import Codec
from fourfold.orchestrator.models import ModelConfig, own_models
from fourfold.processes.lock import ORPHAN_PATIENCE_S, FolderLock
from fourfold.processes.role import announce_ready
from fourfold.processes.sockets import authority, listen
from fourfold.results import FilesystemStore
from fourfold.telemetry import Metrics

_ANY_HOST: Final = frozenset({"0.0.0.0", "::"})  # compared with, not bound to


async def run_orchestrator(settings: Settings, stop: asyncio.Event, announce: Announce = announce_ready) -> None:
    """Serve gateways. Shutdown: refuse new jobs, finish the open ones, then the worker."""
    ours = settings.orchestrator
    folder = settings.data_dir / "orchestrator"
    models = sold_models(ours.models, settings.worker)
    metrics = Metrics("orchestrator")
    with listen(ours.host, ours.port) as sock, FolderLock(folder, patience_s=ORPHAN_PATIENCE_S):
        host = (ours.service_addr or "").rpartition(":")[0] or ("localhost" if ours.host in _ANY_HOST else ours.host)
        store = FilesystemStore(folder / "results", ttl_s=ours.result_ttl_s, max_bytes=ours.result_bytes)
        async with _own_worker(settings, own_models(models), metrics) as mine:
            # Loaded while the worker starts, whose start is the longer one.
            await load("fourfold.orchestrator.app", "fourfold.processes.serving", "fourfold.protocol.tls")
            from fourfold.orchestrator.app import create_app
            from fourfold.orchestrator.workers import Endpoint, Workers, external_endpoints
            from fourfold.processes.serving import serve
            from fourfold.protocol.tls import ensure_certificate

            tls = ensure_certificate(folder / "tls", host.strip("[]"))
            async with Codec(on_restart=lambda: metrics.restarted("codec")) as codec:
                for worker in mine:
                    await worker.process.wait_ready()
                endpoints: tuple[Endpoint, ...] = (*external_endpoints(models), *mine)
                async with (
                    Workers(
                        endpoints,
                        check_s=ours.worker_check_s,
                        timeout_s=ours.worker_timeout_s,
                        on_retry=metrics.count_error,
                    ) as workers,
                    background(sweep_forever(store), name="sweep"),
                ):
                    app = create_app(
                        ours,
                        models,
                        workers=workers,
                        codec=codec,
                        results=store,
                        spool=folder / "spool",
                        service_url=f"https://{ours.service_addr}" if ours.service_addr else None,
                        metrics=metrics,
                    )
                    async with drains(stop, app.drain):
                        announce({"role": "orchestrator", "url": f"https://{authority(sock)}"})
                        await serve(app, sock, stop=stop, drain_s=ours.drain_s, tls=(tls.certificate, tls.key))


@asynccontextmanager
async def _own_worker(
    settings: Settings, models: Sequence[ModelConfig], metrics: Metrics
) -> AsyncIterator[Sequence[OwnWorker]]:
    """Yield the worker of our own for the entries without a url, if there are any."""
    if not models:
        yield ()
        return
    async with own_worker(settings, models, metrics) as worker:
        yield (worker,)
