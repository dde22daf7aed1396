"""Connected workers: how each is, who has room for a model, and the one retry when a worker lets a job down.

A worker's slots are shared by its models. Health is asked for in the background; a job only reads what is known. A
model that no worker of its can load is withdrawn, until one can.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, Self

import httpx2

from fourfold.errors import (
    DeadlineExceededError,
    FourfoldError,
    ModelUnavailableError,
    NoCapacityError,
    NotFoundError,
    OutOfMemoryError,
    Retry,
    UnreachableError,
)
from fourfold.orchestrator import worker_call
from fourfold.orchestrator.answers import WorkResult
from fourfold.orchestrator.models import ModelConfig
from fourfold.orchestrator.worker_call import Address, WorkOrder
from fourfold.protocol.wire import UpscaleFields

log = logging.getLogger(__name__)

_DOWN: Final = "DOWN"
_DOWN_CHECK_S: Final = 0.5  #: most time between two checks of a worker that is down: a restarted one is soon seen
_STRIKES: Final = 2  #: silent checks in a row before a worker counts as down
_STRIKES_AT_WORK: Final = 3  #: the same for one of ours that has jobs, which are then taken from it
_DETAILS_S: Final = 30.0  #: age at which hardware and version are asked for again
REVIVE_S: Final = 20.0  #: default patience with the only worker of a model while it restarts


class Endpoint(Protocol):
    """Where a worker is to be found; the answer may change while it restarts."""

    @property
    def url(self) -> str | None:
        """Its base URL now, None while it is down."""

    @property
    def token(self) -> str | None:
        """The bearer token it wants."""

    @property
    def models(self) -> Sequence[str]:
        """The model ids that it serves."""

    @property
    def capacity(self) -> int:
        """Jobs it takes at once."""


@dataclass(frozen=True, slots=True)
class ExternalEndpoint:
    """A worker that somebody else runs, by ``url`` in aiModels.json."""

    url: str
    token: str | None = field(repr=False)
    models: tuple[str, ...]
    capacity: int


def external_endpoints(models: Sequence[ModelConfig]) -> tuple[ExternalEndpoint, ...]:
    """Return the workers that *models* name by url. Entries of one url are one worker, with the largest capacity."""
    found: dict[str, ExternalEndpoint] = {}
    for model in models:
        if model.url is None:
            continue
        known = found.get(model.url, ExternalEndpoint(model.url, model.token, (), 1))
        ids = tuple(dict.fromkeys((*known.models, model.model_id)))
        found[model.url] = ExternalEndpoint(
            model.url, known.token or model.token, ids, max(known.capacity, model.capacity)
        )
    return tuple(found.values())


@dataclass(slots=True, eq=False)
class ConnectedWorker:
    """One worker and what is known of it."""

    endpoint: Endpoint
    status: str = _DOWN  #: OK | IDLE | LOADING | ERROR | DOWN
    is_ours: bool | None = None  #: learnt from its answers; None = not yet
    in_use: int = 0  #: slots held by jobs
    version: str = ""
    gpus: dict[str, Any] = field(default_factory=dict)  #: what its /hardware/info says
    strikes: int = 0
    details_at: float | None = None  #: monotonic seconds
    checked_url: str | None = None  #: where it was when *status* was found out
    failures: dict[str, str] = field(default_factory=dict)  #: models that it says it cannot have, and why
    silent: asyncio.Event = field(default_factory=asyncio.Event)  #: set while it answers no check, jobs or not

    @property
    def is_ready(self) -> bool:
        """Whether jobs may be sent. One of ours takes them while it loads, and makes them wait."""
        if self.endpoint.url is None or self.endpoint.url != self.checked_url:
            return False
        return self.status in worker_call.HEALTHY or (self.status == worker_call.LOADING and self.is_ours is True)

    def can_run(self, model_id: str) -> bool:
        """Whether jobs for *model_id* may be sent."""
        return self.is_ready and model_id not in self.failures

    def has_room_for(self, model_id: str) -> bool:
        """Whether a job would find it ready, the model to be had and a slot free."""
        return self.can_run(model_id) and self.in_use < self.endpoint.capacity

    @property
    def load(self) -> tuple[bool, float]:
        """What to compare by: one that is loading comes after all others, then the emptier first."""
        return self.status == worker_call.LOADING, self.in_use / self.endpoint.capacity

    def address(self) -> Address:
        """Return where it is now. Raises: UnreachableError while it is down."""
        if self.endpoint.url is None:
            raise UnreachableError("the worker is restarting; try again in a moment")
        return Address(self.endpoint.url.rstrip("/"), self.endpoint.token, self.is_ours)


@dataclass(slots=True, eq=False)
class Slot:
    """Room for one job on one worker; it can move to another."""

    worker: ConnectedWorker

    def move(self, worker: ConnectedWorker) -> None:
        """Give the slot back and take one on *worker*."""
        self.worker.in_use -= 1
        self.worker = worker
        self.worker.in_use += 1


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done, whichever worker does it."""

    request_id: str
    image: Path
    fields: UpscaleFields  #: model_id is set
    result: Path
    watched: asyncio.Event  #: set once somebody wants progress
    on_progress: Callable[[int, int], None]  #: done, total
    max_bits: int = 16  #: of one sample of the result


class Workers:
    """All workers of one orchestrator. Use as a context manager: leaving it ends the checks and the connections.

    Args: *check_s*, pause between two health checks of a worker; *timeout_s*, the longest a job may take, its retry
        included; *revive_s*, how long a job waits for its model's only worker to come back; *max_result_bytes*;
        *on_retry*, told of each failure after which a job is tried once more.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        check_s: float,
        timeout_s: float,
        revive_s: float = REVIVE_S,
        max_result_bytes: int = 3 * 2**30,
        on_retry: Callable[[FourfoldError], None] = lambda _error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workers = tuple(ConnectedWorker(endpoint) for endpoint in endpoints)
        self._check_s = check_s
        self._timeout_s = timeout_s
        self._revive_s = revive_s
        self._max_result_bytes = max_result_bytes
        self._on_retry = on_retry
        self._clock = clock
        self._changed = asyncio.Event()
        self.waiting = 0  #: jobs that wait for another worker, or for theirs to come back
        self._stack = AsyncExitStack()
        self._group: asyncio.TaskGroup
        self._client: httpx2.AsyncClient
        self._checks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._client = await self._stack.enter_async_context(worker_call.open_client())
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._checks = [
            self._group.create_task(self._keep_checking(worker), name=f"check-worker-{number}")
            for number, worker in enumerate(self.workers)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for check in self._checks:
            check.cancel()
        # What remains in the group are cancellations on their way to workers, each with a timeout of its own.
        await self._stack.aclose()

    def serving(self, model_id: str) -> list[ConnectedWorker]:
        """Return the workers of *model_id*, ready or not."""
        return [worker for worker in self.workers if model_id in worker.endpoint.models]

    def is_withdrawn(self, model_id: str) -> bool:
        """Whether every worker of *model_id* says that it cannot be had; of one that is down its last word counts."""
        serving = self.serving(model_id)
        return bool(serving) and all(model_id in worker.failures for worker in serving)

    @contextlib.contextmanager
    def reserve(self, model_id: str) -> Iterator[Slot]:
        """Hold a slot on the least loaded worker for *model_id*.

        Raises:
            ModelUnavailableError: none can load it.
            NoCapacityError: none has room.
        """
        worker = self._with_room(model_id)
        if worker is None and self.is_withdrawn(model_id):
            raise ModelUnavailableError(f"{model_id} cannot be loaded here now; try another orchestrator")
        if worker is None:
            raise NoCapacityError(f"no worker for {model_id} has room now; try again later")
        worker.in_use += 1
        slot = Slot(worker)
        try:
            yield slot
        finally:
            slot.worker.in_use -= 1
            self._wake()

    async def run(self, slot: Slot, task: Task) -> WorkResult:
        """Have *task* done on the worker of *slot*; if that fails by its fault, once more on another or a revived one.

        Raises: what the last worker says went wrong; DeadlineExceededError when the time is up.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    return await self._attempt(slot.worker, task)
                except FourfoldError as error:
                    if error.retry is Retry.NEVER:
                        raise
                    await self._move(slot, task.fields.model_id, error)
                    self._on_retry(error)
                    log.warning("worker_retry", extra={"code": error.code, "model_id": task.fields.model_id})
                return await self._attempt(slot.worker, task)
        except TimeoutError:
            raise DeadlineExceededError(f"the worker did not finish within {self._timeout_s:g} s") from None

    async def wait_ready(self, model_id: str) -> None:
        """Return once a worker for *model_id* is ready."""
        while not any(worker.can_run(model_id) for worker in self.serving(model_id)):
            await self._changed.wait()

    async def own_metrics(self) -> bytes:
        """Return the counters of the orchestrator's own worker, in Prometheus' text format.

        Nobody else can ask it: where it listens is known to the orchestrator alone, and another place after a restart.

        Raises: NotFoundError if every worker is somebody else's; UnreachableError, WorkerFailedError.
        """
        own = next((w for w in self.workers if not isinstance(w.endpoint, ExternalEndpoint)), None)
        if own is None:
            raise NotFoundError("every worker of this orchestrator has a url of its own; ask there for /metrics")
        return await worker_call.metrics(self._client, own.address())

    async def _attempt(self, worker: ConnectedWorker, task: Task) -> WorkResult:
        """Have *task* done on *worker*. A worker that drops the connection is down until a check finds it again."""
        address = worker.address()
        order = WorkOrder(
            job_id=secrets.token_hex(16),
            request_id=task.request_id,
            image=task.image,
            fields=task.fields,
            result=task.result,
            watched=task.watched,
            on_progress=task.on_progress,
            max_bits=task.max_bits,
        )
        call = worker_call.upscale(self._client, address, order, max_result_bytes=self._max_result_bytes)
        try:
            result = await _unless(worker.silent, call, name=f"attempt-{order.job_id}")
        except asyncio.CancelledError:
            self._group.create_task(worker_call.forget(self._client, address, order.job_id), name="forget-job")
            raise
        except UnreachableError:
            self._note(worker, _DOWN, address.url)
            raise
        except ModelUnavailableError as error:
            if worker.is_ours:  # of others nobody would tell when it can be had again
                self._note_failures(worker, {**worker.failures, task.fields.model_id: error.message})
            raise
        worker.is_ours = result.by_ours
        return result

    async def _move(self, slot: Slot, model_id: str, error: FourfoldError) -> None:
        """Take the slot to another worker with room, or wait for the same one; raise *error* if neither can be had."""
        # A worker that is full, too small or cannot load the model is so in a moment, too.
        is_same_worth_it = not isinstance(error, NoCapacityError | OutOfMemoryError | ModelUnavailableError)
        self.waiting += 1
        try:
            async with asyncio.timeout(self._revive_s):
                while True:
                    other = self._with_room(model_id, besides=slot.worker)
                    if other is not None:
                        slot.move(other)
                        return
                    if not is_same_worth_it:
                        raise error
                    if slot.worker.is_ready:
                        return
                    await self._changed.wait()
        except TimeoutError:
            raise error from None
        finally:
            self.waiting -= 1

    def _with_room(self, model_id: str, besides: ConnectedWorker | None = None) -> ConnectedWorker | None:
        """Return the least loaded worker for *model_id* that has room."""
        candidates = [w for w in self.serving(model_id) if w.has_room_for(model_id) and w is not besides]
        return min(candidates, key=lambda worker: worker.load, default=None)

    async def _keep_checking(self, worker: ConnectedWorker) -> None:
        """Find out how *worker* is, again and again, until cancelled."""
        while True:
            try:
                await self._check(worker)
            except Exception:  # the edge of a task: one strange answer must not end all checks
                log.exception("worker_check_failed", extra={"worker": worker.endpoint.url})
            pause_s = self._check_s if worker.is_ready else min(self._check_s, _DOWN_CHECK_S)
            await asyncio.sleep(pause_s)

    async def _check(self, worker: ConnectedWorker) -> None:
        url = worker.endpoint.url
        if url is None:
            self._note(worker, _DOWN, None)
            return
        try:
            address = worker.address()
            health = await worker_call.health(self._client, address)
        except FourfoldError as error:
            # Livepeer's runner cannot answer while it works; of ours silence says that it is stopped or frozen.
            worker.strikes += 0 if worker.in_use and not worker.is_ours else 1
            is_refused = isinstance(error.__cause__, httpx2.ConnectError)
            is_silent = worker.strikes >= (_STRIKES_AT_WORK if worker.in_use else _STRIKES)
            if is_refused or is_silent or worker.checked_url != url:
                self._note(worker, _DOWN, url)
            if is_silent:
                worker.silent.set()
            return
        worker.strikes = 0
        worker.silent.clear()
        if health.is_ours:
            worker.is_ours = True
        await self._ask_details(worker, address)
        said = health.model_to_failure
        self._note_failures(worker, {} if said is None else _failures(worker.endpoint.models, said))
        self._note(worker, health.status, url)

    async def _ask_details(self, worker: ConnectedWorker, address: Address) -> None:
        """Find out the worker's hardware and version, now and then."""
        if worker.details_at is not None and self._clock() - worker.details_at < _DETAILS_S:
            return
        with contextlib.suppress(FourfoldError):  # not every worker knows; what is not known is not advertised
            worker.details_at = self._clock()
            worker.version = await worker_call.version(self._client, address)
            worker.gpus = await worker_call.hardware(self._client, address)

    def _note(self, worker: ConnectedWorker, status: str, url: str | None) -> None:
        """Take down what was found out; tell the log and those who wait when it makes a difference."""
        was_ready = worker.is_ready
        worker.status, worker.checked_url = status, url
        if not worker.is_ready:
            worker.details_at = None
        if worker.is_ready is not was_ready:
            event = "worker_up" if worker.is_ready else "worker_down"
            log.info(event, extra={"worker": url, "status": status, "models": len(worker.endpoint.models)})
            self._wake()

    def _note_failures(self, worker: ConnectedWorker, failures: dict[str, str]) -> None:
        """Take down which models *worker* cannot have; tell the log what is withdrawn by that, and what is back."""
        if failures == worker.failures:
            return
        before = {model_id for model_id in worker.endpoint.models if self.is_withdrawn(model_id)}
        worker.failures = failures
        for model_id in worker.endpoint.models:
            if self.is_withdrawn(model_id) and model_id not in before:
                log.error("model_withdrawn", extra={"model_id": model_id, "why": failures[model_id]})
            elif model_id in before and not self.is_withdrawn(model_id):
                log.info("model_offered_again", extra={"model_id": model_id})
        self._wake()

    def _wake(self) -> None:
        """Let everybody who waits for a change look again."""
        self._changed.set()
        self._changed = asyncio.Event()


def _failures(models: Sequence[str], model_to_failure: Mapping[str, str | None]) -> dict[str, str]:
    """Return which of *models* a worker cannot have by what it says of its own, and why."""
    reasons = {model_id: model_to_failure.get(model_id, "the worker does not run it") for model_id in models}
    return {model_id: reason for model_id, reason in reasons.items() if reason is not None}


async def _unless(silent: asyncio.Event, call: Coroutine[Any, Any, WorkResult], *, name: str) -> WorkResult:
    """Return what *call* returns, or raises; end it with UnreachableError once *silent* is set."""
    job = asyncio.create_task(call, name=name)
    watch = asyncio.create_task(silent.wait(), name=f"{name}-silence")
    try:
        await asyncio.wait({job, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise UnreachableError("the worker stopped answering while it had the job")
        return await job
    finally:
        for task in (job, watch):
            task.cancel()
        await asyncio.gather(job, watch, return_exceptions=True)
