"""Connections to orchestrators over HTTPS, and bytes from them into a file: pinned, bounded, never silent for long."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import httpx2

from fourfold.errors import BadResultError, StorageFullError, UnreachableError
from fourfold.gateway.tls_reading import read_by_arrival

_WRITE_S: Final = 60.0  #: longest silence of an orchestrator that is taking our image
_CHUNK_BYTES: Final = 2**20
#: An idle connection is used again within this time, shorter than any server's own patience (the least known is 5 s):
#: so none is closed under a request, except by an orchestrator that ends just then.
_KEPT_S: Final = 2.0
_KEPT_CONNECTIONS: Final = 4  #: idle ones of one orchestrator
#: A result has this long, and further time by its size at a rate that every usable link beats.
_LEAST_TRANSFER_S: Final = 30.0
_SLOWEST_BYTES_PER_S: Final = 500_000


def keep_alive_options() -> list[tuple[int, int, int]]:
    """Return socket options by which a peer that vanished is noticed within a minute while it owes us an answer."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # not on every system
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


@contextlib.asynccontextmanager
async def client(tls: ssl.SSLContext, *, connect_s: float) -> AsyncIterator[httpx2.AsyncClient]:
    """Open a client for one exchange.

    There is no limit to the wait for an answer; the job's deadline is that limit.
    """
    async with _make_client(tls, connect_s, kept=0) as opened:
        yield opened


class Clients:
    """A client for each orchestrator, whose connections serve the next job as well where that comes at once.

    A new connection costs its handshake, some milliseconds of both sides. :meth:`close` ends all of them.
    """

    def __init__(self, *, connect_s: float) -> None:
        self._connect_s = connect_s
        self._authority_to_client: dict[str, tuple[ssl.SSLContext, httpx2.AsyncClient]] = {}

    async def get(self, authority: str, tls: ssl.SSLContext) -> httpx2.AsyncClient:
        """Return the client for ``host:port``; one that expects another certificate than *tls* is closed."""
        known = self._authority_to_client.get(authority)
        if known is not None and known[0] is tls:
            return known[1]
        made = _make_client(tls, self._connect_s, kept=_KEPT_CONNECTIONS)
        self._authority_to_client[authority] = (tls, made)
        if known is not None:
            await known[1].aclose()
        return made

    async def close(self) -> None:
        """Close every connection."""
        clients = [client for _, client in self._authority_to_client.values()]
        self._authority_to_client.clear()
        for opened in clients:
            await opened.aclose()


def _make_client(tls: ssl.SSLContext, connect_s: float, *, kept: int) -> httpx2.AsyncClient:
    transport = httpx2.AsyncHTTPTransport(
        verify=tls,
        trust_env=False,
        limits=httpx2.Limits(max_keepalive_connections=kept, keepalive_expiry=_KEPT_S),
        socket_options=keep_alive_options(),
    )
    read_by_arrival(transport)
    timeout = httpx2.Timeout(connect=connect_s, write=_WRITE_S, read=None, pool=None)
    return httpx2.AsyncClient(transport=transport, timeout=timeout, trust_env=False)


@contextlib.contextmanager
def translated(peer: str) -> Iterator[None]:
    """Turn the HTTP library's exceptions inside the block into UnreachableError."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as exc:
        raise UnreachableError(f"{peer} dropped the exchange: {str(exc) or type(exc).__name__}") from exc


async def save(response: httpx2.Response, target: Path, *, peer: str, max_bytes: int) -> int:
    """Write the body of *response* to *target* as it arrives; return its size in bytes.

    Raises:
        BadResultError: it has more than *max_bytes* bytes.
        UnreachableError: it is cut short, or slower than any usable link.
        StorageFullError: *target* cannot be written.
    """
    expected = int(response.headers.get("Content-Length", "0") or 0)
    if expected > max_bytes:
        raise BadResultError(f"{peer} sends a result of {expected} bytes, the limit is {max_bytes}")
    limit_s = _LEAST_TRANSFER_S + (expected or max_bytes) / _SLOWEST_BYTES_PER_S
    size = 0
    buffer = bytearray()
    try:
        async with asyncio.timeout(limit_s):
            with target.open("wb") as file, translated(peer):
                async for chunk in response.aiter_raw():
                    size += len(chunk)
                    if size > max_bytes:
                        raise BadResultError(f"{peer} sends a result of more than {max_bytes} bytes")
                    buffer += chunk
                    if len(buffer) >= _CHUNK_BYTES:
                        await asyncio.to_thread(file.write, bytes(buffer))
                        buffer.clear()
                await asyncio.to_thread(file.write, bytes(buffer))
    except TimeoutError:
        raise UnreachableError(f"{peer} sent {size} bytes of its result in {limit_s:.0f} s; given up") from None
    except OSError as exc:
        raise StorageFullError(f"the result cannot be kept: {exc.strerror}; try again later") from exc
    return size


async def read_text(response: httpx2.Response, *, peer: str, max_bytes: int = 64 * 1024) -> str:
    """Return the first *max_bytes* of a body as text."""
    body = bytearray()
    with translated(peer):
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) >= max_bytes:
                break
    return bytes(body[:max_bytes]).decode("utf-8", "replace")
