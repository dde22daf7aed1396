"""What holds for every request: an id on every reply, CORS, an answer even to a bug, and an answer that arrives.

The last is about clients that still send when the answer is known already (an upload beyond the limit): if the server
closed then, they would see a reset and never the reason. So the answer goes out at once and the rest of the body is
read and dropped for a while before the request ends.
"""

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fourfold.protocol import wire
from fourfold.telemetry import request_id

log = logging.getLogger(__name__)

_SAFE_HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9_, -]{1,1000}\Z")
_EXPOSED: Final = ", ".join(
    (
        "Accept-Ranges",
        "Content-Length",
        "Content-Range",
        "ETag",
        "Retry-After",
        wire.REQUEST_ID_HEADER,
        wire.MODEL_HEADER,
        wire.SEED_HEADER,
        wire.INPUT_PIXELS_HEADER,
        wire.FEE_HEADER,
        wire.DURATION_HEADER,
        wire.SAFETY_HEADER,
        wire.FIDELITY_HEADER,
        wire.NSFW_HEADER,
    )
)
_LINGER_S: Final = 10.0


class Edge:
    """Wraps the gateway's application.

    Args: *private_paths*, paths that web pages of other origins may not read.
    """

    def __init__(self, app: ASGIApp, *, private_paths: Collection[str] = ()) -> None:
        self._app = app
        self._private_paths = frozenset(private_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get(wire.REQUEST_ID_HEADER, "")
        token = request_id.set(asked if wire.is_request_id(asked) else secrets.token_hex(16))
        has_body = headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers
        is_public = scope["path"] not in self._private_paths
        exchange = _Exchange(receive, send, is_public=is_public, has_body=has_body)
        try:
            if scope["method"] == "OPTIONS":
                await _answer_options(headers, exchange.send)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except Exception:  # the edge of a request; Starlette has sent the 500 before it raises again
            log.exception("request_failed", extra={"path": scope["path"][:200]})
        finally:
            request_id.reset(token)


class _Exchange:
    """The two channels of one request, watched."""

    def __init__(self, receive: Receive, send: Send, *, is_public: bool, has_body: bool) -> None:
        self._receive = receive
        self._send = send
        self._is_public = is_public
        self._is_body_read = not has_body

    async def receive(self) -> Message:
        """Return the next event; remember when nothing of the body is left."""
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._is_body_read = True
        return message

    async def send(self, message: Message) -> None:
        """Send *message*, with our headers on a start; the last one of an answer waits for the body's end."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            headers[wire.REQUEST_ID_HEADER] = request_id.get()
            if self._is_public:
                headers["Access-Control-Allow-Origin"] = "*"
                headers["Access-Control-Expose-Headers"] = _EXPOSED
            message = {**message, "headers": headers.raw}
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


async def _answer_options(headers: Headers, send: Send) -> None:
    """Answer a preflight, or a plain OPTIONS, for any path."""
    answer = {"Allow": "GET, HEAD, POST, OPTIONS", "Vary": "Access-Control-Request-Headers"}
    if "Access-Control-Request-Method" in headers:
        wanted = headers.get("Access-Control-Request-Headers", "")
        answer["Access-Control-Allow-Methods"] = "GET, HEAD, POST, OPTIONS"
        answer["Access-Control-Allow-Headers"] = wanted if _SAFE_HEADER_NAMES.match(wanted) else "Content-Type"
        answer["Access-Control-Max-Age"] = "86400"
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.items()]
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
