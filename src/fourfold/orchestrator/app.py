"""The orchestrator's one port: gRPC and HTTPS in and out, nothing else."""

import contextlib
import json
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from fourfold.config import OrchestratorSettings
from fourfold.errors import FourfoldError, NotFoundError, UnreachableError
from fourfold.orchestrator.admission import Admission, Codec, Tokens
from fourfold.orchestrator.job_requests import JobRequests, ResultKeeper
from fourfold.orchestrator.models import ModelConfig
from fourfold.orchestrator.offering import Offering
from fourfold.orchestrator.pricing import PriceDefaults, price_list
from fourfold.orchestrator.replies import json_failure
from fourfold.orchestrator.request_body import read_headers
from fourfold.orchestrator.sale import Counter
from fourfold.orchestrator.spool import Spool
from fourfold.orchestrator.streaming import send_png
from fourfold.orchestrator.workers import Slot, Workers
from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol import routes, wire
from fourfold.protocol.grpc_asgi import Call, GrpcApp, GrpcError, Status, Unary, is_grpc
from fourfold.telemetry import EXPOSITION_TYPE, Metrics, request_id

log = logging.getLogger(__name__)

_MAX_GRPC_BYTES: Final = 256 * 1024


class StoredResult(Protocol):
    """A result that is still there."""

    @property
    def path(self) -> Path:
        """Where it lies."""


class ResultStore(ResultKeeper, Protocol):
    """Keeps results and finds them again."""

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
    address = ServiceAddress(service_url)
    metrics.watch_peers(
        up=lambda: sum(worker.is_ready for worker in workers.workers),
        down=lambda: sum(not worker.is_ready for worker in workers.workers),
    )
    metrics.watch_models(prices.models, is_available=lambda model_id: not workers.is_withdrawn(model_id))
    requests = JobRequests(
        Counter(admission, workers, metrics),
        results,
        Spool(spool),
        settings,
        base_url=address.of_request,
        metrics=metrics,
    )
    metrics.watch_jobs(in_flight=lambda: len(requests.jobs), queued=lambda: requests.jobs.queued + workers.waiting)
    return OrchestratorApp(
        offering,
        requests,
        results,
        address,
        models=prices.models,
        settings=settings,
        workers=workers,
        metrics=metrics,
    )


class ServiceAddress:
    """Where gateways reach this orchestrator: as configured, else as each of them did."""

    def __init__(self, url: str | None) -> None:
        self._url = url.rstrip("/") if url else None

    def of_request(self, scope: Mapping[str, Any], authority: str) -> str:
        """Return the base URL for the caller of an HTTP request: by the name that it used."""
        return self._url or f"{scope['scheme']}://{authority}"

    def of_call(self, call: Call) -> str:
        """Return the base URL for the caller of a gRPC method: by the address at which the call arrived.

        Not by its authority: a client that pins our certificate sends the first name in it, whatever it connected to.
        """
        if self._url is not None or call.server is None:
            return self._url or f"https://{call.authority}"
        host, port = call.server
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


class OrchestratorApp:
    """An ASGI application that can stop taking jobs."""

    def __init__(
        self,
        offering: Offering,
        requests: JobRequests,
        results: ResultStore,
        address: ServiceAddress,
        *,
        models: Sequence[str],
        settings: OrchestratorSettings,
        workers: Workers,
        metrics: Metrics,
    ) -> None:
        self.requests = requests
        self._models = tuple(models)
        self._offering = offering
        self._results = results
        self._address = address
        self._silence_s = settings.body_timeout_s
        self._workers = workers
        self._metrics = metrics
        self._grpc = GrpcApp(
            {
                routes.GRPC_GET_ORCHESTRATOR: Unary(pb.OrchestratorRequest, self._get_orchestrator),
                routes.GRPC_PING: Unary(pb.PingPong, self._ping),
            },
            max_request_bytes=_MAX_GRPC_BYTES,
        )
        self._http = Starlette(
            routes=[
                Route(routes.UPSCALE, requests, methods=["POST"]),
                Route(routes.STREAM + "/{group}/{name}", _Endpoint(self._stream), methods=["GET", "HEAD"]),
                Route(routes.JOBS + "/{job_id}", self._cancel, methods=["DELETE"]),
                Route(routes.JOBS + "/{job_id}/events", self._events, methods=["GET"]),
                Route(routes.HEALTHZ, self._healthz, methods=["GET"]),
                Route(routes.METRICS, self._exposition, methods=["GET"]),
                Route(routes.WORKER_METRICS, self._worker_exposition, methods=["GET"]),
            ],
            exception_handlers={FourfoldError: self._on_error, HTTPException: _on_http_error},
        )

        self._http.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand gRPC to gRPC and everything else to HTTP."""
        if scope["type"] == "http":
            given = read_headers(scope).get(wire.REQUEST_ID_HEADER.lower(), "")
            request_id.set(given if wire.is_request_id(given) else uuid.uuid4().hex)
            send = _with_request_id(send)
            if is_grpc(scope):
                await self._grpc(scope, receive, send)
                return
        await self._http(scope, receive, send)

    def drain(self) -> None:
        """Take no new jobs; those in hand go on."""
        self.requests.accepting = False

    async def _get_orchestrator(self, request: pb.OrchestratorRequest, call: Call) -> pb.OrchestratorInfo:
        """Answer a gateway that looks for orchestrators. Off-chain address and signature may be empty."""
        if not self.requests.accepting:
            raise GrpcError(Status.UNAVAILABLE, "shutting down; ask another orchestrator")
        return self._offering.answer(request, url=self._address.of_call(call))

    async def _ping(self, request: pb.PingPong, _: Call) -> pb.PingPong:
        """Echo; the value is signed once there are keys."""
        return pb.PingPong(value=request.value)

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
            await send_png(send, found.path, headers, silence_s=self._silence_s)
        except FileNotFoundError:
            raise NotFoundError("this result has just expired") from None
        except UnreachableError as error:
            log.info("result_reader_left", extra={"code": error.code})

    async def _cancel(self, request: Request) -> Response:
        """Cancel a job, down to the worker's device."""
        self.requests.jobs.cancel(request.path_params["job_id"])
        return Response(status_code=204)

    async def _events(self, request: Request) -> Response:
        """Stream a job's states and progress as server-sent events, until it ends."""
        states = self.requests.jobs.watch(request.path_params["job_id"])
        first = await anext(states)  # so that an unknown job is a 404 and not an empty stream

        async def lines() -> AsyncIterator[str]:
            async with contextlib.aclosing(states):
                yield f"data: {json.dumps(first)}\n\n"
                async for state in states:
                    yield f"data: {json.dumps(state)}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _healthz(self, _: Request) -> Response:
        """Say that the process lives, and what it sells and cannot do now; why is for the log, which is not public."""
        withdrawn = [model_id for model_id in self._models if self._workers.is_withdrawn(model_id)]
        return JSONResponse({"status": "OK", "accepting": self.requests.accepting, "withdrawn": withdrawn})

    async def _exposition(self, _: Request) -> Response:
        """Give the counters in Prometheus' text format."""
        return Response(self._metrics.exposition(), media_type=EXPOSITION_TYPE)

    async def _worker_exposition(self, _: Request) -> Response:
        """Give the counters of our own worker, which nobody else can reach."""
        return Response(await self._workers.own_metrics(), media_type=EXPOSITION_TYPE)

    async def _on_error(self, _: Request, exc: Exception) -> Response:
        assert isinstance(exc, FourfoldError)
        self._metrics.count_error(exc)
        reply = json_failure(exc, request_id=request_id.get())
        return Response(reply.body, reply.status, dict(reply.headers), media_type=reply.content_type)


class _Endpoint:
    """A raw ASGI handler; the router wraps plain functions in its own request and response."""

    def __init__(self, handler: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handler(scope, receive, send)


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
