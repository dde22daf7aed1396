"""An orchestrator: its workers, among them one of its own, its certificate and its one port."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from fourfold.compose.common import Announce, background, drains, sweep_forever
from fourfold.compose.models import sold_models
from fourfold.config import Settings, to_json
from fourfold.errors import ConfigError
from fourfold.imaging import Codec
from fourfold.orchestrator.app import create_app
from fourfold.orchestrator.models import ModelConfig
from fourfold.orchestrator.workers import Endpoint, Workers, external_endpoints, own_models
from fourfold.processes.lock import ORPHAN_PATIENCE_S, FolderLock
from fourfold.processes.role import RoleProcess, announce_ready
from fourfold.processes.serving import authority, listen, serve
from fourfold.protocol.tls import ensure_certificate
from fourfold.protocol.wire import PIPELINE
from fourfold.results import FilesystemStore
from fourfold.telemetry import Metrics

log = logging.getLogger(__name__)

_ANY_HOST: Final = frozenset({"0.0.0.0", "::"})  # compared with, not bound to


@dataclass(frozen=True, slots=True)
class OwnWorker:
    """The worker process that an orchestrator owns, as an endpoint: on loopback, with a token nobody else knows."""

    process: RoleProcess
    token: str
    models: tuple[str, ...]
    capacity: int  #: orders that run or wait in it

    @property
    def url(self) -> str | None:
        """Where it listens now; None while it is down or starting."""
        return self.process.ready["url"] if self.process.ready is not None else None


@asynccontextmanager
async def own_worker(settings: Settings, models: Sequence[ModelConfig], metrics: Metrics) -> AsyncIterator[OwnWorker]:
    """Yield a running worker for *models*; it is restarted when it dies and gone afterwards."""
    _check_flags(models)
    token = secrets.token_urlsafe(32)
    capacity = max(settings.worker.capacity, *(model.capacity for model in models))
    ids = tuple(dict.fromkeys(model.model_id for model in models))
    theirs = settings.worker.model_copy(
        update={
            "host": "127.0.0.1",
            "port": 0,
            "pipeline": PIPELINE,
            "model_id": None,
            "models": ids,
            "warm": tuple(dict.fromkeys(model.model_id for model in models if model.warm)),
            "auth_token": SecretStr(token),
            "capacity": capacity,
            "model_paths": settings.worker.model_paths | {m.model_id: Path(m.path) for m in models if m.path},
        }
    )
    process = RoleProcess(
        "worker",
        to_json(settings.model_copy(update={"worker": theirs})),
        drain_s=theirs.drain_s,
        on_restart=metrics.restarted,
    )
    async with process:
        await process.wait_ready()
        yield OwnWorker(process, token, ids, capacity + theirs.queue)


def _check_flags(models: Sequence[ModelConfig]) -> None:
    """Refuse optimizations that change pictures; say which do nothing here.

    Raises: ConfigError for DEEPCACHE.
    """
    for model in models:
        asked = {flag for flag, value in model.optimization_flags.items() if str(value).lower() == "true"}
        if "DEEPCACHE" in asked:
            raise ConfigError(
                f"{model.model_id}: optimization_flags: DEEPCACHE is refused: it skips most of the network's work, "
                "so pictures change, and it mixes up jobs of one batch; remove it"
            )
        if asked:
            log.warning("optimization_ignored", extra={"model_id": model.model_id, "flags": sorted(asked)})


async def run_orchestrator(settings: Settings, stop: asyncio.Event, announce: Announce = announce_ready) -> None:
    """Serve gateways. Shutdown: refuse new jobs, finish the open ones, then the worker."""
    ours = settings.orchestrator
    folder = settings.data_dir / "orchestrator"
    models = sold_models(ours.models, settings.worker.model_paths)
    metrics = Metrics("orchestrator")
    with listen(ours.host, ours.port) as sock, FolderLock(folder, patience_s=ORPHAN_PATIENCE_S):
        host = (ours.service_addr or "").rpartition(":")[0] or ("localhost" if ours.host in _ANY_HOST else ours.host)
        tls = ensure_certificate(folder / "tls", host.strip("[]"))
        store = FilesystemStore(folder / "results", ttl_s=ours.result_ttl_s, max_bytes=ours.result_bytes)
        async with _endpoints(settings, models, metrics) as endpoints:
            workers = Workers(
                endpoints,
                check_s=ours.worker_check_s,
                timeout_s=ours.worker_timeout_s,
                on_retry=metrics.count_error,
            )
            async with (
                Codec(on_restart=lambda: metrics.restarted("codec")) as codec,
                workers,
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
async def _endpoints(
    settings: Settings, models: Sequence[ModelConfig], metrics: Metrics
) -> AsyncIterator[Sequence[Endpoint]]:
    """Yield where the workers are: those of others by url, and one of our own for the entries without one."""
    external = external_endpoints(models)
    mine = own_models(models)
    if not mine:
        yield external
        return
    async with own_worker(settings, mine, metrics) as worker:
        yield (*external, worker)
