"""Sockets that are bound first, and work that ends with its client."""

import asyncio
from typing import Any

import httpx2
import pytest

from fourfold.errors import CancelledByClientError, ConfigError
from fourfold.processes.serving import authority, listen, serve, unless_gone


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
