"""Sockets that are bound first, and work that ends with its client."""

import asyncio
from typing import Any

import httpx2
import psutil
import pytest

from fourfold.errors import CancelledByClientError, ConfigError
from fourfold.processes.connections import Patience
from fourfold.processes.serving import serve, unless_gone
from fourfold.processes.sockets import authority, listen


async def test_port_zero_takes_a_free_one_and_serves() -> None:
    """The address is known before the server runs."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"hello"})

    stop = asyncio.Event()
    with listen("127.0.0.1", 0) as sock:
        server = asyncio.create_task(serve(app, sock, stop=stop, drain_s=1))
        async with httpx2.AsyncClient() as client:
            reply = await client.get(f"http://{authority(sock)}/")
        stop.set()
        await server

    assert reply.text == "hello"


async def test_a_connection_ends_with_its_client() -> None:
    """And not when its idle time is over: descriptors would pile up."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    stop = asyncio.Event()
    process = psutil.Process()
    with listen("127.0.0.1", 0) as sock:
        server = asyncio.create_task(serve(app, sock, stop=stop, drain_s=1))
        before = process.num_fds()
        for _ in range(20):
            async with httpx2.AsyncClient() as client:
                await client.get(f"http://{authority(sock)}/")
        await asyncio.sleep(0.1)
        after = process.num_fds()
        stop.set()
        await server

    assert after - before < 5


async def test_the_longest_idle_leaves_when_there_are_too_many() -> None:
    """The newest is served, and one that has a request open is never sent away."""
    answers = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await answers.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    stop = asyncio.Event()
    with listen("127.0.0.1", 0) as sock:
        host, port = sock.getsockname()
        server = asyncio.create_task(serve(app, sock, stop=stop, drain_s=1, patience=Patience(most_open=3)))
        async with httpx2.AsyncClient(base_url=f"http://{authority(sock)}") as client:
            slow = asyncio.create_task(client.get("/slow"))
            await asyncio.sleep(0.1)
            idle = [await asyncio.open_connection(host, port) for _ in range(4)]
            async with httpx2.AsyncClient() as newest:
                assert (await newest.get(f"http://{authority(sock)}/")).status_code == 204
            ends = [await asyncio.wait_for(reader.read(1), 1) for reader, _ in idle[:2]]
            answers.set()
            assert (await slow).status_code == 204
        stop.set()
        await server
        for _, writer in idle:
            writer.transport.abort()

    assert ends == [b"", b""]


async def test_a_server_whose_connections_are_all_at_work_says_so() -> None:
    """With a status, where it can."""
    answers = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answers.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    stop = asyncio.Event()
    with listen("127.0.0.1", 0) as sock:
        server = asyncio.create_task(serve(app, sock, stop=stop, drain_s=1, patience=Patience(most_open=1)))
        async with httpx2.AsyncClient(base_url=f"http://{authority(sock)}") as client:
            first = asyncio.create_task(client.get("/"))
            await asyncio.sleep(0.1)
            second = await client.get("/")
            answers.set()
            assert (await first).status_code == 204
        stop.set()
        await server

    assert (second.status_code, second.headers["Retry-After"]) == (503, "5")
    assert "too many" in second.json()["detail"]["msg"]


async def test_a_client_that_never_asks_is_let_go() -> None:
    """Slowloris: a byte now and then does not prolong its time."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("there is no request")

    stop = asyncio.Event()
    with listen("127.0.0.1", 0) as sock:
        patience = Patience(first_request_s=0.3)
        server = asyncio.create_task(serve(app, sock, stop=stop, drain_s=1, patience=patience))
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        ended = asyncio.create_task(reader.read(1))
        for byte in b"GET / HTTP/1.1 and so on and on":
            writer.write(bytes([byte]))
            if (await asyncio.wait({ended}, timeout=0.05))[0]:
                break
        assert ended.done()
        await asyncio.gather(ended, return_exceptions=True)
        writer.transport.abort()
        stop.set()
        await server


def test_a_taken_port_is_a_settings_error() -> None:
    """With the way out."""
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=f"{port}.*--port"):
            listen("127.0.0.1", port)


def test_an_ipv6_authority_has_brackets() -> None:
    """As it stands in a URL."""
    try:
        sock = listen("::1", 0)
    except ConfigError:
        pytest.skip("this machine has no IPv6 loopback")
    with sock:
        assert authority(sock).startswith("[::1]:")


class Client:
    """An ASGI receive callable whose client leaves when told."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}


async def test_work_is_cancelled_when_its_client_leaves() -> None:
    """And has taken notice before the caller hears of it."""
    client = Client()
    noticed = False

    async def work() -> None:
        nonlocal noticed
        client.left.set()
        try:
            await asyncio.sleep(60)
        finally:
            noticed = True

    with pytest.raises(CancelledByClientError):
        await unless_gone(client.receive, work(), name="t")
    assert noticed


async def test_work_of_a_patient_client_returns_its_value_or_error() -> None:
    """The watch leaves no trace."""

    async def fails() -> None:
        raise KeyError("x")

    async def returns() -> int:
        return 7

    assert await unless_gone(Client().receive, returns(), name="t") == 7
    with pytest.raises(KeyError):
        await unless_gone(Client().receive, fails(), name="t")
    assert {task.get_name() for task in asyncio.all_tasks()} & {"t", "t-client"} == set()
