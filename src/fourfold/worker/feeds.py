"""The jobs that a worker holds now: who wants to watch one, and how to cancel it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

from fourfold.errors import InvalidParameterError, NotFoundError

_ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(slots=True)
class Feed:
    """One job's latest state and those who watch it."""

    task: asyncio.Task[Any]
    state: dict[str, Any] = field(default_factory=lambda: {"state": "queued"})
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, state: str, **facts: Any) -> None:
        """Set the job's state and wake its watchers."""
        self.state = {"state": state, **facts}
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will be told."""
        return self.state["state"] in _ENDED


class Feeds:
    """All open jobs by id."""

    def __init__(self) -> None:
        self._feeds: dict[str, Feed] = {}

    def open(self, job_id: str, task: asyncio.Task[Any]) -> Feed:
        """Begin a job's feed. Raises: InvalidParameterError if the id is in use."""
        if job_id in self._feeds:
            raise InvalidParameterError(f"job {job_id} is running already; every job needs an id of its own")
        feed = self._feeds[job_id] = Feed(task)
        return feed

    def close(self, job_id: str, state: str) -> None:
        """End the feed; its watchers see *state* last."""
        feed = self._feeds.pop(job_id, None)
        if feed is not None:
            feed.tell(state)

    def cancel(self, job_id: str) -> None:
        """Cancel the job. Raises: NotFoundError if there is none, perhaps because it has just ended."""
        self._get(job_id).task.cancel()

    async def watch(self, job_id: str) -> AsyncIterator[dict[str, Any]]:
        """Yield the job's state now and after each change, the last one included. Raises: NotFoundError."""
        feed = self._get(job_id)
        while True:
            state, changed = feed.state, feed.changed
            yield state
            if feed.has_ended:
                return
            if feed.state is state:
                await changed.wait()

    def _get(self, job_id: str) -> Feed:
        try:
            return self._feeds[job_id]
        except KeyError:
            raise NotFoundError(f"no job {job_id} is open here; it may have ended") from None
