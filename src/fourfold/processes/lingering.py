"""An answer that arrives although its request is not read to its end: refused by its length or its token, say.

If the server closed then, a client that still sends would see a reset and never the reason, and one that has sent all
of it would find its next request on a connection that is closed. So the answer goes out at once, and the rest of the
body is read and dropped for a while before the request ends.
"""

import asyncio
import contextlib
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LINGER_S: Final = 10.0


class Lingering:
    """Wraps an application so that the last piece of each answer waits for the end of the request's body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            has_body = headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers
            exchange = _Exchange(receive, send, has_body=has_body)
            receive, send = exchange.receive, exchange.send
        await self._app(scope, receive, send)


class _Exchange:
    """The two channels of one request, watched."""

    def __init__(self, receive: Receive, send: Send, *, has_body: bool) -> None:
        self._receive = receive
        self._send = send
        self._is_body_read = not has_body

    async def receive(self) -> Message:
        """Return the next event; remember when nothing of the body is left."""
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._is_body_read = True
        return message

    async def send(self, message: Message) -> None:
        """Send *message*; the last one of an answer waits for the body's end."""
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not is_last or self._is_body_read:
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await self._drop_body()
        # The server hands over what still comes until it has closed; with nobody to take it, it would never close.
        dropping = asyncio.create_task(self._drop_body(), name="drop-body")
        try:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            dropping.cancel()
            await asyncio.gather(dropping, return_exceptions=True)

    async def _drop_body(self) -> None:
        while not self._is_body_read:
            await self.receive()
