"""Every error that Fourfold raises on purpose, drawn as one tree.

::

    FourfoldError                      internal               500  gateway
    +-- ClientError (the request is at fault: never retried, counts against nobody)
    |   +-- ValidationError            validation_error       422
    |   +-- InvalidParameterError      invalid_parameter      400
    |   +-- InvalidImageError          invalid_image          400
    |   +-- UnknownModelError          unknown_model          400
    |   +-- UnauthorizedError          unauthorized           401
    |   +-- NotFoundError              not_found              404
    |   +-- ImageTooLargeError         image_too_large        413
    |   +-- UploadTooLargeError        upload_too_large       413
    |   +-- UnsupportedFormatError     unsupported_format     415
    |   +-- CancelledByClientError     cancelled              499
    +-- OfferError (nobody can take the job now: try later)
    |   +-- NoOrchestratorError        no_orchestrator        503
    |   +-- PriceAboveMaxError         price_above_max        503
    |   +-- NoCapacityError            insufficient_capacity  503
    |   +-- QueueFullError             queue_full             429
    |   +-- ShuttingDownError          shutting_down          503
    +-- PaymentError (the two sides disagree about money or credentials)
    |   +-- InvalidPaymentError        invalid_payment        402
    |   +-- InvalidCredentialsError    invalid_credentials    403
    +-- WorkerError (the side that was to do the work failed)
    |   +-- ModelUnavailableError      model_unavailable      503
    |   +-- EngineCrashedError         engine_crashed         500
    |   +-- OutOfMemoryError           out_of_memory          500
    |   +-- BadResultError             bad_result             502
    |   +-- WorkerFailedError          worker_failed          502
    +-- NetworkError (nobody answered)
    |   +-- UnreachableError           unreachable            502
    |   +-- DeadlineExceededError      deadline_exceeded      504
    +-- StorageFullError               storage_full           507  gateway
    +-- ConfigError                    invalid_config         500  gateway

A message says what was expected, what came and what to do. Nothing parses messages: `code` crosses the wire,
`retry` decides what a dispatcher does next and `blame` whose reputation is touched.
"""

from collections.abc import Iterator
from enum import Enum
from typing import ClassVar

Retry = Enum("Retry", ["SAME", "OTHER", "NEVER"])
"""The same peer again | another one, or the same a little later | tell the client."""

Blame = Enum("Blame", ["CLIENT", "WORKER", "NETWORK", "GATEWAY"])
"""Whose fault a failure is. Only WORKER faults touch an orchestrator's reputation."""


class FourfoldError(Exception):
    """Root of everything this package raises on purpose; on its own, a fault of the part that raised it."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    retry: ClassVar[Retry] = Retry.NEVER
    blame: ClassVar[Blame] = Blame.GATEWAY

    @property
    def message(self) -> str:
        """The text for people; falls back to the class's docstring."""
        return str(self) or (type(self).__doc__ or self.code).strip().splitlines()[0]

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed if the client sends it again later."""
        return self.retry is not Retry.NEVER


class ClientError(FourfoldError):
    """The request itself is at fault."""

    code, http_status, blame = "invalid_request", 400, Blame.CLIENT


class ValidationError(ClientError):
    """A field, or the body, is missing or malformed; *field* names it, *kind* is pydantic's name for what is wrong.

    The message begins with the field: most clients show that alone, and not the list.
    """

    code, http_status = "validation_error", 422

    def __init__(self, message: str, *, field: str = "", kind: str = "value_error") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.kind = kind
        self._what = message

    @property
    def detail(self) -> list[dict[str, object]]:
        """The list with which FastAPI, and so Livepeer's runner, tells a client; no *field*: the body as a whole."""
        location = ["body", self.field] if self.field else ["body"]
        return [{"type": self.kind, "loc": location, "msg": self._what, "input": None}]


class InvalidParameterError(ClientError):
    """A field is well-formed but its value is refused."""

    code, http_status = "invalid_parameter", 400


class InvalidImageError(ClientError):
    """The image is damaged, truncated or empty."""

    code, http_status = "invalid_image", 400


class UnknownModelError(ClientError):
    """Neither the registry nor any offer knows this model_id."""

    code, http_status = "unknown_model", 400


class UnauthorizedError(ClientError):
    """The bearer token is missing or wrong."""

    code, http_status = "unauthorized", 401


class NotFoundError(ClientError):
    """There is nothing under this address, or it has expired."""

    code, http_status = "not_found", 404


class ImageTooLargeError(ClientError):
    """The image has more pixels, or a longer side, than the limits allow."""

    code, http_status = "image_too_large", 413


class UploadTooLargeError(ClientError):
    """The request body is larger than the limit."""

    code, http_status = "upload_too_large", 413


class UnsupportedFormatError(ClientError):
    """The bytes are no image format that this build reads."""

    code, http_status = "unsupported_format", 415


class CancelledByClientError(ClientError):
    """The client went away or asked to cancel; nobody is left to read this."""

    code, http_status = "cancelled", 499


class OfferError(FourfoldError):
    """Nobody can take the job now."""

    code, http_status, retry, blame = "unavailable", 503, Retry.OTHER, Blame.NETWORK


class NoOrchestratorError(OfferError):
    """No orchestrator offers the model now."""

    code = "no_orchestrator"


class PriceAboveMaxError(OfferError):
    """Every offer costs more than the ceiling."""

    code = "price_above_max"


class NoCapacityError(OfferError):
    """Every worker with this capability is at its capacity; try elsewhere, or later."""

    code = "insufficient_capacity"


class QueueFullError(OfferError):
    """The gateway's own queue is full; try later."""

    code, http_status, blame = "queue_full", 429, Blame.GATEWAY


class ShuttingDownError(OfferError):
    """This process is draining and takes no new work."""

    code = "shutting_down"


class PaymentError(FourfoldError):
    """The two sides disagree about money or credentials."""

    code, http_status, retry, blame = "payment_failed", 402, Retry.OTHER, Blame.GATEWAY


class InvalidPaymentError(PaymentError):
    """The payment header cannot be read or does not cover the fee."""

    code, http_status = "invalid_payment", 402


class InvalidCredentialsError(PaymentError):
    """The segment credentials are missing, malformed, expired or not ours; ask for a fresh token."""

    code, http_status, retry = "invalid_credentials", 403, Retry.SAME


class WorkerError(FourfoldError):
    """The side that was to do the work failed."""

    code, http_status, retry, blame = "worker_error", 502, Retry.OTHER, Blame.WORKER


class ModelUnavailableError(WorkerError):
    """The model is offered but could not be loaded."""

    code, http_status = "model_unavailable", 503


class EngineCrashedError(WorkerError):
    """The device's process died while it held the job."""

    code, http_status = "engine_crashed", 500


class OutOfMemoryError(WorkerError):
    """The device or the machine ran out of memory on this job."""

    code, http_status = "out_of_memory", 500


class BadResultError(WorkerError):
    """What came back is not an upscale of what was sent."""

    code, http_status = "bad_result", 502


class WorkerFailedError(WorkerError):
    """The worker answered with a failure of its own that has no closer name."""

    code, http_status = "worker_failed", 502


class NetworkError(FourfoldError):
    """Nobody answered."""

    code, http_status, retry, blame = "network_error", 502, Retry.OTHER, Blame.NETWORK


class UnreachableError(NetworkError):
    """The peer refused the connection or dropped it."""

    code, http_status = "unreachable", 502


class DeadlineExceededError(NetworkError):
    """The job did not finish before its deadline."""

    code, http_status, retry = "deadline_exceeded", 504, Retry.NEVER


class StorageFullError(FourfoldError):
    """There is no room left to keep the upload or the result."""

    code, http_status, retry = "storage_full", 507, Retry.OTHER


class ConfigError(FourfoldError):
    """A setting or a file that the process is started with is wrong."""

    code = "invalid_config"


def walk(root: type[FourfoldError] = FourfoldError) -> Iterator[type[FourfoldError]]:
    """Yield *root* and every class below it, parents first."""
    yield root
    for child in root.__subclasses__():
        yield from walk(child)


def error_for(code: str, message: str, *, otherwise: type[FourfoldError] = WorkerFailedError) -> FourfoldError:
    """Return the error that a peer of ours named by *code* on the wire; an unknown code gives *otherwise*."""
    for cls in walk():
        if cls.code == code:
            return cls(message)
    return otherwise(message)
