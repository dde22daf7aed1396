"""Failures in Livepeer's words: what theirs mean to us, what we say to them."""

import json

import pytest

from fourfold.errors import BadResultError, FourfoldError, ValidationError, walk
from fourfold.protocol.livepeer_errors import (
    error_from_orchestrator,
    error_from_runner,
    images_from_runner,
    reply_to_gateway,
)

MISSING = {"detail": [{"type": "missing", "loc": ["body", "prompt"], "msg": "Field required", "input": None}]}


def detail(message: str) -> bytes:
    """Return a runner's error body."""
    return json.dumps({"detail": {"msg": message}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (400, detail("Error during model execution: x."), "invalid_parameter", "Error during model execution: x."),
        (400, detail("pipeline configured with a but called with b."), "model_unavailable", "pipeline configured"),
        (401, detail("Invalid bearer token."), "worker_failed", "check `token` in aiModels.json"),
        (422, json.dumps(MISSING).encode(), "validation_error", "prompt: Field required"),
        (500, detail("Out of memory error. Try reducing input image resolution."), "out_of_memory", "Out of memory"),
        (500, detail("Upscale pipeline error."), "worker_failed", "the worker returned 500: Upscale pipeline error."),
        (500, b"Internal Server Error", "worker_failed", "the worker returned 500: Internal Server Error"),
        (500, b"", "worker_failed", "the worker returned 500: an empty answer"),
        (500, b'{"detail": "text"}', "worker_failed", "the worker returned 500: text"),
        (500, b'{"detail": []}', "worker_failed", 'the worker returned 500: {"detail": []}'),
        (500, b"\xff\xfe", "worker_failed", "the worker returned 500: \ufffd\ufffd"),
        (502, b"<html>", "worker_failed", "the worker returned 502: <html>"),
        (503, detail("busy"), "insufficient_capacity", "the worker is busy: busy"),
        (429, b"", "insufficient_capacity", "the worker is busy: an empty answer"),
        (204, b"", "worker_failed", "the worker returned 204: an empty answer"),
    ],
)
def test_what_a_runner_means(status: int, body: bytes, code: str, message: str) -> None:
    """Sources: livepeer_upscale.md 2.2 for the bodies, 4.5 for what else may come."""
    error = error_from_runner(status, body)

    assert error.code == code
    assert message in error.message


def test_a_runners_422_names_its_field() -> None:
    """The path without FastAPI's "body"."""
    error = error_from_runner(422, json.dumps(MISSING).encode())

    assert isinstance(error, ValidationError)
    assert error.field == "prompt"


@pytest.mark.parametrize(
    ("status", "text", "code"),
    [
        (503, "insufficient capacity\n", "insufficient_capacity"),
        (500, "Insufficient capacity", "insufficient_capacity"),
        (500, "upscale container returned 400: bad picture", "invalid_parameter"),
        (500, "upscale container returned 400: ", "invalid_parameter"),
        (500, "upscale container returned 422: " + json.dumps(MISSING), "invalid_parameter"),
        (400, "TicketParams expired", "invalid_payment"),
        (400, "invalid ticket senderNonce: already seen", "invalid_payment"),
        (400, "invalid ticket signature", "invalid_payment"),
        (400, "Insufficient balance", "invalid_payment"),
        (402, "illegal base64", "invalid_payment"),
        (403, "expired auth token", "invalid_credentials"),
        (403, "incompatible capabilities", "invalid_credentials"),
        (500, "Out of memory error.", "out_of_memory"),
        (500, "no workers can process job requested", "insufficient_capacity"),
        (400, "image: unknown format", "worker_failed"),
        (500, "", "worker_failed"),
    ],
)
def test_what_an_orchestrator_means(status: int, text: str, code: str) -> None:
    """Sources: livepeer_upscale.md 3.8 for the texts, 3.6 for what gateways match."""
    assert error_from_orchestrator(status, text).code == code


def test_what_the_client_did_wrong_is_kept_without_the_wrapping() -> None:
    """A client is told the reason, not the route it took."""
    wrapped = "upscale container returned 422: " + json.dumps(MISSING)

    assert error_from_orchestrator(500, "upscale container returned 400: too dark").message == "too dark"
    assert error_from_orchestrator(500, wrapped).message == "prompt: Field required"


def _error(code: str) -> FourfoldError:
    return next(cls for cls in walk() if cls.code == code)("why")


@pytest.mark.parametrize(
    ("code", "by_worker", "status", "text"),
    [
        ("insufficient_capacity", False, 503, "insufficient capacity"),
        ("insufficient_capacity", True, 500, "insufficient capacity"),
        ("shutting_down", False, 503, "insufficient capacity"),
        ("invalid_payment", False, 402, "why"),
        ("invalid_credentials", False, 403, "why"),
        ("storage_full", False, 500, "Could not create storage to receive results"),
        ("unreachable", True, 500, "no workers can process job requested"),
        ("deadline_exceeded", True, 500, "Remote worker took too long"),
        ("invalid_image", False, 400, "upscale request returned 400: why"),
        ("validation_error", False, 400, "upscale request returned 400: why"),
        ("invalid_image", True, 500, "upscale container returned 400: why"),
        ("engine_crashed", True, 500, "upscale container returned 500: why"),
        ("internal", False, 500, "upscale container returned 500: why"),
    ],
)
def test_what_a_gateway_is_told(code: str, by_worker: bool, status: int, text: str) -> None:
    """Status and text of livepeer_upscale.md 3.8."""
    assert reply_to_gateway(_error(code), by_worker=by_worker) == (status, text)


@pytest.mark.parametrize("by_worker", [True, False])
@pytest.mark.parametrize("cls", list(walk()), ids=lambda cls: cls.code)
def test_blame_survives_the_way_through_text(cls: type[FourfoldError], by_worker: bool) -> None:
    """Text loses detail, but never turns a client's fault into another's, nor the other way round."""
    sent = cls("why")
    status, text = reply_to_gateway(sent, by_worker=by_worker)
    received = error_from_orchestrator(status, text)

    assert (received.blame.name == "CLIENT") is (sent.blame.name == "CLIENT")
    assert status in (400, 402, 403, 500, 503)


def test_the_images_of_a_runner_are_read() -> None:
    """The flag may be absent; further keys are ignored."""
    body = b'{"images": [{"url": "data:,", "seed": 5, "more": 1}]}'

    assert images_from_runner(body) == [{"url": "data:,", "seed": 5, "more": 1}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"images": []}',
        b'{"images": {}}',
        b'{"images": "no"}',
        b'{"images": [1]}',
        b'{"images": [{"seed": 1}]}',
        b'{"images": [{"url": "data:,", "seed": -1}]}',
        b'{"images": [{"url": "data:,", "seed": 9007199254740992}]}',
        b'{"images": [{"url": 5, "seed": 1}]}',
        b'{"images": [{"url": "u", "seed": true}]}',
        b'{"images": [{"url": "u", "seed": "1"}]}',
        b'{"images": [{"url": "u", "seed": 1, "nsfw": "no"}]}',
        b"[" * 100_000,
    ],
)
def test_an_answer_without_an_image_is_a_bad_result(body: bytes) -> None:
    """Never a crash, never a wrong image."""
    with pytest.raises(BadResultError):
        images_from_runner(body)
