"""Replies as plain ASGI: short ones, and pictures from a file, piece by piece, bare or inside Livepeer's JSON.

Not a framework's file response because the file leaves with its request: whoever reads too slowly is cut off.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from fourfold.errors import UnreachableError
from fourfold.orchestrator.replies import Reply, image_response

Send = Callable[[dict[str, Any]], Awaitable[None]]

_CHUNK_BYTES: Final = 255 * 1024  # a multiple of 3, so that pieces of base64 join without padding


async def send_reply(send: Send, reply: Reply) -> None:
    """Send a short reply."""
    body = reply.body.encode()
    headers = _raw({"Content-Type": reply.content_type, **reply.headers, "Content-Length": str(len(body))})
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_png(send: Send, path: Path, headers: Mapping[str, str], *, silence_s: float) -> None:
    """Send the file as ``image/png``. Raises: UnreachableError where the reader takes nothing for *silence_s*."""
    size = path.stat().st_size
    await _send(send, {"Content-Type": "image/png", **headers}, size, _pieces(path), silence_s)


async def send_data_url(
    send: Send, path: Path, headers: Mapping[str, str], *, seed: int, nsfw: bool, silence_s: float
) -> None:
    """Send Livepeer's JSON with the picture inside. Raises: as :func:`send_png`."""
    head, _, tail = image_response("#", seed=seed, nsfw=nsfw).partition("#")
    head += "data:image/png;base64,"
    size = len(head) + -(-path.stat().st_size // 3) * 4 + len(tail)

    def pieces() -> Iterator[bytes]:
        yield head.encode("ascii")
        for piece in _pieces(path):
            yield base64.b64encode(piece)
        yield tail.encode("ascii")

    await _send(send, {"Content-Type": "application/json", **headers}, size, pieces(), silence_s)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield piece


async def _send(send: Send, headers: Mapping[str, str], size: int, pieces: Iterator[bytes], silence_s: float) -> None:
    """Send the reply; *pieces* are read off the event loop."""
    raw = _raw({**headers, "Content-Length": str(size)})
    try:
        async with asyncio.timeout(silence_s):
            await send({"type": "http.response.start", "status": 200, "headers": raw})
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            async with asyncio.timeout(silence_s):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        async with asyncio.timeout(silence_s):
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    except TimeoutError:
        raise UnreachableError(f"the reader took nothing for {silence_s:g} s; the reply was given up") from None


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return *headers* as ASGI wants them. What no header can carry (a worker may name anything) is replaced."""
    return [
        (
            name.lower().encode("ascii"),
            "".join(c if c.isprintable() else "?" for c in value).encode("latin-1", "replace"),
        )
        for name, value in headers.items()
    ]
