"""The parent's side of one device's child process: start, feed, watch, kill. Its death is an error, not an outage."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from fourfold.engine import registry
from fourfold.engine.base import EngineCard
from fourfold.engine.networks import Networks
from fourfold.errors import (
    DeadlineExceededError,
    EngineCrashedError,
    FourfoldError,
    OutOfMemoryError,
    error_for,
)
from fourfold.processes.child import Child, ChildDiedError
from fourfold.telemetry import Metrics
from fourfold.worker import orders
from fourfold.worker.models import DeviceModels, ReplacedError
from fourfold.worker.orders import DeviceJob, DeviceResult
from fourfold.worker.upkeep import Upkeep

log = logging.getLogger(__name__)

_MODULE: Final = "fourfold.worker.child"
_PULSE_S: Final = 2.0
#: Silence after which a child counts as frozen. Its answering thread needs one moment of the interpreter's lock, which
#: no step of an engine holds for long; loading a model's runtime may, for a few seconds.
_FROZEN_S: Final = 20.0

OnProgress = Callable[[int, int], None]
"""Called with the steps done and their total."""


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What one device's child may use."""

    threads: int
    memory_bytes: int
    float32: bool  #: never bf16
    capacity: int  #: jobs at once
    load_timeout_s: float
    job_timeout_s: float
    device: str = "cpu"  #: or "auto", or a GPU: "cuda:0"
    strict: bool = False  #: on a GPU, too, one batch size only
    model_paths: Mapping[str, Path] = field(default_factory=dict)  #: model_id -> folder
    networks: Networks = field(default_factory=dict)  #: model_id -> an operator's own network
    safety_checker: Path | None = None  #: folder of the stock safety checker; None: where the hub's cache has it
    compile_models: tuple[str, ...] | None = None  #: models whose kernels are compiled; None: on a GPU all, else none
    kernels: Path | None = None  #: folder that keeps compiled kernels; None = torch's own


@dataclass(slots=True)
class _OpenJob:
    """A job that the child holds."""

    ended: asyncio.Future[DeviceResult]
    on_progress: OnProgress


class Device:
    """One device. Use as a context manager: the child starts with it and is gone after it.

    A crash fails every job in the child; each is then tried once more, alone in a new one, before anything is said
    about its input.
    """

    def __init__(
        self,
        limits: DeviceLimits,
        cards: Mapping[str, EngineCard],
        *,
        warm: tuple[str, ...] = (),
        metrics: Metrics | None = None,
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._child: Child | None = None
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._slots = asyncio.Semaphore(limits.capacity)
        self._alone = asyncio.Lock()
        self._jobs: dict[str, _OpenJob] = {}
        self._models = DeviceModels(
            cards,
            warm=warm,
            budget_bytes=limits.memory_bytes,
            load_timeout_s=limits.load_timeout_s,
            on_stuck=self._replace_if_stuck,
            on_failure=lambda model_id: self._upkeep.tend(model_id),
            metrics=metrics,
        )
        self._upkeep = Upkeep(
            self._models,
            tuple(cards),
            warm=warm,
            have_child=self._have_child,
            is_quiet=lambda: not self._jobs,
            why_not_loadable=lambda model_id: registry.why_not_loadable(model_id, limits.model_paths, limits.networks),
        )
        self._closing = False
        self._starts = 0
        self._heard_s = 0.0  #: when the child last gave a sign of life
        if metrics is not None:
            metrics.runs_models(cards)
            metrics.watch_models(cards, is_available=lambda model_id: model_id not in self.failures)

    async def __aenter__(self) -> Self:
        await self._upkeep.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Kill the child and wait for its end; open jobs fail."""
        self._closing = True
        await self._upkeep.close()
        child, reader = self._child, self._reader
        if child is not None:
            child.kill()
            await child.close()
        if reader is not None:
            await reader
        await self._models.close()

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._child.pid if self._child is not None else None

    @property
    def loaded(self) -> tuple[str, ...]:
        """The models in memory now."""
        return self._models.loaded

    @property
    def running(self) -> int:
        """Jobs in the child now."""
        return len(self._jobs)

    @property
    def is_loading(self) -> bool:
        """Whether a warm model is not there yet, and may still come."""
        return self._upkeep.is_loading

    @property
    def failures(self) -> Mapping[str, FourfoldError]:
        """The models that cannot be had now, and why; each is tried again by itself."""
        return self._models.failures

    async def run(self, job: DeviceJob, on_progress: OnProgress = lambda _done, _total: None) -> DeviceResult:
        """Have the child do *job*; its pixels are on the target canvas when this returns. Cancelling this frees it.

        Raises:
            ModelUnavailableError, OutOfMemoryError: the model cannot be loaded, or the job does not fit.
            EngineCrashedError: the child died with the job, and again with the job alone.
            DeadlineExceededError: it took longer than the limit, waiting included.
        """
        try:
            async with asyncio.timeout(self._limits.job_timeout_s):
                return await self._run_twice(job, on_progress)
        except TimeoutError:
            if self._child is not None and not self._jobs and not self._models.is_loading:
                self._child.kill()  # hung, perhaps: nobody else loses by a new one
            raise DeadlineExceededError(
                f"the job took longer than {self._limits.job_timeout_s:g} s; send a smaller image"
            ) from None

    async def _run_twice(self, job: DeviceJob, on_progress: OnProgress) -> DeviceResult:
        try:
            return await self._attempt(job, on_progress, lambda: self._slots)
        except ChildDiedError as exc:
            log.warning("device_died", extra={"job_id": job.job_id, "how": exc.reason, "next": "retry alone"})
        try:
            return await self._attempt(job, on_progress, self._all_slots)
        except ChildDiedError as exc:
            kind = OutOfMemoryError if exc.returncode == orders.OUT_OF_MEMORY_STATUS else EngineCrashedError
            raise kind(f"the device's process {exc.reason}, twice with this job") from exc

    async def _attempt(
        self, job: DeviceJob, on_progress: OnProgress, place: Callable[[], AbstractAsyncContextManager[None]]
    ) -> DeviceResult:
        """Run *job* once, in *place*; the model comes first: who waits for one to be loaded takes nobody's place.

        Raises: ChildDiedError if the child dies meanwhile, or in loading the model.
        """
        size = job.source.width, job.source.height
        while True:
            child = await self._have_child()
            with contextlib.suppress(ReplacedError):
                async with self._models.claim(child, job.model_id, size), place():
                    if child.alive:
                        return await self._run_in(child, job, on_progress)

    @asynccontextmanager
    async def _all_slots(self) -> AsyncIterator[None]:
        """Hold every slot, so that the job inside is alone."""
        held = 0
        async with self._alone:
            try:
                while held < self._limits.capacity:
                    await self._slots.acquire()
                    held += 1
                yield
            finally:
                for _ in range(held):
                    self._slots.release()

    async def _run_in(self, child: Child, job: DeviceJob, on_progress: OnProgress) -> DeviceResult:
        """Have *child* do *job*. Raises: ChildDiedError if it dies meanwhile."""
        ended: asyncio.Future[DeviceResult] = asyncio.get_running_loop().create_future()
        self._jobs[job.job_id] = _OpenJob(ended, on_progress)
        try:
            await child.send({"op": orders.RUN, "job": job.to_json()})
            return await ended
        except asyncio.CancelledError:
            if child.alive and not self._closing:
                await child.send({"op": orders.CANCEL, "job_id": job.job_id})
            raise
        finally:
            self._jobs.pop(job.job_id, None)
            self._replace_if_stuck()

    def _replace_if_stuck(self) -> None:
        """Kill a child whose loading hangs, as soon as no job is in it; the next one starts afresh."""
        if self._models.is_stuck and not self._jobs and self._child is not None:
            self._child.kill()

    async def _have_child(self) -> Child:
        """Return the living child, a new one where there is none."""
        async with self._starting:
            if self._child is not None and self._child.alive and self._reader and not self._reader.done():
                return self._child
            if self._reader is not None:
                await self._reader  # so that nothing of the dead one is left when the new one starts
            arguments = ["--threads", str(self._limits.threads), "--memory-bytes", str(self._limits.memory_bytes)]
            arguments += ["--float32"] if self._limits.float32 else []
            arguments += ["--strict"] if self._limits.strict else []
            paths = {model_id: str(path) for model_id, path in self._limits.model_paths.items()}
            arguments += ["--device", self._limits.device, "--model-paths", json.dumps(paths)]
            networks = {model_id: network.to_json() for model_id, network in self._limits.networks.items()}
            arguments += ["--networks", json.dumps(networks)]
            if self._limits.safety_checker is not None:
                arguments += ["--safety-checker", str(self._limits.safety_checker)]
            arguments += ["--compile-models", json.dumps(self._limits.compile_models)]
            arguments += ["--kernels", str(self._limits.kernels)] if self._limits.kernels is not None else []
            try:
                child = await Child.start(_MODULE, arguments, name="device")
            except OSError as exc:
                raise ChildDiedError(f"could not be started: {exc.strerror}", None) from exc
            try:
                async with asyncio.timeout(self._limits.load_timeout_s):
                    ready = await child.receive()
            except (TimeoutError, asyncio.CancelledError):
                child.kill()
                await child.close()
                raise
            self._models.budget_bytes = ready.get("memory_bytes", self._limits.memory_bytes)
            self._models.device = ready.get("device", self._limits.device)
            self._starts += 1
            if self._starts > 1 and self._metrics is not None:
                self._metrics.restarted("device")
            self._child = child
            self._reader = asyncio.create_task(self._read(child), name="device-reader")
            return child

    async def _keep_pulse(self, child: Child) -> None:
        """Ask the child for signs of life; kill one that gives none: whoever waits for it is told at once."""
        self._heard_s = time.monotonic()
        with contextlib.suppress(ChildDiedError):  # the reader sees that, too
            while True:
                asked_s = time.monotonic()
                await child.send({"op": orders.PING})
                await asyncio.sleep(_PULSE_S)
                late_s = time.monotonic() - asked_s - _PULSE_S
                if late_s > _PULSE_S:
                    self._heard_s += late_s  # it was us who stood still
                if time.monotonic() - self._heard_s > _FROZEN_S:
                    log.error("device_process_frozen", extra={"pid": child.pid, "jobs": len(self._jobs)})
                    child.kill()
                    return

    async def _read(self, child: Child) -> None:
        """Hand on the child's events until its pipe ends; then fail what it held."""
        pulse = asyncio.create_task(self._keep_pulse(child), name="device-pulse")
        try:
            while True:
                event = await child.receive()
                self._heard_s = time.monotonic()
                self._take(event)
        except ChildDiedError as exc:
            pulse.cancel()
            await asyncio.gather(pulse, return_exceptions=True)
            if not self._closing:
                log.warning("device_process_ended", extra={"how": exc.reason, "jobs": sorted(self._jobs)})
            await child.close()
            self._models.child_died(exc)
            for job in self._jobs.values():
                if not job.ended.done():
                    job.ended.set_exception(ChildDiedError(exc.reason, exc.returncode))
            if not self._closing:
                self._upkeep.child_died()

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind in (orders.LOADED, orders.LOAD_FAILED):
            self._models.take(event)
            return
        if kind == orders.REMARK:
            _log_remark(event["name"], event["facts"])
            return
        if kind == orders.MEMORY_RAN_OUT:
            log.warning("memory_plan_failed", extra={name: value for name, value in event.items() if name != "event"})
            if self._metrics is not None:
                self._metrics.memory_plan_failed(event["model_id"])
            return
        job = self._jobs.get(event.get("job_id", ""))
        if job is None or job.ended.done():
            return
        if kind == orders.PROGRESS:
            job.on_progress(event["done"], event["total"])
        elif kind == orders.DONE:
            job.ended.set_result(DeviceResult(event["nsfw_score"], event["notes"]))
        elif kind == orders.FAILED:
            job.ended.set_exception(error_for(event["code"], event["message"], otherwise=EngineCrashedError))


def _log_remark(name: str, facts: dict[str, Any]) -> None:
    """Log what an engine says about itself."""
    if name == "optimization_ignored":
        log.warning("optimization_ignored", extra=facts)
    elif name == "compile_failed":
        log.warning("compile_failed", extra=facts)
    elif name == "kernels_ready":
        log.info("kernels_ready", extra=facts)
