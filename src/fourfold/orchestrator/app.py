"""The orchestrator's one port: gRPC and HTTPS in and out, nothing else.

Two dialects of a job. With ``Fourfold-Protocol: 1`` the answer is the picture itself and failures carry a code; without
it everything is as Livepeer's gateways expect: JSON with a URL or a data URL, and failures as plain text.
"""

import asyncio
import contextlib
import json
import logging
import re
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from fourfold.config import OrchestratorSettings
from fourfold.errors import (
    CancelledByClientError,
    FourfoldError,
    NoCapacityError,
    NotFoundError,
    ShuttingDownError,
    UnreachableError,
    UploadTooLargeError,
    ValidationError,
)
from fourfold.orchestrator.admission import Admission, Claims, Codec, Tokens
from fourfold.orchestrator.jobs import Job, Jobs
from fourfold.orchestrator.models import ModelConfig
from fourfold.orchestrator.offering import Offering
from fourfold.orchestrator.pricing import PriceDefaults, price_list
from fourfold.orchestrator.sale import Counter, Sale
from fourfold.orchestrator.spool import JobFiles, Spool
from fourfold.orchestrator.streaming import image_response, send_data_url, send_png
from fourfold.orchestrator.workers import Slot, Workers
from fourfold.processes.serving import unless_gone
from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol import routes, wire
from fourfold.protocol.grpc_asgi import Call, GrpcApp, GrpcError, Status, Unary, is_grpc
from fourfold.protocol.livepeer_errors import reply_to_gateway
from fourfold.protocol.multipart import read_form
from fourfold.telemetry import Metrics, request_id

log = logging.getLogger(__name__)

_MAX_OPEN: Final = 64  #: requests whose body or picture lies in the spool at one time
_MAX_GRPC_BYTES: Final = 256 * 1024
_LINGER_BYTES: Final = 8 * 2**20  #: of a refused body that are still read, so that the refusal is
_LINGER_S: Final = 2.0
_RETRY_AFTER_S: Final = "1"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


class StoredResult(Protocol):
    """A result that is still there."""

    @property
    def path(self) -> Path:
        """Where it lies."""


class ResultStore(Protocol):
    """Where results wait for whoever knows their name; ``fourfold.results.FilesystemStore`` is one."""

    async def put(self, source: Path, /) -> str:
        """Move *source* in; return its key, ``<32 hex>/<32 hex>.png``. Raises: StorageFullError."""

    def find(self, group: str, name: str, /) -> StoredResult | None:
        """Return the result, None if there is none or it has expired."""


def create_app(
    settings: OrchestratorSettings,
    models: Sequence[ModelConfig],
    *,
    workers: Workers,
    codec: Codec,
    results: ResultStore,
    spool: Path,
    service_url: str | None = None,
    metrics: Metrics | None = None,
    clock: Callable[[], float] = time.time,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> "OrchestratorApp":
    """Return the orchestrator's ASGI application. It owns nothing but the folder *spool*, which it empties.

    Args: *service_url*, ``https://host:port`` under which gateways reach it; without it the address that each of them
        used. *clock*, seconds since the epoch.

    Raises: ConfigError if a model's price does not fit the wire.
    """
    metrics = metrics or Metrics("orchestrator")
    prices = price_list(models, PriceDefaults(price_usd=settings.price_usd, usd_per_eth=settings.usd_per_eth))
    tokens = Tokens(ttl_s=settings.token_ttl_s, clock=clock, random=random)
    offering = Offering(models, prices=prices, workers=workers, tokens=tokens)
    admission: Admission[Slot] = Admission(
        tokens=tokens,
        capabilities=offering.capabilities,
        capacity=workers,
        prices=prices,
        codec=codec,
        limits=settings.limits,
    )
    return OrchestratorApp(
        offering,
        Counter(admission, workers, metrics),
        results,
        Spool(spool),
        settings,
        service_url=service_url,
        metrics=metrics,
    )


class OrchestratorApp:
    """An ASGI application that can stop taking jobs."""

    def __init__(
        self,
        offering: Offering,
        counter: Counter,
        results: ResultStore,
        spool: Spool,
        settings: OrchestratorSettings,
        *,
        service_url: str | None,
        metrics: Metrics,
    ) -> None:
        self.accepting = True
        self.jobs = Jobs()
        self._offering = offering
        self._counter = counter
        self._results = results
        self._spool = spool
        self._settings = settings
        self._service_url = service_url.rstrip("/") if service_url else None
        self._metrics = metrics
        self._open = 0
        self._grpc = GrpcApp(
            {
                routes.GRPC_GET_ORCHESTRATOR: Unary(pb.OrchestratorRequest, self._get_orchestrator),
                routes.GRPC_PING: Unary(pb.PingPong, self._ping),
            },
            max_request_bytes=_MAX_GRPC_BYTES,
        )
        self._http = Starlette(
            routes=[
                Route(routes.UPSCALE, _Endpoint(self._upscale), methods=["POST"]),
                Route(routes.STREAM + "/{group}/{name}", _Endpoint(self._stream), methods=["GET", "HEAD"]),
                Route(routes.JOBS + "/{job_id}", self._cancel, methods=["DELETE"]),
                Route(routes.JOBS + "/{job_id}/events", self._events, methods=["GET"]),
                Route(routes.HEALTHZ, self._healthz, methods=["GET"]),
                Route(routes.METRICS, self._exposition, methods=["GET"]),
            ],
            exception_handlers={FourfoldError: _on_error, HTTPException: _on_http_error},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand gRPC to gRPC and everything else to HTTP."""
        if scope["type"] == "http":
            given = Headers(scope=scope).get(wire.REQUEST_ID_HEADER, "")
            request_id.set(given if _REQUEST_ID.match(given) else uuid.uuid4().hex)
            send = _with_request_id(send)
            if is_grpc(scope):
                await self._grpc(scope, receive, send)
                return
        await self._http(scope, receive, send)

    def drain(self) -> None:
        """Take no new jobs; those in hand go on."""
        self.accepting = False

    async def _get_orchestrator(self, request: pb.OrchestratorRequest, call: Call) -> pb.OrchestratorInfo:
        """Answer a gateway that looks for orchestrators. Off-chain address and signature may be empty."""
        if not self.accepting:
            raise GrpcError(Status.UNAVAILABLE, "shutting down; ask another orchestrator")
        return self._offering.answer(request, url=self._base_url("https", call.authority, call.server_port))

    async def _ping(self, request: pb.PingPong, _: Call) -> pb.PingPong:
        """Echo; the value is signed once there are keys."""
        return pb.PingPong(value=request.value)

    async def _upscale(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one job and answer it, whatever happens; nothing of it is left behind."""
        headers = Headers(scope=scope)
        body = Body(receive)
        job: Job | None = None

        async def work(job_id: str, files: JobFiles) -> Sale:
            nonlocal job
            task = asyncio.current_task()
            assert task is not None
            with self.jobs.open(job_id, task) as job:
                fields = await self._read_form(headers, body, files)
                claims = Claims(
                    segment=headers.get(wire.SEGMENT_HEADER, ""),
                    payment=headers.get(wire.PAYMENT_HEADER, ""),
                    model_id=fields.model_id,
                )
                sale = self._counter.sell(claims, fields, job, files, request_id=request_id.get())
                return await unless_gone(receive, sale, name=f"work-{job_id}")

        try:
            job_id = wire.check_job_id(headers.get(wire.JOB_HEADER) or uuid.uuid4().hex)
            with self._place(), self._spool.files() as files:
                sale = await _cancellable(work(job_id, files), name=f"job-{job_id}")
                await self._send_result(scope, headers, sale, files, send)
        except FourfoldError as error:
            await body.discard()
            reply = _failure(headers, error, by_worker=job is not None and job.has_run)
        except Exception:  # the edge of a request: its sender still gets an answer
            log.exception("request_failed", extra={"path": routes.UPSCALE})
            reply = _failure(headers, FourfoldError("the orchestrator failed; its log has the reason"))
        else:
            return
        await reply(scope, receive, send)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """Hold a place for a request. Raises: ShuttingDownError, NoCapacityError if too many are open."""
        if not self.accepting:
            raise ShuttingDownError("this orchestrator is shutting down; ask another")
        if self._open >= _MAX_OPEN:
            raise NoCapacityError(f"{_MAX_OPEN} requests are open already; try again later")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def _read_form(self, headers: Headers, body: "Body", files: JobFiles) -> wire.UpscaleFields:
        """Read the request's form, its image to a file. Raises: ValidationError, UploadTooLargeError and the like."""
        limits = self._settings.limits
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > limits.upload_bytes:
            raise UploadTooLargeError(f"a request may have {limits.upload_bytes} bytes, got {length}; send less")
        upload = await read_form(
            aiter(body),
            headers.get("content-type", ""),
            image_path=files.upload,
            max_bytes=limits.upload_bytes,
            max_parts=limits.form_fields,
            silence_s=self._settings.body_timeout_s,
        )
        fields = wire.parse_fields(upload.fields, max_prompt_chars=limits.prompt_chars, max_steps=limits.steps)
        if upload.image is None:
            raise ValidationError("Field required", field="image", kind="missing")
        return fields

    async def _send_result(self, scope: Scope, headers: Headers, sale: Sale, files: JobFiles, send: Send) -> None:
        """Answer with the picture, in the form that the caller understands."""
        result = sale.result
        facts = {
            wire.MODEL_HEADER: result.model_id,
            wire.SEED_HEADER: str(result.seed),
            wire.NSFW_HEADER: "true" if result.nsfw else "false",
            wire.SAFETY_HEADER: result.safety,
            wire.FEE_HEADER: str(sale.fee),
            wire.INPUT_PIXELS_HEADER: str(sale.input_pixels),
            wire.DURATION_HEADER: str(round(sale.duration_s * 1000)),
        }
        silence_s = self._settings.body_timeout_s
        if _is_ours(headers):
            await send_png(send, files.result, facts, silence_s=silence_s)
        elif headers.get("authorization") == wire.AI_WORKER_PROTOCOL:
            key = await self._results.put(files.result)
            server = scope.get("server") or (None, None)
            base = self._base_url(scope["scheme"], headers.get("host", ""), server[1])
            answer = image_response(f"{base}{routes.STREAM}/{key}", seed=result.seed, nsfw=result.nsfw)
            await Response(answer, media_type="application/json", headers=facts)(scope, _never, send)
        else:
            await send_data_url(send, files.result, facts, seed=result.seed, nsfw=result.nsfw, silence_s=silence_s)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a result to whoever knows its name."""
        found = self._results.find(scope["path_params"]["group"], scope["path_params"]["name"])
        if found is None:
            raise NotFoundError("there is no such result, or it has expired")
        headers = {
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Expose-Headers": "Content-Length",
            "Cache-Control": "private, max-age=300",
        }
        try:
            await send_png(send, found.path, headers, silence_s=self._settings.body_timeout_s)
        except FileNotFoundError:
            raise NotFoundError("this result has just expired") from None
        except UnreachableError as error:
            log.info("result_reader_left", extra={"code": error.code})

    async def _cancel(self, request: Request) -> Response:
        """Cancel a job, down to the worker's device."""
        self.jobs.cancel(request.path_params["job_id"])
        return Response(status_code=204)

    async def _events(self, request: Request) -> Response:
        """Stream a job's states and progress as server-sent events, until it ends."""
        states = self.jobs.watch(request.path_params["job_id"])
        first = await anext(states)  # so that an unknown job is a 404 and not an empty stream

        async def lines() -> AsyncIterator[str]:
            async with contextlib.aclosing(states):
                yield f"data: {json.dumps(first)}\n\n"
                async for state in states:
                    yield f"data: {json.dumps(state)}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _healthz(self, _: Request) -> Response:
        """Say that the process lives."""
        return JSONResponse({"status": "OK", "accepting": self.accepting})

    async def _exposition(self, _: Request) -> Response:
        """Give the counters in Prometheus' text format."""
        return Response(self._metrics.exposition(), media_type="text/plain; version=0.0.4")

    def _base_url(self, scheme: str, authority: str, port: int | None) -> str:
        """Return the configured address, else the one the caller used; gRPC callers may leave the port out of it."""
        if self._service_url is not None:
            return self._service_url
        has_port = re.search(r":\d+\Z", authority) is not None
        return f"{scheme}://{authority}" if has_port or port is None else f"{scheme}://{authority}:{port}"


class Body:
    """A request's body, read once; it knows whether all of it has come."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._complete = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the pieces as they arrive. Raises: CancelledByClientError if the sender leaves in between."""
        while not self._complete:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                self._complete = True
                raise CancelledByClientError("the client left before its request was complete")
            self._complete = not event.get("more_body", False)
            if event.get("body"):
                yield event["body"]

    async def discard(self) -> None:
        """Read what is still on its way, within limits: a sender that is cut off in mid-body never sees the answer."""
        left = _LINGER_BYTES
        with contextlib.suppress(TimeoutError, CancelledByClientError):
            async with asyncio.timeout(_LINGER_S):
                async for piece in self:
                    left -= len(piece)
                    if left < 0:
                        return


class _Endpoint:
    """A raw ASGI handler; the router wraps plain functions in its own request and response."""

    def __init__(self, handler: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handler(scope, receive, send)


async def _cancellable(work: Coroutine[Any, Any, Sale], *, name: str) -> Sale:
    """Return what *work* returns. Raises: CancelledByClientError if somebody cancelled it, and not us with it."""
    task, us = asyncio.create_task(work, name=name), asyncio.current_task()
    try:
        return await task
    except asyncio.CancelledError:
        if us is not None and us.cancelling():
            raise
        raise CancelledByClientError("the job was cancelled") from None


def _is_ours(headers: Mapping[str, str]) -> bool:
    """Whether the caller speaks our additions."""
    return headers.get(wire.PROTOCOL_HEADER) == wire.PROTOCOL_VERSION


def _failure(headers: Mapping[str, str], error: FourfoldError, *, by_worker: bool = False) -> Response:
    """Return the answer that tells this caller of *error*: ours by code, Livepeer's by its words."""
    if _is_ours(headers):
        return _json_failure(error)
    status, text = reply_to_gateway(error, by_worker=by_worker)
    more = {"X-Content-Type-Options": "nosniff"}
    if status == 503:
        more["Retry-After"] = _RETRY_AFTER_S
    return PlainTextResponse(text + "\n", status_code=status, headers=more)


def _json_failure(error: FourfoldError) -> Response:
    """Return *error* as JSON with its code."""
    more = {wire.ERROR_HEADER: error.code}
    if error.http_status in (429, 503):
        more["Retry-After"] = _RETRY_AFTER_S
    if isinstance(error, ValidationError):
        item = {"type": error.kind, "loc": ["body", error.field], "msg": error.message, "input": None}
        return JSONResponse({"detail": [item]}, status_code=error.http_status, headers=more)
    facts = {
        "message": error.message,
        "code": error.code,
        "request_id": request_id.get(),
        "retryable": error.retryable,
    }
    content = {"detail": {"msg": error.message}, "error": facts}
    return JSONResponse(content, status_code=error.http_status, headers=more)


async def _on_error(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, FourfoldError)
    return _json_failure(exc)


async def _on_http_error(_: Request, exc: Exception) -> Response:
    """Give the framework's own refusals (no such path, wrong method) our shape."""
    assert isinstance(exc, HTTPException)
    content = {"detail": {"msg": str(exc.detail)}}
    return JSONResponse(content, status_code=exc.status_code, headers=exc.headers)


def _with_request_id(send: Send) -> Send:
    """Return *send*, adding the request's id to the head of the answer."""

    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            header = (wire.REQUEST_ID_HEADER.lower().encode(), request_id.get().encode())
            message = {**message, "headers": [*message.get("headers", []), header]}
        await send(message)

    return add


async def _never() -> Message:
    """Stand in for *receive* where a reply must not read from it."""
    raise AssertionError("a plain reply does not read")
