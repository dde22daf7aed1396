"""Failures in Livepeer's words, both ways. The only place where a peer's text is matched, or written for its matching.

Livepeer's parts tell each other what went wrong in prose: a gateway looks for ``insufficient capacity`` or ``returned
400`` in what an orchestrator says. Between our own parts the header ``Fourfold-Error`` carries a code instead and
nothing here is used. Sources: ``go-livepeer server/ai_process.go``, ``server/ai_http.go``, ``ai/worker/worker.go``,
``ai-runner app/routes``.
"""

import json
from typing import Any, Final

from fourfold.errors import (
    BadResultError,
    ClientError,
    DeadlineExceededError,
    FourfoldError,
    InvalidCredentialsError,
    InvalidParameterError,
    InvalidPaymentError,
    ModelUnavailableError,
    NoCapacityError,
    OfferError,
    OutOfMemoryError,
    StorageFullError,
    UnreachableError,
    ValidationError,
    WorkerFailedError,
)
from fourfold.protocol.wire import is_seed

# What an orchestrator answers (server/ai_http.go); gateways match some of these, so they are exact.
INSUFFICIENT_CAPACITY: Final = "insufficient capacity"
SEGMENT_ENCODING: Final = "ErrorSegEncoding"
INCOMPATIBLE_CAPABILITIES: Final = "incompatible capabilities"
MISSING_AUTH_TOKEN: Final = "missing auth token"
INVALID_AUTH_TOKEN: Final = "invalid auth token"
EXPIRED_AUTH_TOKEN: Final = "expired auth token"
STORAGE_FAILED: Final = "Could not create storage to receive results"
NO_WORKERS: Final = "no workers can process job requested"
WORKER_TOO_SLOW: Final = "Remote worker took too long"

_EXCERPT_CHARS: Final = 300  #: of a foreign text, in a message of ours


def error_from_runner(status: int, body: bytes) -> FourfoldError:
    """Return what a Livepeer runner's failure means.

    Its 400 also covers every exception of its pipeline, and nothing tells the two apart; as the network does, it is
    taken for the client's. A plain-text 500 is an exception that the runner did not expect.
    """
    message, field = _runner_words(body)
    text = _with_field(message, field)
    lowered = text.lower()
    if status == 400:
        # "pipeline configured with X but called with Y.": the operator mixed up the models, not the client.
        configured_otherwise = "pipeline configured with" in lowered
        return ModelUnavailableError(text) if configured_otherwise else InvalidParameterError(text)
    if status == 422:
        return ValidationError(message, field=field)
    if status in (429, 503):
        return NoCapacityError(f"the worker is busy: {text}")
    if "out of memory" in lowered:
        return OutOfMemoryError(text)
    if status == 401:
        return WorkerFailedError("the worker refuses our token; check `token` in aiModels.json")
    return WorkerFailedError(f"the worker returned {status}: {text}")


def error_from_orchestrator(status: int, text: str) -> FourfoldError:
    """Return what a Livepeer orchestrator means by *status* and its plain *text*."""
    text = text.strip()[:_EXCERPT_CHARS]
    lowered = text.lower()
    if INSUFFICIENT_CAPACITY in lowered:
        return NoCapacityError(f"the orchestrator is busy: {text}")
    _, is_refusal, reason = text.partition("returned 400")
    if is_refusal:
        return InvalidParameterError(reason.lstrip(": ") or text)
    _, is_refusal, reason = text.partition("returned 422")
    if is_refusal:
        return InvalidParameterError(_with_field(*_runner_words(reason.lstrip(": ").encode())))
    if "ticketparams expired" in lowered or "invalid ticket sendernonce" in lowered:
        return InvalidPaymentError(text)
    if status == 403:
        return InvalidCredentialsError(text)
    if status == 402 or "insufficient balance" in lowered or "invalid ticket" in lowered:
        return InvalidPaymentError(text)
    if "out of memory" in lowered:
        return OutOfMemoryError(text)
    if NO_WORKERS in lowered:
        return NoCapacityError(text)
    return WorkerFailedError(f"the orchestrator returned {status}: {text or 'nothing'}")


def reply_to_gateway(error: FourfoldError, *, by_worker: bool) -> tuple[int, str]:
    """Return the status and the plain text that tell a Livepeer gateway of *error*.

    Args: *by_worker*, whether the failure came after a worker had the job: then the status is 500, as theirs is.

    A client's fault says ``returned 400``: a gateway that reads that stops, instead of trying 20 orchestrators.
    """
    if isinstance(error, OfferError):
        return 500 if by_worker else 503, INSUFFICIENT_CAPACITY
    if isinstance(error, InvalidPaymentError):
        return 402, error.message
    if isinstance(error, InvalidCredentialsError):
        return 403, error.message
    if isinstance(error, StorageFullError):
        return 500, STORAGE_FAILED
    if isinstance(error, UnreachableError):
        return 500, NO_WORKERS
    if isinstance(error, DeadlineExceededError):
        return 500, WORKER_TOO_SLOW
    if isinstance(error, ClientError):
        if by_worker:
            return 500, f"upscale container returned 400: {error.message}"
        return 400, f"upscale request returned 400: {error.message}"
    return 500, f"upscale container returned 500: {error.message}"


def images_from_runner(body: bytes) -> list[dict[str, Any]]:
    """Return the ``images`` of a runner's JSON answer, each with ``url``, ``seed`` and ``nsfw`` of the right types.

    Raises: BadResultError if *body* is anything else.
    """
    try:
        images = json.loads(body)["images"]
        well_formed = all(
            isinstance(image["url"], str) and is_seed(image["seed"]) and isinstance(image.get("nsfw", False), bool)
            for image in images
        )
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise BadResultError(f"expected the worker to answer with an image, got {len(body)} bytes of else") from exc
    if not isinstance(images, list) or not images or not well_formed:
        raise BadResultError("expected the worker to answer with one image, its seed and nsfw; some are missing")
    return images


def _with_field(message: str, field: str) -> str:
    return f"{field}: {message}" if field else message


def _runner_words(body: bytes) -> tuple[str, str]:
    """Return the message in a runner's error body, and the field that it is about, "" where it names none."""
    try:
        detail = json.loads(body)["detail"]
        if isinstance(detail, dict):
            return str(detail["msg"])[:_EXCERPT_CHARS], ""
        if isinstance(detail, str):
            return detail[:_EXCERPT_CHARS], ""
        first = detail[0]
        field = ".".join(str(part) for part in first["loc"] if part != "body")
        return str(first["msg"])[:_EXCERPT_CHARS], field[:_EXCERPT_CHARS]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return body.decode("utf-8", "replace").strip()[:_EXCERPT_CHARS] or "an empty answer", ""
