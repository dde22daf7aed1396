"""The models of one device's child: which are there, which come and go, and which job may use how much memory.

Loading and waiting for room stop nobody whose model is there and who fits beside what is there. Not here: the decision
itself (``residency``), the child's life (``process``), and trying again what could not be loaded (``upkeep``).
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fourfold.engine import registry
from fourfold.engine.base import EngineCard
from fourfold.engine.devices import CPU
from fourfold.errors import FourfoldError, ModelUnavailableError, OutOfMemoryError, error_for
from fourfold.processes.child import Child, ChildDiedError
from fourfold.telemetry import Metrics
from fourfold.worker import orders
from fourfold.worker.residency import Plan, Resident, plan

log = logging.getLogger(__name__)

Size = tuple[int, int]
"""Width and height of a job's picture, pixels."""

_MOST_DEATHS: Final = 2  #: of the child in a row while it loads a model, after which it is not loaded for a job
_SMALLEST: Final = (1, 1)  #: a picture that needs no more than any other


class ReplacedError(Exception):
    """The child that was to hold the model is gone, before the job was in it: take the new one."""


@dataclass(slots=True)
class _Model:
    """A model that the child holds, or loads."""

    ready: asyncio.Task[None]  #: ends when it is loaded, raises if it cannot be
    claims: list[int] = field(default_factory=list)  #: bytes, the model included, of each job that holds it
    last_used_s: float = field(default_factory=time.monotonic)
    is_leaving: bool = False  #: takes no further jobs, as another model waits for its room

    @property
    def is_loaded(self) -> bool:
        """Whether jobs can run on it."""
        return self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None


class DeviceModels:
    """What is in the memory of one device's child, and who waits for a place in it. One event loop uses it."""

    def __init__(
        self,
        cards: Mapping[str, EngineCard],
        *,
        warm: tuple[str, ...],
        budget_bytes: int,
        load_timeout_s: float,
        on_stuck: Callable[[], None],
        on_failure: Callable[[str], None],
        metrics: Metrics | None = None,
    ) -> None:
        """*on_stuck* is called when a load takes too long: the child's loading thread is lost, so is the child.

        *on_failure* is told each model that cannot be had.
        """
        self.budget_bytes = budget_bytes  #: the child says what a GPU has
        self.device = CPU  #: the child says so
        self._cards = dict(cards)
        self._measured: set[str] = set()
        self._warm = frozenset(warm)
        self._load_timeout_s = load_timeout_s
        self._on_stuck = on_stuck
        self._on_failure = on_failure
        self._metrics = metrics
        self.failures: dict[str, FourfoldError] = {}  #: models that cannot be had, by the last try, and why
        self._harmful: set[str] = set()  #: of them those whose load cost the child its life: no job has them loaded
        self._deaths: Counter[str] = Counter()  #: of the child, in a row, while it loaded the model
        self._models: dict[str, _Model] = {}
        self._told: dict[str, asyncio.Future[dict[str, Any]]] = {}  #: the child's answer to LOAD
        self._one_load = asyncio.Lock()
        self._making_room = asyncio.Lock()
        self._changed = asyncio.Event()
        self.is_stuck = False  #: takes no further jobs; its child is killed when the open ones have ended

    @property
    def loaded(self) -> tuple[str, ...]:
        """The models that jobs can run on now."""
        return tuple(model_id for model_id, model in self._models.items() if model.is_loaded)

    @property
    def is_loading(self) -> bool:
        """Whether a model is on its way."""
        return any(not model.ready.done() for model in self._models.values())

    @asynccontextmanager
    async def claim(self, child: Child, model_id: str, size: Size | None) -> AsyncIterator[None]:
        """Hold *model_id* in *child*'s memory, and the memory for a picture of *size*; None: the model alone.

        Raises:
            ModelUnavailableError: it cannot be loaded.
            OutOfMemoryError: it, or the picture even in tiles, is too large for the device.
            ChildDiedError: the child died while it loaded the model.
            ReplacedError: *child* is gone.
        """
        if size is not None and self.is_harmful(model_id):
            raise ModelUnavailableError(self.failures[model_id].message)
        model, need = await self._claimed(child, model_id, size)
        try:
            await asyncio.shield(model.ready)
            exact = self._need(model_id, size)  # the engine knows its own memory better than the card
            model.claims[model.claims.index(need)] = exact
            need = exact
            model.last_used_s = time.monotonic()
            yield
        finally:
            model.claims.remove(need)
            self._wake()

    def take(self, event: Mapping[str, Any]) -> None:
        """Take the child's word that a model was loaded, or not."""
        told = self._told.get(event["model_id"])
        if told is None or told.done():
            return
        if event["event"] == orders.LOADED:
            told.set_result(dict(event))
        else:
            told.set_exception(error_for(event["code"], event["message"], otherwise=ModelUnavailableError))

    def child_died(self, exc: ChildDiedError) -> None:
        """Forget everything that was in the dead child; who waits for it is told."""
        for told in self._told.values():
            if not told.done():
                told.set_exception(ChildDiedError(exc.reason, exc.returncode))
        self._models.clear()
        self.is_stuck = False
        self._wake()

    def mark(self, model_id: str, failure: FourfoldError) -> None:
        """Remember and, once, log why a model cannot be had; the worker and its other models are well."""
        known = self.failures.get(model_id)
        self.failures[model_id] = failure
        if known is None or known.message != failure.message:
            log.error("model_load_failed", extra={"model_id": model_id, "code": failure.code, "why": failure.message})
        self._on_failure(model_id)

    def absolve(self, model_id: str) -> None:
        """Take it that a model can be had again: it was loaded, or the next job that wants it will tell."""
        self._harmful.discard(model_id)
        if self.failures.pop(model_id, None) is not None:
            log.info("model_available", extra={"model_id": model_id})

    def is_harmful(self, model_id: str) -> bool:
        """Whether loading the model has cost the child its life, and may again."""
        return model_id in self._harmful and model_id in self.failures

    def never_fits(self, model_id: str) -> OutOfMemoryError | None:
        """Return why not even the smallest picture can be upscaled with this budget, None if it can."""
        try:
            plan(model_id, self._need(model_id, _SMALLEST), (), budget_bytes=self.budget_bytes)
        except OutOfMemoryError as exc:
            return exc
        return None

    def has_room_for(self, model_id: str) -> bool:
        """Whether a model could be loaded now without any other having to leave."""
        todo = self._plan(model_id, self._need(model_id, None))
        return not (todo.evict or todo.wait_for)

    async def close(self) -> None:
        """End what loads."""
        loads = [model.ready for model in self._models.values()]
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)

    async def _claimed(self, child: Child, model_id: str, size: Size | None) -> tuple[_Model, int]:
        """Return the model, perhaps still loading, with a claim for the job in it."""
        present = self._models.get(model_id)
        if present is not None and not present.is_leaving and not self.is_stuck and child.alive:
            need = self._need(model_id, size)
            if self._plan(model_id, need).is_free:
                present.claims.append(need)
                return present, need
        async with self._making_room:  # in the order of arrival, so that nobody waits for ever
            try:
                while True:
                    if not child.alive:
                        raise ReplacedError
                    need = self._need(model_id, size)
                    todo = self._plan(model_id, need)
                    for other_id, other in self._models.items():
                        other.is_leaving = other_id in todo.wait_for
                    if todo.wait_for or self.is_stuck:
                        await self._changed.wait()
                        continue
                    for leaving in todo.evict:
                        del self._models[leaving]
                        log.info("model_evicted", extra={"model_id": leaving, "for": model_id})
                        await child.send({"op": orders.UNLOAD, "model_id": leaving})
                    if todo.load:
                        self._begin_load(child, model_id)
                    model = self._models.get(model_id)
                    if model is None:  # the child died while it was told who leaves
                        continue
                    model.claims.append(need)
                    return model, need
            finally:
                for other in self._models.values():
                    other.is_leaving = False

    def _plan(self, model_id: str, need: int) -> Plan:
        residents = [
            Resident(
                other_id,
                max([self._cards[other_id].fixed_bytes, *other.claims]),
                other_id in self._warm,
                len(other.claims) + (not other.ready.done()),
                other.last_used_s,
            )
            for other_id, other in self._models.items()
        ]
        return plan(model_id, need, residents, budget_bytes=self.budget_bytes)

    def _need(self, model_id: str, size: Size | None) -> int:
        """Return what the model and a job of *size* take together. Raises: OutOfMemoryError."""
        try:
            return registry.job_bytes(self._cards[model_id], *(size or _SMALLEST), budget_bytes=self.budget_bytes)
        except OutOfMemoryError:
            if self.device == CPU or model_id in self._measured:
                raise
            return self.budget_bytes  # cards count in float32; a GPU's engine will say what it takes itself

    def _begin_load(self, child: Child, model_id: str) -> None:
        model = _Model(asyncio.create_task(self._load(child, model_id), name=f"load-{model_id}"))
        self._models[model_id] = model

        def ended(load: asyncio.Task[None]) -> None:
            failure = None if load.cancelled() else load.exception()
            if (load.cancelled() or failure) and self._models.get(model_id) is model:
                del self._models[model_id]
            is_alone = not self._models
            # Beside others memory may be short for a moment; that is no reason to offer the model to nobody.
            if isinstance(failure, FourfoldError) and (is_alone or not isinstance(failure, OutOfMemoryError)):
                self.mark(model_id, failure)
            self._wake()

        model.ready.add_done_callback(ended)

    async def _load(self, child: Child, model_id: str) -> None:
        """Have the child load a model; one at a time, so that each has its own time."""
        async with self._one_load:
            told = self._told[model_id] = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(self._load_timeout_s):
                    await child.send({"op": orders.LOAD, "model_id": model_id})
                    answer = await told
            except TimeoutError:
                self.is_stuck = True
                self._harmful.add(model_id)
                self._on_stuck()
                raise ModelUnavailableError(
                    f"{model_id} did not load within {self._load_timeout_s:g} s; raise worker.load_timeout_s"
                ) from None
            except ChildDiedError as exc:
                self._deaths[model_id] += 1
                if self._deaths[model_id] < _MOST_DEATHS:
                    raise
                self._harmful.add(model_id)
                raise ModelUnavailableError(
                    f"the device's process {exc.reason}, twice in a row, while it loaded {model_id}; pull or copy "
                    "the model anew, or give the worker more memory"
                ) from exc
            finally:
                del self._told[model_id]
        self._cards[model_id] = replace(self._cards[model_id], **answer["memory"])
        self._measured.add(model_id)
        del self._deaths[model_id]
        self.absolve(model_id)
        log.info("model_loaded", extra={"model_id": model_id, "seconds": round(answer["seconds"], 3)})
        if self._metrics is not None:
            self._metrics.observe_stage("load", answer["seconds"], model_id=model_id)

    def _wake(self) -> None:
        """Have those who wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()
