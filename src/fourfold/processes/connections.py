"""The open connections of one listening socket: how many there may be, and which leave first when there are too many.

Hypercorn speaks the protocols. What it does not have is here: a limit to connections, so that ten thousand idle ones
neither take every descriptor nor keep anybody out; patience of our own with a first request; and an end to peers that
never read what they are sent.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated

log = logging.getLogger(__name__)

#: The standard library's default, which ``asyncio.start_server`` uses as well.
_READ_BUFFER_BYTES: Final = 2**16
_NO_DESCRIPTOR_PAUSE_S: Final = 0.05
_GOODBYE_S: Final = 1.0  #: for TLS' closing words, which gRPC's clients never answer
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\n"
    b"Content-Type: application/json\r\nContent-Length: 58\r\n\r\n"
    b'{"detail":{"msg":"too many connections; try again later"}}'
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a peer may take for what costs it nothing."""

    most_open: int = 1000  #: connections at once
    handshake_s: float = 10.0  #: for TLS
    first_request_s: float = 20.0  #: from the connection to the end of the first request's headers
    silence_s: float = 30.0  #: in which a reader must take `least_bytes`
    least_bytes: int = 8 * 1024
    close_s: float = 30.0  #: to take the rest of what it was sent


class Connections:
    """Takes connections from *sock* and serves each with *app* while :meth:`accepting` is open.

    Args: *app*, wrapped for Hypercorn; *config*, Hypercorn's; *tls*, None for plain HTTP.
    """

    def __init__(self, app: Any, sock: socket.socket, config: Config, tls: ssl.SSLContext | None, patience: Patience):
        self._app = app
        self._sock = sock
        self._config = config
        self._tls = tls
        self._patience = patience
        self._context = WorkerContext(None)
        self._open: dict[asyncio.Task[None], _Connection | None] = {}  # the oldest first; None: still in its handshake

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._open)

    @contextlib.asynccontextmanager
    async def accepting(self, *, drain_s: float) -> AsyncIterator[None]:
        """Take connections inside the block; afterwards close the socket and let open requests end within *drain_s*."""
        accepting = asyncio.create_task(self._accept_all(), name="accept")
        try:
            yield
        finally:
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
            self._sock.close()
            await self._context.terminated.set()  # idle connections end now, the others after their answer
            if self._open:
                await asyncio.wait(self._open, timeout=drain_s)
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, _ = await loop.sock_accept(self._sock)
            except OSError as exc:
                if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.warning("no_descriptors_left", extra={"open": len(self._open)})
                    self._drop_idlest()
                    await asyncio.sleep(_NO_DESCRIPTOR_PAUSE_S)
                continue  # else the peer left before it was taken
            if len(self._open) >= self._patience.most_open and not self._drop_idlest():
                self._turn_away(peer)
                continue
            task = asyncio.create_task(self._serve(peer), name="connection")
            self._open[task] = None
            task.add_done_callback(self._forget)
            await asyncio.sleep(0)  # a flood must not keep those served already from their turn

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._open.pop(task, None)

    def _drop_idlest(self) -> bool:
        """End the connection that has been without a request for longest; return whether there was one."""
        for task, connection in self._open.items():
            if connection is None or connection.is_idle:
                if connection is not None:
                    connection.abort()
                task.cancel()
                self._forget(task)
                return True
        return False

    def _turn_away(self, peer: socket.socket) -> None:
        """Tell *peer* that there is no room; over TLS only closing remains."""
        with contextlib.suppress(OSError), peer:
            peer.setblocking(False)
            if self._tls is None:
                peer.send(_FULL)

    async def _serve(self, peer: socket.socket) -> None:
        """Serve one connection to its end."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_READ_BUFFER_BYTES, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        handshake_s = self._patience.handshake_s if self._tls else None
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                peer,
                ssl=self._tls,
                ssl_handshake_timeout=handshake_s,
                ssl_shutdown_timeout=_GOODBYE_S if self._tls else None,
            )
        except (OSError, asyncio.CancelledError):  # an SSLError is an OSError
            peer.close()
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        connection = _Connection(self._patience, self._app, loop, self._config, self._context, {}, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        # In again at the end: the order of the dictionary is the order in which connections became idle.
        self._open.pop(task, None)
        self._open[task] = connection
        connection.on_idle = lambda: self._to_the_end(task)
        try:
            await connection
        except OSError:
            log.debug("connection_broken")  # an SSLError, too: the peer spoke after its goodbye
        except Exception:  # the edge of a connection; Hypercorn answers for the application's own failures
            log.exception("connection_failed")
        finally:
            transport.abort()

    def _to_the_end(self, task: asyncio.Task[None]) -> None:
        if task in self._open:
            self._open[task] = self._open.pop(task)


class _Connection(TCPServer):  # type: ignore[misc]
    """Hypercorn's connection, with limits to a peer's silence."""

    def __init__(self, patience: Patience, *theirs: Any) -> None:
        super().__init__(*theirs)
        self._patience = patience
        self.is_idle = True  #: no request is open
        self._has_asked = False
        self._has_left = False
        self.on_idle: Callable[[], None] = lambda: None

    def abort(self) -> None:
        """Close at once."""
        self.writer.transport.abort()

    async def protocol_send(self, event: Any) -> None:
        """Carry out what the protocol wants."""
        if isinstance(event, RawData):
            async with self.send_lock:
                await self._write(event.data)
            return
        if isinstance(event, Updated):
            self.is_idle, self._has_asked = event.idle, True
            if event.idle:
                self.on_idle()
                if self._has_left:
                    return
        await super().protocol_send(event)

    async def _write(self, data: bytes) -> None:
        """Send *data*; close on a reader who takes next to nothing."""
        transport = self.writer.transport
        try:
            self.writer.write(data)
            while True:
                waiting = transport.get_write_buffer_size()
                try:
                    async with asyncio.timeout(self._patience.silence_s):
                        await self.writer.drain()
                    return
                except TimeoutError:
                    if waiting - transport.get_write_buffer_size() < self._patience.least_bytes:
                        log.info("reader_too_slow", extra={"waiting_bytes": waiting})
                        transport.abort()
        except (ConnectionError, RuntimeError):
            await self.protocol.handle(Closed())

    async def _read_data(self) -> None:
        """Read until the peer has closed. Then nothing is left to wait for: without this its idle time would be."""
        await super()._read_data()
        self._has_left = True
        await self.idle_task.stop()

    async def _close(self) -> None:
        """Close; cut off a peer that does not take the rest."""
        cut = asyncio.get_running_loop().call_later(self._patience.close_s, self.writer.transport.abort)
        try:
            await super()._close()
        finally:
            cut.cancel()

    async def _idle_timeout(self) -> None:
        wait_s = self.config.keep_alive_timeout if self._has_asked else self._patience.first_request_s
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.context.terminated.wait(), wait_s)
        await asyncio.shield(self._initiate_server_close())
