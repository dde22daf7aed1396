"""What a client says and how it understands the answers, written once for the sync and the async client.

A flow is a generator: it yields exchanges, is sent replies, and returns a result. It does no I/O of its own.
"""

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias, TypedDict, TypeVar
from urllib.parse import urljoin

import httpx2

from fourfold.errors import (
    BadResultError,
    DeadlineExceededError,
    FourfoldError,
    InvalidParameterError,
    NoOrchestratorError,
    NotFoundError,
    QueueFullError,
    UnauthorizedError,
    UnsupportedFormatError,
    UploadTooLargeError,
    ValidationError,
    error_for,
)
from fourfold.protocol import wire
from fourfold.protocol.routes import MODELS, UPSCALE

Image: TypeAlias = Path | str | bytes | BinaryIO
"""A picture: the path of its file, its encoded bytes, or an open binary file."""

Progress: TypeAlias = Callable[[int, int | None], None]
"""Called with the bytes received so far and, where the server says, of how many."""

#: What a status means where the body names no code, as with gateways that are not ours.
_STATUS_TO_ERROR: Final[dict[int, type[FourfoldError]]] = {
    400: InvalidParameterError,
    401: UnauthorizedError,
    404: NotFoundError,
    413: UploadTooLargeError,
    415: UnsupportedFormatError,
    422: ValidationError,
    429: QueueFullError,
    503: NoOrchestratorError,
    504: DeadlineExceededError,
}
_EXCERPT_CHARS: Final = 500


class Options(TypedDict, total=False):
    """The request's fields; one that is left out is the gateway's to choose."""

    prompt: str
    model_id: str
    seed: int
    num_inference_steps: int
    safety_check: bool
    negative_prompt: str  #: of diffusion models, as the next three
    guidance_scale: float  #: >= 0
    noise_level: int  #: 0 to 350
    mode: str  #: exact | fast
    output_format: str  #: png | jpeg | webp | avif | tiff
    quality: int  #: 1 to 100, of the lossy formats
    metadata: str  #: default | keep | strip | copyright
    scale: float  #: 1 to 4
    width: int  #: of the result, pixels
    height: int  #: of the result, pixels
    fit: str  #: contain | exact
    tileable: bool  #: the edges are to meet when the result is laid side by side
    request_id: str  #: your own name for the request, in the logs and in the answer


@dataclass(frozen=True, slots=True)
class Upscaled:
    """A finished job. What only a Fourfold gateway tells is None with another one."""

    url: str  #: where the result is, absolute
    seed: int  #: the one that ran
    nsfw: bool
    model_id: str | None
    safety: str | None  #: clean | flagged | not-checked
    input_pixels: int | None
    fee_wei: int | None
    duration_ms: int | None
    request_id: str | None
    fidelity: dict[str, Any] | None = None  #: what was done to the picture, and how near to it the result is
    mode: str | None = None  #: exact, or fast, which is another picture; None where the model knows no modes
    warnings: tuple[str, ...] = ()  #: what of the wishes could not be met, such as the end of a long prompt


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request that a client is to send."""

    method: str
    url: str  #: relative to the gateway, or absolute
    form: dict[str, str] | None = None
    image: Image | None = None
    headers: dict[str, str] | None = None
    save_to: Path | None = None  #: write the body of a 200 there, not into the reply
    on_progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    url: str  #: that was asked, absolute
    headers: dict[str, str]  #: names in lower case
    body: bytes


_T = TypeVar("_T")
Flow: TypeAlias = Generator[Exchange, Reply, _T]


def upscale(image: Image, options: Options) -> Flow[Upscaled]:
    """Have *image* upscaled. Raises: the FourfoldError that the gateway names."""
    form = {
        name: ("true" if value else "false") if isinstance(value, bool) else str(value)
        for name, value in options.items()
        if name != "request_id" and value is not None
    }
    headers = {wire.REQUEST_ID_HEADER: options["request_id"]} if options.get("request_id") else None
    reply = yield Exchange("POST", UPSCALE, form, image, headers)
    body = _json(reply)
    try:
        found = body["images"][0]
        url, seed, nsfw = found["url"], found["seed"], found["nsfw"]
        if not (isinstance(url, str) and type(seed) is int and isinstance(nsfw, bool)):
            raise TypeError
    except (LookupError, TypeError):
        raise BadResultError(f"expected an answer with one image from {reply.url}, got {_excerpt(reply)}") from None
    run = wire.read_run_facts(httpx2.Headers(reply.headers))
    return Upscaled(
        url=_absolute(url, reply.url),
        seed=seed,
        nsfw=nsfw,
        model_id=reply.headers.get(wire.MODEL_HEADER.lower()),
        safety=reply.headers.get(wire.SAFETY_HEADER.lower()),
        input_pixels=_number(reply, wire.INPUT_PIXELS_HEADER),
        fee_wei=_number(reply, wire.FEE_HEADER),
        duration_ms=_number(reply, wire.DURATION_HEADER),
        request_id=reply.headers.get(wire.REQUEST_ID_HEADER.lower()),
        fidelity=body["fidelity"] if isinstance(body.get("fidelity"), dict) else None,
        mode=run.mode,
        warnings=run.warnings,
    )


def download(url: str, target: Path, on_progress: Progress | None) -> Flow[None]:
    """Save the result at *url* to *target*; the file appears when it is whole. Raises: NotFoundError if it is gone."""
    partial = target.with_name(target.name + ".part")
    try:
        reply = yield Exchange("GET", url, save_to=partial, on_progress=on_progress)
        if reply.status != 200:
            raise _error(reply)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def models() -> Flow[dict[str, Any]]:
    """Return what ``GET /models`` tells."""
    reply = yield Exchange("GET", MODELS)
    body = _json(reply)
    if not isinstance(body, dict):
        raise BadResultError(f"expected a list of models from {reply.url}, got {_excerpt(reply)}")
    return body


def _json(reply: Reply) -> Any:
    """Return the JSON of a 200; raise the error that any other status stands for."""
    if reply.status != 200:
        raise _error(reply)
    try:
        return json.loads(reply.body)
    except ValueError:
        raise BadResultError(f"expected JSON from {reply.url}, got {_excerpt(reply)}") from None


def _error(reply: Reply) -> FourfoldError:
    """Return the error of a reply, by its code where it names one, else by its status."""
    otherwise = _STATUS_TO_ERROR.get(reply.status, FourfoldError)
    code, message, request_id = "", "", ""
    try:
        body = json.loads(reply.body)
        told = body.get("error") or {}
        code, message, request_id = told.get("code", ""), told.get("message", ""), told.get("request_id", "")
        message = message or body["detail"]["msg"]
    except (ValueError, LookupError, TypeError, AttributeError):
        message = message or f"{reply.url} answered {reply.status}: {_excerpt(reply)}"
    error = error_for(str(code), str(message), otherwise=otherwise)
    if request_id:
        error.add_note(f"request_id: {request_id}")
    return error


def _excerpt(reply: Reply) -> str:
    return reply.body[:_EXCERPT_CHARS].decode("utf-8", "replace").strip() or "nothing"


def _number(reply: Reply, header: str) -> int | None:
    text = reply.headers.get(header.lower(), "")
    return int(text) if text.isascii() and text.isdigit() else None


def _absolute(url: str, asked: str) -> str:
    """Return *url* as seen from the address that was asked; go-livepeer's are relative."""
    return urljoin(asked, url)
