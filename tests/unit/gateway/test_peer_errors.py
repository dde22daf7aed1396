"""What an orchestrator of ours says went wrong."""

import json

import pytest

from fourfold.errors import Blame, FourfoldError, NoOrchestratorError, Retry, WorkerFailedError, walk
from fourfold.gateway.peer_errors import error_from_peer

CODES = sorted({cls.code for cls in walk()})


@pytest.mark.parametrize("code", CODES)
def test_no_peer_makes_us_blame_ourselves(code: str) -> None:
    """Whatever a peer says, it is not an internal error of this gateway, nor a matter of this client's credentials."""
    error = error_from_peer(code, "text")

    assert error.code not in {"internal", "invalid_config", "unauthorized", "cancelled", "not_found"}
    assert error.code == code or error.retry is Retry.OTHER


@pytest.mark.parametrize("code", ["internal", "no-such-code", "", "invalid_config", "unauthorized"])
def test_an_error_that_is_its_own_affair_is_a_failed_worker(code: str) -> None:
    """It is tried elsewhere and counts against it."""
    error = error_from_peer(code, "text")

    assert isinstance(error, WorkerFailedError)
    assert error.blame is Blame.WORKER


@pytest.mark.parametrize("code", ["unknown_model", "no_orchestrator"])
def test_a_model_that_left_is_looked_for_elsewhere(code: str) -> None:
    """The client's model was offered a moment ago: it is no mistake of the client's."""
    assert isinstance(error_from_peer(code, ""), NoOrchestratorError)


@pytest.mark.parametrize(
    "body",
    [
        "seed is odd",
        json.dumps({"error": {"message": "seed is odd"}}),
        json.dumps({"detail": {"msg": "seed is odd"}}),
        json.dumps({"error": "x", "detail": {"msg": "seed is odd"}}),
    ],
)
def test_the_message_is_found(body: str) -> None:
    """As text or in one of our two JSON places."""
    assert error_from_peer("invalid_parameter", body).message == "seed is odd"


@pytest.mark.parametrize("body", ["", "[]", "null", '{"error": null}', "x" * 5000])
def test_any_body_gives_an_error(body: str) -> None:
    """Odd bodies are quoted, briefly."""
    error = error_from_peer("bad_result", body)

    assert isinstance(error, FourfoldError)
    assert len(error.message) <= 500
