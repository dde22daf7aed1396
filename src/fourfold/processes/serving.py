"""Serve an ASGI application on a socket that is bound before anything else starts.

Hypercorn for every role: it is the one Python server that speaks HTTP/1.1 and HTTP/2 with trailers on one TLS port,
which gRPC needs, and one server is easier to know than two.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

from h2.connection import H2Connection
from hypercorn.config import Config
from hypercorn.utils import wrap_app

from fourfold.errors import CancelledByClientError
from fourfold.processes.connections import Connections, Patience
from fourfold.processes.sockets import BACKLOG

_T = TypeVar("_T")

_UNLIMITED: Final = 2**31
#: A payment of 600 tickets is about 64 KiB in base64; HTTP/2 counts names and 32 bytes for each header besides.
_HEADER_BYTES: Final = 128 * 1024

#: A TLS connection holds some 300 KiB of buffers from its first byte on, handshake included.
_OVER_TLS: Final = Patience(most_open=250)


async def serve(
    app: Any,
    sock: socket.socket,
    *,
    stop: asyncio.Event,
    drain_s: float,
    tls: tuple[Path, Path] | None = None,
    patience: Patience | None = None,
) -> None:
    """Serve *app* on *sock* until *stop* is set; then take no new connections and finish the open ones in *drain_s*.

    Args: *tls*, the paths of certificate and key; without it plain HTTP. *patience*, with slow peers and many of them.
    """
    config = Config()
    config.backlog = BACKLOG
    config.h11_max_incomplete_size = _HEADER_BYTES
    config.h2_max_header_list_size = _HEADER_BYTES
    # Hypercorn's setting does not reach the decoder that it gives the limit to.
    H2Connection.DEFAULT_MAX_HEADER_LIST_SIZE = _HEADER_BYTES
    config.keep_alive_timeout = 75
    config.keep_alive_max_requests = _UNLIMITED  # gRPC keeps one connection for all its calls
    config.include_server_header = False
    config.errorlog = _server_log()
    config.accesslog = None
    if tls is not None:
        config.certfile, config.keyfile = str(tls[0]), str(tls[1])
    context = config.create_ssl_context() if tls is not None else None
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    connections = Connections(wrapped, sock, config, context, patience or (Patience() if tls is None else _OVER_TLS))
    async with connections.accepting(drain_s=drain_s):
        await stop.wait()


def _server_log() -> logging.Logger:
    """Return where Hypercorn writes: its warnings and errors, not its greetings."""
    log = logging.getLogger("fourfold.http")
    log.setLevel(logging.WARNING)
    return log


async def unless_gone(receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, _T], *, name: str) -> _T:
    """Return what *work* returns, but cancel it as soon as the client has gone.

    Args: *receive*, the ASGI callable of a request whose body has been read. *name*, the task's.

    Raises: CancelledByClientError once *work* has taken notice of its cancellation; what *work* raises.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    job = asyncio.create_task(work, name=name)
    watch = asyncio.create_task(gone(), name=f"{name}-client")
    try:
        await asyncio.wait({job, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise CancelledByClientError("the client closed the connection before the answer was ready")
        return job.result()
    except asyncio.CancelledError:
        if job.cancelled():
            raise CancelledByClientError("the job was cancelled") from None
        raise
    finally:
        for task in (job, watch):
            task.cancel()
        await asyncio.gather(job, watch, return_exceptions=True)
