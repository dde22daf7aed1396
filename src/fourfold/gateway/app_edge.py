"""What holds for every request: an id on every reply, CORS, and an answer even to a bug."""

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
        wire.MODE_HEADER,
        wire.WARNINGS_HEADER,
        wire.NSFW_HEADER,
    )
)


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
        send = _with_headers(send, is_public=scope["path"] not in self._private_paths)
        try:
            if scope["method"] == "OPTIONS":
                await _answer_options(headers, send)
            else:
                await self._app(scope, receive, send)
        except Exception:  # the edge of a request; Starlette has sent the 500 before it raises again
            log.exception("request_failed", extra={"path": scope["path"][:200]})
        finally:
            request_id.reset(token)


def _with_headers(send: Send, *, is_public: bool) -> Send:
    """Return *send*, adding our headers to the head of the answer."""

    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            headers[wire.REQUEST_ID_HEADER] = request_id.get()
            if is_public:
                headers["Access-Control-Allow-Origin"] = "*"
                headers["Access-Control-Expose-Headers"] = _EXPOSED
            message = {**message, "headers": headers.raw}
        await send(message)

    return add


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
