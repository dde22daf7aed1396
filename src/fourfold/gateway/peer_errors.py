"""What an orchestrator of ours says went wrong, as the gateway understands it. Pure."""

import json
from typing import Final

from fourfold.errors import FourfoldError, NoOrchestratorError, WorkerFailedError, error_for

#: Codes that mean the same to us as to the orchestrator that sent them. With any other (its own "internal", a bearer
#: token that its worker refused, a job it says we cancelled) the fault is on its side of the wire.
_ACCEPTED: Final = frozenset(
    {
        "invalid_parameter",
        "invalid_image",
        "image_too_large",
        "upload_too_large",
        "unsupported_format",
        "insufficient_capacity",
        "price_above_max",
        "queue_full",
        "shutting_down",
        "invalid_payment",
        "invalid_credentials",
        "model_unavailable",
        "engine_crashed",
        "out_of_memory",
        "bad_result",
        "worker_failed",
        "unreachable",
        "deadline_exceeded",
        "storage_full",
    }
)
#: The model left between the quote and the job.
_GONE: Final = frozenset({"unknown_model", "no_orchestrator"})
_MESSAGE_CHARS: Final = 500


def error_from_peer(code: str, body: str) -> FourfoldError:
    """Return the error that an orchestrator of ours names with *code*; *body* holds its message, as text or JSON."""
    message = _message(body)
    if code in _GONE:
        return NoOrchestratorError(message)
    if code in _ACCEPTED:
        return error_for(code, message)
    return WorkerFailedError(f"the orchestrator failed ({code[:64]}): {message}")


def _message(body: str) -> str:
    """Return the message of an error body."""
    try:
        value = json.loads(body)
    except ValueError:
        return body.strip()[:_MESSAGE_CHARS]
    for keys in (("error", "message"), ("detail", "msg")):
        found = value
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, str):
            return found[:_MESSAGE_CHARS]
    return body.strip()[:_MESSAGE_CHARS]
