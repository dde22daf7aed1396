"""Reading TLS by arrival, against the real library and a real handshake."""

import asyncio
import ssl
from pathlib import Path

import httpx2
import pytest

from fourfold.gateway.pinning import Certificate
from fourfold.gateway.transfer import Clients
from fourfold.protocol.tls import ensure_certificate

BODY = bytes(range(256)) * 4096  # 1 MiB, 64 records


class Server:
    """Answers every request on a connection with BODY; *cut* closes in its middle."""

    def __init__(self, folder: Path, *, cut: bool = False) -> None:
        self._files = ensure_certificate(folder, "127.0.0.1")
        self._cut = cut
        self.connections = 0

    async def __aenter__(self) -> "Server":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._files.certificate, self._files.key)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.url = f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        pem = self._files.certificate.read_text()
        self.tls = Certificate(ssl.PEM_cert_to_DER_cert(pem)).context
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY))
                writer.write(BODY[: len(BODY) // 2] if self._cut else BODY)
                await writer.drain()
                if self._cut:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


async def sizes(server: Server, clients: Clients) -> list[int]:
    """Fetch the body; return the sizes of the pieces it came in."""
    http = await clients.get("server", server.tls)
    async with http.stream("GET", server.url) as response:
        pieces = [piece async for piece in response.aiter_raw()]
    assert b"".join(pieces) == BODY
    return [len(piece) for piece in pieces]


async def test_pieces_hold_several_records(tmp_path: Path) -> None:
    """A record has 16 KiB at most; a library that changed below us would hand on one at a time again."""
    clients = Clients(connect_s=5.0)
    async with Server(tmp_path) as server:
        assert max(await sizes(server, clients)) > 2 * 16 * 1024
        await clients.close()


async def test_one_connection_serves_jobs_that_follow_at_once(tmp_path: Path) -> None:
    """And another certificate gets another client."""
    clients = Clients(connect_s=5.0)
    async with Server(tmp_path / "a") as server, Server(tmp_path / "b") as other:
        for _ in range(3):
            await sizes(server, clients)
        assert server.connections == 1
        await sizes(other, clients)
        assert other.connections == 1
        await clients.close()


async def test_an_answer_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    """What has arrived is no whole body."""
    clients = Clients(connect_s=5.0)
    async with Server(tmp_path, cut=True) as server:
        with pytest.raises(httpx2.RemoteProtocolError):
            await sizes(server, clients)
        await clients.close()
