"""Every error's body at seam 1, held against what Livepeer's SDKs parse (protocol_and_payments.md, 1a)."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from fourfold.errors import FourfoldError, ValidationError, walk
from fourfold.gateway.app_errors import error_response, refusal
from fourfold.telemetry import request_id


class Detail(BaseModel):
    """As PyPI `livepeer-ai` 0.10.0 has it: ``APIError``."""

    msg: str


class HTTPErrorData(BaseModel):
    """``HTTPError``'s data, for 400, 401 and 500."""

    detail: Detail


class Location(BaseModel):
    """One entry of FastAPI's list."""

    model_config = ConfigDict(strict=True)

    loc: list[str | int]
    msg: str
    type: str


class HTTPValidationErrorData(BaseModel):
    """``HTTPValidationError``'s data, for 422."""

    detail: list[Location]


class GoError(BaseModel):
    """go-livepeer's own body, which its users read."""

    message: str


CLASSES = sorted(walk(), key=lambda cls: cls.__name__)


def body_of(error: FourfoldError) -> tuple[Any, Any]:
    token = request_id.set("the-id")
    try:
        answer = error_response(error)
    finally:
        request_id.reset(token)
    return answer, json.loads(answer.body)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_parses(cls: type[FourfoldError]) -> None:
    """In the SDKs' shape for its status, and in go-livepeer's."""
    answer, body = body_of(cls("the message"))

    if answer.status_code == 422:
        (entry,) = HTTPValidationErrorData.model_validate(body).detail
        assert (entry.msg, entry.loc[0]) == ("the message", "body")
    else:
        assert HTTPErrorData.model_validate(body).detail.msg == "the message"
    assert GoError.model_validate(body["error"]).message == "the message"
    assert answer.headers["Content-Type"] == "application/json"
    assert body["error"] == {
        "message": "the message",
        "code": cls.code,
        "request_id": "the-id",
        "retryable": cls.retry.name != "NEVER",
    }
    assert list(body) == ["detail", "error"]


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls.http_status in (429, 503)])
def test_what_is_temporary_says_when_to_come_back(cls: type[FourfoldError]) -> None:
    """Retry-After in whole seconds."""
    answer, _ = body_of(cls("x"))

    assert 1 <= int(answer.headers["Retry-After"]) <= 60


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls.http_status not in (429, 503)])
def test_what_is_not_temporary_does_not(cls: type[FourfoldError]) -> None:
    """No Retry-After where waiting is not the remedy."""
    assert "Retry-After" not in body_of(cls("x"))[0].headers


@pytest.mark.parametrize(
    ("error", "location"),
    [
        (ValidationError("x", field="seed", kind="int_parsing"), ["body", "seed"]),
        (ValidationError("x"), ["body"]),
    ],
)
def test_a_422_names_the_field(error: ValidationError, location: list[str]) -> None:
    """As FastAPI does."""
    _, body = body_of(error)

    assert body["detail"][0]["loc"] == location
    assert body["detail"][0]["type"] == error.kind
    assert body["detail"][0]["input"] is None


def test_a_refusal_in_terms_of_http_has_the_same_body() -> None:
    """405 and 416 have no class of their own."""
    body = json.loads(refusal(405, "method_not_allowed", "use POST", {"Allow": "POST"}).body)

    assert HTTPErrorData.model_validate(body).detail.msg == "use POST"
    assert body["error"]["code"] == "method_not_allowed"


def test_401_says_how_to_authenticate() -> None:
    """The scheme that the SDKs use."""
    cls = next(c for c in CLASSES if c.code == "unauthorized")

    assert body_of(cls("x"))[0].headers["WWW-Authenticate"] == "Bearer"
