"""A worker: its device's child, its codec and its HTTP."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from fourfold.compose.common import Announce, drains, load, loadable_cards, own_networks
from fourfold.compose.limits import usable_cores, usable_memory_bytes
from fourfold.config import Settings, WorkerSettings
from fourfold.engine import registry
from fourfold.engine.base import EngineCard
from fourfold.engine.safety_choice import locate_checker
from fourfold.errors import ConfigError, ModelUnavailableError, UnknownModelError
from fourfold.imaging import Codec
from fourfold.processes.lock import ORPHAN_PATIENCE_S, FolderLock
from fourfold.processes.role import announce_ready
from fourfold.processes.sockets import authority, listen
from fourfold.telemetry import Metrics
from fourfold.worker.process import Device, DeviceLimits
from fourfold.worker.service import Worker

_PIPELINE: Final = "upscale"


def worker_cards(settings: WorkerSettings) -> Mapping[str, EngineCard]:
    """Return the cards of the models that a worker with *settings* offers, its default first.

    Raises: ConfigError if a model is unknown here or the pipeline is not ours.
    """
    if settings.pipeline != _PIPELINE:
        raise ConfigError(f"worker.pipeline must be {_PIPELINE!r}, got {settings.pipeline!r}")
    networks = own_networks(settings)
    if settings.model_id:
        wanted: tuple[str, ...] = (settings.model_id,)
    else:
        # A network that was named and cannot be had is an error of the settings, not something to leave out.
        wanted = settings.models or (*loadable_cards(settings), *networks)
    try:
        found = {model_id: registry.card(model_id, networks) for model_id in wanted}
    except UnknownModelError as exc:
        raise ConfigError(f"worker.models: {exc.message}") from exc
    except ModelUnavailableError as exc:
        raise ConfigError(f"worker.networks: {exc.message}") from exc
    strays = sorted(model_id for model_id in settings.model_paths if not registry.takes_folder(model_id))
    if strays:
        known = ", ".join(model_id for model_id in registry.cards() if registry.takes_folder(model_id))
        raise ConfigError(f"worker.model_paths, or path of a model: {strays[0]!r} takes no folder; {known} does")
    return found


def device_limits(settings: WorkerSettings, kernels: Path | None = None) -> DeviceLimits:
    """Return what the device's child may use: what is set, else every core and half of the memory.

    Args: *kernels*, the folder that keeps compiled kernels from one start to the next.
    """
    return DeviceLimits(
        threads=settings.threads or usable_cores(),
        memory_bytes=settings.memory_bytes or usable_memory_bytes() // 2,
        float32=settings.precision == "float32",
        capacity=settings.capacity,
        load_timeout_s=settings.load_timeout_s,
        job_timeout_s=settings.job_timeout_s,
        device=settings.device,
        strict=settings.strict,
        model_paths=settings.model_paths,
        networks=own_networks(settings),
        safety_checker=settings.safety_checker,
        compile_models=settings.compile_models,
        kernels=kernels,
    )


@asynccontextmanager
async def open_worker(
    settings: WorkerSettings, cache: Path, metrics: Metrics, *, kernels: Path | None = None
) -> AsyncIterator[Worker]:
    """Yield a worker without its HTTP; its child and its codec end with it. *kernels*: see `device_limits`."""
    cards = worker_cards(settings)
    warm = settings.warm if settings.warm is not None else tuple(cards)[:1]
    _check_safety(settings)
    missing = [model_id for model_id in warm if model_id not in cards]
    if missing:
        raise ConfigError(f"worker.warm: {missing[0]!r} is not among the worker's models: {', '.join(cards)}")
    async with (
        Codec(
            processes=settings.codec_processes,
            timeout_s=settings.job_timeout_s,
            on_restart=lambda: metrics.restarted("codec"),
        ) as codec,
        Device(device_limits(settings, kernels), cards, warm=warm, metrics=metrics) as device,
    ):
        worker = Worker(
            device=device,
            codec=codec,
            cards=cards,
            cache=cache,
            max_orders=settings.capacity + settings.queue,
            limits=settings.limits,
            metrics=metrics,
        )
        try:
            yield worker
        finally:
            shutil.rmtree(cache, ignore_errors=True)


def _check_safety(settings: WorkerSettings) -> None:
    """Refuse at the start a checker that no job could be checked with. Raises: ConfigError."""
    if settings.safety_checker is not None:
        try:
            locate_checker(settings.safety_checker)
        except ModelUnavailableError as exc:
            raise ConfigError(exc.message) from exc


@asynccontextmanager
async def local_worker(settings: Settings, model_id: str) -> AsyncIterator[Worker]:
    """Yield a worker for this process alone, that holds one model: ``fourfold upscale`` without a network."""
    alone = settings.worker.model_copy(update={"model_id": model_id, "warm": (), "queue": 0, "pipeline": _PIPELINE})
    with tempfile.TemporaryDirectory(prefix="fourfold-") as folder:
        async with open_worker(alone, Path(folder) / "cache", Metrics("cli")) as worker:
            yield worker


async def run_worker(settings: Settings, stop: asyncio.Event, announce: Announce = announce_ready) -> None:
    """Serve the runner API. Shutdown: refuse new orders, finish the open ones, then the child and the codec."""
    ours = settings.worker
    folder = settings.data_dir / "worker"
    sock = listen(ours.host, ours.port)
    with sock, FolderLock(folder, patience_s=ORPHAN_PATIENCE_S):
        kernels = folder / "kernels"
        loading = asyncio.create_task(load("fourfold.worker.app", "fourfold.processes.serving"), name="load")
        async with open_worker(ours, folder / "cache", Metrics("worker"), kernels=kernels) as worker:
            await loading  # most of it while the codec started
            from fourfold.processes.serving import serve
            from fourfold.worker.app import create_app

            app = create_app(worker, ours)
            async with drains(stop, worker.drain):
                announce({"role": "worker", "url": f"http://{authority(sock)}", "models": list(worker.cards)})
                await serve(app, sock, stop=stop, drain_s=ours.drain_s)
