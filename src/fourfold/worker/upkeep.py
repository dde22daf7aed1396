"""Has the warm models loaded, and finds out by itself when a model that could not be had can be had again.

A model that cannot be had is offered to nobody, so no job would ever tell that it was mended. It is tried again after
pauses that grow: an on-demand one only where nothing has to leave for it, and one whose load cost the device's process
its life only while no job is in that.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

from fourfold.errors import FourfoldError, ModelUnavailableError
from fourfold.processes.child import Child, ChildDiedError
from fourfold.worker.models import DeviceModels, ReplacedError

FIRST_PAUSE_S: Final = 0.2
LAST_PAUSE_S: Final = 300.0
_REST: Final = 5  #: the pause is at least as many times as long as the try was
_QUIET_S: Final = 0.5  #: how often is looked whether jobs are there
_START_PAUSES_S: Final = (0.2, 1.0)  #: between tries to start a child, before its models are marked
_CHILD: Final = ""  #: stands for the child among the models


class Upkeep:
    """The tries of one device. :meth:`start` begins, :meth:`close` ends them."""

    def __init__(
        self,
        models: DeviceModels,
        model_ids: Sequence[str],
        *,
        warm: Collection[str],
        have_child: Callable[[], Awaitable[Child]],
        is_quiet: Callable[[], bool],
        why_not_loadable: Callable[[str], str | None],
    ) -> None:
        """*why_not_loadable* looks for a model's files; it may block. *is_quiet*: no job is in the child."""
        self._models = models
        self._model_ids = tuple(model_ids)
        self._warm = tuple(warm)
        self._have_child = have_child
        self._is_quiet = is_quiet
        self._why_not_loadable = why_not_loadable
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pauses_s: dict[str, float] = {}  #: before the next try of a model that did not load lately
        self._is_closed = False

    async def start(self) -> None:
        """Mark the models whose files are missing, before anybody is told of them; then load the warm ones."""
        for model_id in self._model_ids:
            await self._has_files(model_id)
        self.child_died()

    async def close(self) -> None:
        """End all tries."""
        self._is_closed = True
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def is_loading(self) -> bool:
        """Whether a warm model is on its way. One that left for another comes back with the next job that wants it."""
        return any(
            model_id not in self._models.loaded and model_id not in self._models.failures and self._is_tended(model_id)
            for model_id in self._warm
        )

    def child_died(self) -> None:
        """Have a new child, and the warm models in it, in their order."""
        if not self._is_closed and not self._is_tended(_CHILD):
            self._tasks[_CHILD] = asyncio.create_task(self._start_child(), name="start-child")
        for model_id in self._warm:
            self.tend(model_id)

    def tend(self, model_id: str) -> None:
        """Try a model until it is there, or can be taken to be; does nothing where that is done already."""
        if not self._is_closed and not self._is_tended(model_id):
            work = self._bring(model_id)
            # In a context of its own: the job that met the failure has no part in what follows.
            self._tasks[model_id] = asyncio.create_task(work, name=f"bring-{model_id}", context=contextvars.Context())

    def _is_tended(self, model_id: str) -> bool:
        task = self._tasks.get(model_id)
        return task is not None and not task.done()

    async def _start_child(self) -> None:
        """Have a child, which says how much memory there is, and mark what is too large; or all, if none starts."""
        for pause_s in (*_START_PAUSES_S, None):
            try:
                await self._have_child()
            except (ChildDiedError, TimeoutError) as exc:
                if pause_s is not None:
                    await asyncio.sleep(pause_s)
                    continue
                why = str(exc) or "it did not answer in time"
                failure = ModelUnavailableError(f"the device's process does not start: {why}; its log says more")
                for model_id in self._model_ids:
                    self._models.mark(model_id, failure)
                return
            break
        for model_id in self._model_ids:
            self._fits(model_id)

    async def _has_files(self, model_id: str) -> bool:
        """Return whether the model's files are there, by their names; mark it where they are not."""
        why = await asyncio.to_thread(self._why_not_loadable, model_id)
        if why is not None:
            self._models.mark(model_id, ModelUnavailableError(why))
        return why is None

    def _fits(self, model_id: str) -> bool:
        """Return whether the device is large enough for the model; mark it where it is not."""
        failure = self._models.never_fits(model_id)
        if failure is not None:
            self._models.mark(model_id, failure)
        return failure is None

    async def _bring(self, model_id: str) -> None:
        if model_id in self._models.failures:  # somebody has just tried
            await asyncio.sleep(self._longer_pause_s(model_id, 0.0))
        while model_id in self._models.failures or (model_id in self._warm and model_id not in self._models.loaded):
            started_s = time.monotonic()
            try:
                if await self._has_files(model_id) and self._fits(model_id):
                    await self._try(model_id)
                    continue
            except ReplacedError:
                continue
            except (FourfoldError, ChildDiedError, TimeoutError):
                pass  # marked by who tried, where the model is to blame
            await asyncio.sleep(self._longer_pause_s(model_id, time.monotonic() - started_s))
        if model_id in self._models.loaded:
            self._pauses_s.pop(model_id, None)

    def _longer_pause_s(self, model_id: str, took_s: float) -> float:
        """Return how long to wait before the next try, after one that took *took_s*."""
        pause_s = max(2 * self._pauses_s.get(model_id, FIRST_PAUSE_S / 2), _REST * took_s)
        self._pauses_s[model_id] = min(pause_s, LAST_PAUSE_S)
        return self._pauses_s[model_id]

    async def _try(self, model_id: str) -> None:
        """Load the model. Raises: as `DeviceModels.claim`; TimeoutError if no child starts."""
        while self._models.is_harmful(model_id) and not self._is_quiet():
            await asyncio.sleep(_QUIET_S)
        if model_id not in self._warm and not self._models.has_room_for(model_id):
            self._models.absolve(model_id)  # nobody's model leaves for a trial: the next job will tell
            return
        async with self._models.claim(await self._have_child(), model_id, None):
            return
