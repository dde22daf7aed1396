"""gRPC's framing and status, event by event. Over a real port: tests/integration/orchestrator/test_grpc.py."""

import asyncio
import urllib.parse
from collections.abc import Sequence
from typing import Any

import pytest

from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol.grpc_asgi import Call, GrpcApp, GrpcError, Status, Unary, frame, is_grpc

PATH = "/net.Orchestrator/Ping"
PING = pb.PingPong(value=b"hello").SerializeToString()


async def echo(request: pb.PingPong, call: Call) -> pb.PingPong:
    """Return what came, and who is asked."""
    return pb.PingPong(value=request.value + f"|{call.authority}|{call.server}".encode())


async def stuck(request: pb.PingPong, call: Call) -> pb.PingPong:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError


async def broken(request: pb.PingPong, call: Call) -> pb.PingPong:
    """Fail as only a bug does."""
    raise RuntimeError("secret detail")


async def refusing(request: pb.PingPong, call: Call) -> pb.PingPong:
    """Fail on purpose, with a text that no header can carry as it is."""
    raise GrpcError(Status.UNAVAILABLE, "geschlossen ü\n100%")


async def invoke(
    pieces: Sequence[bytes],
    *,
    answer: Any = echo,
    path: str = PATH,
    method: str = "POST",
    headers: Sequence[tuple[bytes, bytes]] = (),
    content_type: bytes = b"application/grpc",
    disconnect: bool = False,
    server: tuple[str, int] | None = ("127.0.0.1", 8935),
    **options: Any,
) -> tuple[int, bytes, dict[str, str]]:
    """Call the application; return HTTP status, body and trailers."""
    events = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if disconnect:
        events.append({"type": "http.disconnect"})
    elif events:
        events[-1]["more_body"] = False
    sent: list[Any] = []

    async def receive() -> Any:
        if not events:
            await asyncio.Event().wait()
        return events.pop(0)

    async def send(event: Any) -> None:
        sent.append(event)

    app = GrpcApp({PATH: Unary(pb.PingPong, answer)}, **options)
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "server": server,
        "headers": [(b"content-type", content_type), (b"host", b"orch"), *headers],
    }
    assert is_grpc(scope)
    await app(scope, receive, send)
    body = b"".join(event["body"] for event in sent if event["type"] == "http.response.body")
    trailers = {}
    if sent[0].get("trailers"):
        assert sent[-1]["type"] == "http.response.trailers"
        trailers = {name.decode(): value.decode("ascii") for name, value in sent[-1]["headers"]}
    return sent[0]["status"], body, trailers


def status(outcome: tuple[int, bytes, dict[str, str]]) -> Status:
    """Return the gRPC status of an outcome that carries no message."""
    http, body, trailers = outcome
    assert (http, body) == (200, b"")
    return Status(int(trailers["grpc-status"]))


async def test_a_message_is_answered_with_a_message_and_ok() -> None:
    """However its bytes are cut."""
    framed = frame(PING)
    for pieces in ([framed], [framed[:3], framed[3:6], framed[6:]], [bytes([byte]) for byte in framed]):
        http, body, trailers = await invoke(pieces)

        assert (http, trailers) == (200, {"grpc-status": "0"})
        assert pb.PingPong.FromString(body[5:]).value == b"hello|orch|('127.0.0.1', 8935)"
        assert body[:5] == bytes([0]) + (len(body) - 5).to_bytes(4, "big")


async def test_an_empty_message_is_a_message() -> None:
    """proto3's default values have no bytes."""
    _, body, _ = await invoke([frame(b"")], server=None)

    assert pb.PingPong.FromString(body[5:]).value == b"|orch|None"


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b""], Status.INVALID_ARGUMENT),
        ([b"\0\0\0"], Status.INVALID_ARGUMENT),
        ([b"\0\0\0\0\x09abc"], Status.INVALID_ARGUMENT),
        ([frame(PING) + frame(PING)], Status.INVALID_ARGUMENT),
        ([frame(b"\xff\xff\xff")], Status.INVALID_ARGUMENT),
        ([b"\x01" + frame(PING)[1:]], Status.UNIMPLEMENTED),
        ([frame(b"x" * 101)], Status.RESOURCE_EXHAUSTED),
        ([b"x" * 60, b"x" * 60], Status.RESOURCE_EXHAUSTED),
    ],
)
async def test_a_damaged_message_has_a_status(pieces: list[bytes], expected: Status) -> None:
    """Truncated, doubled, no protobuf, compressed, too large."""
    assert status(await invoke(pieces, max_request_bytes=100)) is expected


async def test_an_unknown_method_is_unimplemented() -> None:
    """With the path that came and those that are served."""
    outcome = await invoke([frame(PING)], path="/net.Orchestrator/EndTranscodingSession")

    assert status(outcome) is Status.UNIMPLEMENTED
    assert "EndTranscodingSession" in outcome[2]["grpc-message"]
    assert PATH in outcome[2]["grpc-message"]


async def test_a_bug_is_internal_and_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The caller learns that it happened, not how."""
    outcome = await invoke([frame(PING)], answer=broken)

    assert status(outcome) is Status.INTERNAL
    assert "secret" not in outcome[2]["grpc-message"]
    assert [record.message for record in caplog.records] == ["grpc_call_failed"]


async def test_a_refusal_keeps_its_text() -> None:
    """Percent-encoded UTF-8, as the protocol wants it."""
    outcome = await invoke([frame(PING)], answer=refusing)

    assert status(outcome) is Status.UNAVAILABLE
    assert outcome[2]["grpc-message"] == "geschlossen %C3%BC%0A100%25"
    assert urllib.parse.unquote(outcome[2]["grpc-message"]) == "geschlossen ü\n100%"


@pytest.mark.parametrize("deadline", [b"5m", b"5000u", b"5000000n"])
async def test_the_callers_deadline_holds(deadline: bytes) -> None:
    """In any of gRPC's units."""
    outcome = await invoke([frame(PING)], answer=stuck, headers=[(b"grpc-timeout", deadline)])

    assert status(outcome) is Status.DEADLINE_EXCEEDED


@pytest.mark.parametrize("deadline", [b"", b"5x", b"123456789S", b"1H", b"1M", b"1S"])
async def test_a_deadline_that_is_far_or_none_changes_nothing(deadline: bytes) -> None:
    """What cannot be read is no deadline."""
    _, body, _ = await invoke([frame(PING)], headers=[(b"grpc-timeout", deadline)])

    assert body


async def test_a_request_that_stops_arriving_is_given_up() -> None:
    """Nothing is held for a silent caller."""
    assert status(await invoke([], body_timeout_s=0.01)) is Status.DEADLINE_EXCEEDED


async def test_a_caller_that_leaves_is_answered_all_the_same() -> None:
    """Into the void; the server drops it."""
    assert status(await invoke([b"\0\0"], disconnect=True)) is Status.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("method", "content_type", "expected"),
    [
        ("GET", b"application/grpc", 405),
        ("POST", b"application/grpc-web", 415),
        ("POST", b"application/grpc+json", 415),
        ("POST", b"application/grpc+proto", 200),
        ("POST", b"application/grpc; charset=utf-8", 200),
    ],
)
async def test_dialects_of_grpc_are_refused_in_http(method: str, content_type: bytes, expected: int) -> None:
    """They would not understand a trailer."""
    http, _, trailers = await invoke([frame(PING)], method=method, content_type=content_type)

    assert (http, bool(trailers)) == (expected, expected == 200)


def test_other_requests_are_none_of_its_business() -> None:
    """Uploads, and what is no HTTP at all."""
    assert not is_grpc({"type": "http", "headers": [(b"Content-Type", b"multipart/form-data")]})
    assert not is_grpc({"type": "http", "headers": []})
    assert not is_grpc({"type": "lifespan"})
