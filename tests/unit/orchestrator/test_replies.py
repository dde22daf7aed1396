"""Answers: short ones in both dialects, pictures from files, and the folders that hold them."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from fourfold.errors import (
    CancelledByClientError,
    InvalidImageError,
    NoCapacityError,
    StorageFullError,
    UnreachableError,
    ValidationError,
)
from fourfold.orchestrator.replies import Reply, failure, image_response, json_failure
from fourfold.orchestrator.request_body import RequestBody, read_headers
from fourfold.orchestrator.spool import Spool
from fourfold.orchestrator.streaming import send_data_url, send_png, send_reply


class Sent:
    """What an application sends, put together again."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.pieces = 0

    async def __call__(self, event: dict[str, Any]) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
            self.headers = {name.decode(): value.decode("latin-1") for name, value in event["headers"]}
        else:
            self.body += event["body"]
            self.pieces += 1


def test_a_failure_in_our_dialect_has_a_code() -> None:
    """The body of design rule 3."""
    reply = failure(InvalidImageError("damaged"), ours=True, by_worker=False, request_id="r1")

    assert (reply.status, reply.content_type, reply.headers) == (
        400,
        "application/json",
        {"Fourfold-Error": "invalid_image"},
    )
    assert json.loads(reply.body) == {
        "detail": {"msg": "damaged"},
        "error": {"message": "damaged", "code": "invalid_image", "request_id": "r1", "retryable": False},
    }


def test_a_malformed_field_has_fastapis_form() -> None:
    """422 only."""
    reply = json_failure(ValidationError("no integer", field="seed", kind="int_parsing"), request_id="r1")

    assert reply.status == 422
    assert json.loads(reply.body) == {
        "detail": [{"type": "int_parsing", "loc": ["body", "seed"], "msg": "no integer", "input": None}]
    }


def test_a_malformed_body_is_named_once() -> None:
    """As FastAPI does: the body's name is the whole location."""
    reply = json_failure(ValidationError("no form"), request_id="r1")

    assert json.loads(reply.body)["detail"][0]["loc"] == ["body"]


def test_a_failure_in_livepeers_dialect_is_gos_http_error() -> None:
    """Plain text, a newline at its end."""
    reply = failure(NoCapacityError("all busy"), ours=False, by_worker=False, request_id="r1")

    assert reply == Reply(
        503,
        "text/plain; charset=utf-8",
        "insufficient capacity\n",
        {"X-Content-Type-Options": "nosniff", "Retry-After": "1"},
    )


def test_busy_says_when_to_ask_again() -> None:
    """In our dialect, too; others do not."""
    assert json_failure(NoCapacityError("x"), request_id="").headers["Retry-After"] == "1"
    assert "Retry-After" not in failure(InvalidImageError("x"), ours=False, by_worker=True, request_id="").headers


def test_an_image_response_is_written_as_go_writes_it() -> None:
    """Order of keys, no spaces, a newline (livepeer_upscale.md 1.3)."""
    assert image_response("u", seed=0, nsfw=False) == '{"images":[{"nsfw":false,"seed":0,"url":"u"}]}\n'


async def test_a_reply_is_sent_with_its_length() -> None:
    """In bytes, not characters."""
    sent = Sent()
    await send_reply(sent, Reply(400, "text/plain", "ä\n", {"Fourfold-Model": "m"}))

    assert (sent.status, sent.body) == (400, "ä\n".encode())
    assert sent.headers == {"content-type": "text/plain", "fourfold-model": "m", "content-length": "3"}


@pytest.mark.parametrize("size", [0, 1, 2, 3, 255 * 1024, 255 * 1024 + 1, 600_000])
async def test_a_picture_arrives_whole_in_both_forms(tmp_path: Path, size: int) -> None:
    """Bare, and as one base64 text although it was never in one piece."""
    path = tmp_path / "x.png"
    content = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    path.write_bytes(content)
    bare, wrapped = Sent(), Sent()
    await send_png(bare, path, {"Fourfold-Seed": "1"}, silence_s=5.0)
    await send_data_url(wrapped, path, {}, seed=7, nsfw=True, silence_s=5.0)

    assert (bare.status, bare.body) == (200, content)
    assert (bare.headers["content-type"], bare.headers["fourfold-seed"]) == ("image/png", "1")
    assert int(bare.headers["content-length"]) == size
    assert int(wrapped.headers["content-length"]) == len(wrapped.body)
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    assert json.loads(wrapped.body) == {"images": [{"url": url, "seed": 7, "nsfw": True}]}


async def test_a_reader_that_stands_still_is_cut_off(tmp_path: Path) -> None:
    """Its request would hold a file for ever."""
    path = tmp_path / "x.png"
    path.write_bytes(b"x" * 10)

    async def never_read(event: dict[str, Any]) -> None:
        if event["type"] == "http.response.body":
            await asyncio.Event().wait()

    with pytest.raises(UnreachableError, match="took nothing for"):
        await send_png(never_read, path, {}, silence_s=0.01)


async def test_what_no_header_can_carry_is_replaced(tmp_path: Path) -> None:
    """A worker may name its model as it likes."""
    path = tmp_path / "x.png"
    path.write_bytes(b"x")
    sent = Sent()
    await send_png(sent, path, {"Fourfold-Model": "a\r\nSet-Cookie: b\u4e2d\u00e9"}, silence_s=5.0)

    assert sent.headers["fourfold-model"] == "a??Set-Cookie: b?\u00e9"


def body_of(*events: dict[str, Any]) -> RequestBody:
    """Return a body that arrives as *events*, and then nothing."""
    left = list(events)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return RequestBody(receive)


def piece(data: bytes, *, more: bool = True) -> dict[str, Any]:
    """Return one event of a body."""
    return {"type": "http.request", "body": data, "more_body": more}


async def test_a_body_is_read_once_and_to_its_end() -> None:
    """Empty pieces are none; after the end nothing is waited for."""
    body = body_of(piece(b"a"), piece(b""), piece(b"b", more=False))

    assert [part async for part in body] == [b"a", b"b"]
    assert [part async for part in body] == []
    await body.discard()


async def test_a_sender_that_leaves_in_mid_body_has_cancelled() -> None:
    """There is nobody to answer."""
    body = body_of(piece(b"a"), {"type": "http.disconnect"})
    with pytest.raises(CancelledByClientError):
        assert [part async for part in body] == []
    await body.discard()


async def test_the_rest_of_a_refused_body_is_read_within_limits() -> None:
    """So that the sender gets to read the refusal; not for ever, and not any amount."""
    body = body_of(piece(b"a"), piece(b"b"), piece(b"c", more=False))
    async for _ in body:
        break
    await body.discard()
    huge = body_of(*[piece(b"x" * 2**20)] * 9, piece(b"never read", more=False))
    await huge.discard()
    left = body_of(piece(b"a"), {"type": "http.disconnect"})
    await left.discard()

    assert [part async for part in body] == []
    assert [part async for part in huge] == [b"never read"]


def test_headers_are_read_by_lower_case_name() -> None:
    """The first of each counts, as in go-livepeer."""
    scope = {"headers": [(b"Host", b"a"), (b"host", b"b"), (b"x-y", b"\xe4")]}

    assert read_headers(scope) == {"host": "a", "x-y": "ä"}


def test_a_request_has_its_files_while_it_lasts(tmp_path: Path) -> None:
    """And leaves nothing, however it ends."""
    spool = Spool(tmp_path / "spool")
    with pytest.raises(RuntimeError), spool.files() as files:
        files.upload.write_bytes(b"secret")
        files.result.write_bytes(b"picture")
        assert files.upload.parent.stat().st_mode & 0o777 == 0o700
        raise RuntimeError

    assert list((tmp_path / "spool").iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """By the next one."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "upload").write_bytes(b"x")
    Spool(tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_no_room_for_a_request_is_a_storage_failure(tmp_path: Path) -> None:
    """The folder has gone, or the disk is full."""
    spool = Spool(tmp_path / "spool")
    (tmp_path / "spool").rmdir()
    (tmp_path / "spool").write_text("")

    with pytest.raises(StorageFullError, match="no folder for the request"), spool.files():
        pass
