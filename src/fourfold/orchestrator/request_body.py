"""A request in plain ASGI: its headers, and its body, read once, what of it is read only to be polite included."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

from fourfold.errors import CancelledByClientError

_LINGER_BYTES: Final = 8 * 2**20
_LINGER_S: Final = 2.0


def read_headers(scope: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers by lower-case name, the first of each."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    return headers


class RequestBody:
    """Yields the pieces of a body as they arrive, and knows whether all of it has come."""

    def __init__(self, receive: Callable[[], Awaitable[Any]]) -> None:
        self._receive = receive
        self._is_complete = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield what has not been read yet. Raises: CancelledByClientError if the sender leaves in between."""
        while not self._is_complete:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                self._is_complete = True
                raise CancelledByClientError("the client left before its request was complete")
            self._is_complete = not event.get("more_body", False)
            if event.get("body"):
                yield event["body"]

    async def discard(self) -> None:
        """Read what is still on its way, within limits: a sender cut off in mid-body would never see the answer."""
        left = _LINGER_BYTES
        with contextlib.suppress(TimeoutError, CancelledByClientError):
            async with asyncio.timeout(_LINGER_S):
                async for piece in self:
                    left -= len(piece)
                    if left < 0:
                        return
