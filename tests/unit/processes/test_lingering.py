"""An answer goes out at once, and ends when the request's body has come to its end."""

import asyncio
from typing import Any

import pytest

from fourfold.processes.lingering import Lingering

SCOPE = {"type": "http", "headers": [(b"content-length", b"6")]}


async def refuse(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer without a look at the body."""
    await send({"type": "http.response.start", "status": 401, "headers": []})
    await send({"type": "http.response.body", "body": b"no"})


class Client:
    """Sends *pieces*, and takes down what comes in which order."""

    def __init__(self, pieces: list[dict[str, Any]]) -> None:
        self.pieces = pieces
        self.seen: list[str] = []

    async def receive(self) -> dict[str, Any]:
        if not self.pieces:
            await asyncio.Event().wait()
        self.seen.append("read")
        return self.pieces.pop(0)

    async def send(self, message: dict[str, Any]) -> None:
        ends = message["type"] == "http.response.body" and not message.get("more_body", False)
        self.seen.append("end" if ends else message["type"].rpartition(".")[2])


def piece(*, more_body: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": b"abc", "more_body": more_body}


async def test_the_answer_goes_out_before_the_body_is_read_and_ends_after_it() -> None:
    """Closing in between would be a reset."""
    client = Client([piece(more_body=True), piece(more_body=False)])

    await Lingering(refuse)(SCOPE, client.receive, client.send)

    assert client.seen == ["start", "body", "read", "read", "end"]


async def test_a_client_that_leaves_ends_the_wait() -> None:
    """Nothing is to come."""
    client = Client([{"type": "http.disconnect"}])

    await Lingering(refuse)(SCOPE, client.receive, client.send)

    assert client.seen == ["start", "body", "read", "end"]


async def test_a_body_that_never_ends_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold a place for ever."""
    monkeypatch.setattr("fourfold.processes.lingering._LINGER_S", 0.01)
    client = Client([piece(more_body=True)])

    await Lingering(refuse)(SCOPE, client.receive, client.send)

    assert client.seen == ["start", "body", "read", "end"]


async def test_a_request_without_a_body_is_answered_as_it_is() -> None:
    """There is nothing to wait for."""
    client = Client([])

    await Lingering(refuse)({"type": "http", "headers": []}, client.receive, client.send)

    assert client.seen == ["start", "end"]
