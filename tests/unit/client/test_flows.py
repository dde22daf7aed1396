"""What a client says and understands, without a connection."""

import json
from pathlib import Path
from typing import Any

import pytest

from fourfold.client import flows
from fourfold.client.flows import Exchange, Flow, Reply
from fourfold.errors import (
    BadResultError,
    DeadlineExceededError,
    EngineCrashedError,
    FourfoldError,
    InvalidParameterError,
    NoOrchestratorError,
    NotFoundError,
    QueueFullError,
    ValidationError,
    walk,
)

URL = "http://g:9935/upscale"
GOOD = {"images": [{"nsfw": False, "seed": 7, "url": "http://g:9935/stream/a/b.png"}]}


def reply(body: object, status: int = 200, **headers: str) -> Reply:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, URL, {k.replace("_", "-").lower(): v for k, v in headers.items()}, content)


def answer(flow: Flow[Any], given: Reply) -> Any:
    """Return what *flow* makes of *given*."""
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(given)
    return end.value.value


def refused(given: Reply) -> FourfoldError:
    flow = flows.upscale(b"", {})
    next(flow)
    with pytest.raises(FourfoldError) as caught:
        flow.send(given)
    return caught.value


def test_a_request_holds_what_was_asked_for_and_nothing_else() -> None:
    """Options that were left out are the gateway's to choose; zero and false are values."""
    options: flows.Options = {"seed": 0, "safety_check": False, "prompt": "a cat", "request_id": "mine"}
    exchange = next(flows.upscale(b"png", options))

    assert exchange == Exchange(
        "POST",
        "/upscale",
        {"seed": "0", "safety_check": "false", "prompt": "a cat"},
        b"png",
        {"X-Request-ID": "mine"},
    )


def test_a_fourfold_gateways_answer() -> None:
    """With all that its headers tell."""
    headers = {
        "Fourfold_Model": "a/b",
        "Fourfold_Safety": "clean",
        "Fourfold_Input_Pixels": "108",
        "Fourfold_Fee_Wei": "686645424",
        "Fourfold_Duration_Ms": "12",
        "X_Request_ID": "r",
    }
    found = answer(flows.upscale(b"", {}), reply(GOOD, **headers))

    assert found == flows.Upscaled(
        url="http://g:9935/stream/a/b.png",
        seed=7,
        nsfw=False,
        model_id="a/b",
        safety="clean",
        input_pixels=108,
        fee_wei=686645424,
        duration_ms=12,
        request_id="r",
    )


def test_a_livepeer_gateways_answer() -> None:
    """Its address is relative and its headers tell nothing."""
    body = {"images": [{"nsfw": True, "seed": 0, "url": "/stream/dd5ad78d/7adde483.png"}]}
    found = answer(flows.upscale(b"", {}), reply(body))

    assert found.url == "http://g:9935/stream/dd5ad78d/7adde483.png"
    assert (found.seed, found.nsfw, found.model_id, found.fee_wei) == (0, True, None, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        {},
        {"images": []},
        {"images": [{"url": "x"}]},
        [],
        {"images": [{**GOOD["images"][0], "seed": "7"}]},
    ],
)
def test_an_answer_that_is_none(body: object) -> None:
    """The gateway's fault, with what it said."""
    assert isinstance(refused(reply(body)), BadResultError)


@pytest.mark.parametrize("cls", sorted(walk(), key=lambda cls: cls.__name__))
def test_every_code_becomes_its_error(cls: type[FourfoldError]) -> None:
    """With its message, and the request's id as a note."""
    body = {"detail": {"msg": "m"}, "error": {"message": "m", "code": cls.code, "request_id": "r-1", "retryable": True}}
    error = refused(reply(body, status=cls.http_status if cls.http_status != 200 else 500))

    assert type(error) is cls
    assert str(error) == "m"
    assert error.__notes__ == ["request_id: r-1"]


@pytest.mark.parametrize(
    ("status", "body", "cls", "message"),
    [
        (400, {"error": {"message": "go says"}}, InvalidParameterError, "go says"),
        (422, {"detail": [{"loc": ["body"], "msg": "x"}]}, ValidationError, "answered 422"),
        (429, b"slow down", QueueFullError, "slow down"),
        (503, {"error": {"message": "Service Unavailable Error"}}, NoOrchestratorError, "Service Unavailable"),
        (504, b"", DeadlineExceededError, "answered 504: nothing"),
        (500, {"detail": {"msg": "sdk says"}}, FourfoldError, "sdk says"),
        (302, b"", FourfoldError, "answered 302"),
        (500, {"error": "text"}, FourfoldError, "answered 500"),
    ],
)
def test_errors_of_other_gateways(status: int, body: object, cls: type[FourfoldError], message: str) -> None:
    """By their status, where no code is told."""
    error = refused(reply(body, status=status))

    assert type(error) is cls
    assert message in str(error)


def test_a_download_appears_when_it_is_whole(tmp_path: Path) -> None:
    """The file is written beside its place and then put there."""
    target = tmp_path / "out.png"
    flow = flows.download("http://g/stream/a/b.png", target, None)
    exchange = next(flow)
    assert exchange.save_to is not None
    exchange.save_to.write_bytes(b"png")
    assert not target.exists()
    with pytest.raises(StopIteration):
        flow.send(reply(b""))

    assert target.read_bytes() == b"png"
    assert list(tmp_path.iterdir()) == [target]


def test_a_download_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Neither a part nor an empty file; what was there stays."""
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    for trouble in (reply({"error": {"code": "not_found", "message": "gone"}}, status=404), None):
        flow = flows.download("http://g/stream/a/b.png", target, None)
        exchange = next(flow)
        assert exchange.save_to is not None
        exchange.save_to.write_bytes(b"half")
        if trouble is None:
            with pytest.raises(EngineCrashedError):
                flow.throw(EngineCrashedError("cut"))
        else:
            with pytest.raises(NotFoundError):
                flow.send(trouble)

    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_models_are_an_object() -> None:
    """Anything else is the gateway's fault."""
    assert answer(flows.models(), reply({"models": []})) == {"models": []}
    flow = flows.models()
    next(flow)
    with pytest.raises(BadResultError):
        flow.send(reply([]))
