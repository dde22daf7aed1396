"""``GET /stream/<group>/<name>.<format>``: a result for as long as it is kept, whole or in part, to any web page."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fourfold.errors import NotFoundError
from fourfold.gateway.app_errors import error_response, refusal
from fourfold.gateway.ranges import UnsatisfiableRangeError, parse_range
from fourfold.imaging import FORMATS
from fourfold.results.base import ResultStore

_CHUNK_BYTES: Final = 256 * 1024


def stream_endpoint(store: ResultStore) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler of GET and HEAD."""

    async def stream(request: Request) -> Response:
        group, name = request.path_params["group"], request.path_params["name"]
        result = store.find(group, name)
        try:
            if result is None:
                raise FileNotFoundError
            descriptor = os.open(result.path, os.O_RDONLY)
        except FileNotFoundError:
            return error_response(NotFoundError("no result is here; results are kept for a limited time"))
        etag = f'"{name.partition(".")[0]}"'
        headers = {
            "ETag": etag,
            "Cache-Control": f"private, max-age={int(result.expires_in_s)}, immutable",
            "Accept-Ranges": "bytes",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "cross-origin",
        }
        if _matches(request.headers.get("If-None-Match", ""), etag):
            os.close(descriptor)
            return Response(status_code=304, headers=headers)
        size = os.fstat(descriptor).st_size
        wanted = None
        asked = request.headers.get("Range")
        if asked is not None and request.method == "GET" and request.headers.get("If-Range", etag) == etag:
            try:
                wanted = parse_range(asked, size)
            except UnsatisfiableRangeError as exc:
                os.close(descriptor)
                message = "the range begins beyond the end of the result"
                return refusal(416, "range_not_satisfiable", message, {"Content-Range": str(exc)})
        start, end = wanted or (0, size)
        if wanted is not None:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        headers["Content-Length"] = str(end - start)
        return _FileResponse(descriptor, start, end, 200 if wanted is None else 206, headers, _media_type(name))

    return stream


def file_response(store: ResultStore, group: str, name: str, headers: dict[str, str]) -> Response:
    """Return the result of that key as the answer itself. Raises: NotFoundError if it has left already."""
    result = store.find(group, name)
    try:
        if result is None:
            raise FileNotFoundError
        descriptor = os.open(result.path, os.O_RDONLY)
    except FileNotFoundError:
        raise NotFoundError("the result had to make room for others before it could be sent; try again") from None
    size = os.fstat(descriptor).st_size
    headers = {**headers, "Content-Length": str(size), "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    return _FileResponse(descriptor, 0, size, 200, headers, _media_type(name))


def _media_type(name: str) -> str:
    """Return the type of a result by its suffix."""
    suffix = "." + name.rpartition(".")[2]
    return next((known.media_type for known in FORMATS.values() if known.suffix == suffix), "image/png")


def _matches(if_none_match: str, etag: str) -> bool:
    """Return whether the client has the file already."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in tags or "*" in tags


class _FileResponse(Response):
    """Sends bytes *start* to *end* of an open file, whose descriptor it owns; one removed meanwhile is still sent."""

    def __init__(
        self, descriptor: int, start: int, end: int, status_code: int, headers: dict[str, str], media_type: str
    ) -> None:
        self.status_code = status_code
        self.media_type = media_type
        self.body = b""
        self.background = None
        self.init_headers(headers)
        self._descriptor = descriptor
        self._start = start
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_disconnected(receive), name="stream-disconnect")
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            position = self._end if scope["method"] == "HEAD" else self._start
            while position < self._end and not gone.done():
                length = min(_CHUNK_BYTES, self._end - position)
                chunk = await asyncio.to_thread(os.pread, self._descriptor, length, position)
                if not chunk:
                    raise OSError("the result was cut short while it was sent")
                position += len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            os.close(self._descriptor)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
