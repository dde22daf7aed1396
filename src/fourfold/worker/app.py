"""The worker's HTTP: Livepeer's runner API to Livepeer's peers, raw bytes and honest codes to ours.

To a peer that does not send ``Fourfold-Protocol`` only JSON with 200, 400, 401, 422 or 500 is ever answered: a Go
orchestrator panics on anything else (``livepeer_upscale.md`` 4.5).
"""

import asyncio
import base64
import json
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from fourfold import __version__
from fourfold.config import WorkerSettings
from fourfold.engine.base import DiffusionOptions, Mode
from fourfold.errors import (
    ClientError,
    FourfoldError,
    InvalidImageError,
    InvalidParameterError,
    UnauthorizedError,
    ValidationError,
)
from fourfold.processes.lingering import Lingering
from fourfold.processes.serving import unless_gone
from fourfold.protocol import routes, wire
from fourfold.protocol.multipart import read_form
from fourfold.telemetry import EXPOSITION_TYPE, request_id
from fourfold.worker import hardware
from fourfold.worker.feeds import Feeds
from fourfold.worker.orders import Upscaled, WorkOrder
from fourfold.worker.service import Worker

_CHUNK: Final = 48 * 1024  # a multiple of 3, so that its base64 joins without padding
_RETRY_AFTER_S: Final = "1"


def create_app(worker: Worker, settings: WorkerSettings) -> FastAPI:
    """Return the worker's ASGI application. It owns nothing: who made *worker* ends it."""
    app = FastAPI(title="Fourfold worker", version=__version__, docs_url="/docs", redoc_url=None)
    routes_of = _Routes(worker, settings)
    for path in (routes.UPSCALE, routes.UPSCALE + "/"):
        app.add_api_route(path, routes_of.upscale, methods=["POST"], include_in_schema=path == routes.UPSCALE)
    for path in (routes.HEALTH, routes.HEALTH + "/"):
        app.add_api_route(path, routes_of.health, include_in_schema=path == routes.HEALTH)
    app.add_api_route(routes.HARDWARE_INFO, routes_of.hardware_info)
    app.add_api_route(routes.HARDWARE_STATS, routes_of.hardware_stats)
    app.add_api_route(routes.VERSION, routes_of.version)
    app.add_api_route(routes.MODELS, routes_of.models)
    app.add_api_route(routes.METRICS, routes_of.metrics)
    app.add_api_route(routes.JOBS + "/{job_id}", routes_of.cancel, methods=["DELETE"])
    app.add_api_route(routes.JOBS + "/{job_id}/events", routes_of.events)

    async def on_error(request: Request, exc: Exception) -> Response:
        """Count each failure that a caller is told of, once, here."""
        assert isinstance(exc, FourfoldError)
        worker.metrics.count_error(exc)
        return _error_response(request, exc)

    async def on_crash(_: Request, exc: Exception) -> Response:
        """Answer for a bug of ours; the framework logs the traceback."""
        worker.metrics.count_refusal(FourfoldError.code, FourfoldError.blame)
        content = {"detail": {"msg": "the worker failed; its log has the reason"}}
        return JSONResponse(content, status_code=500, headers={wire.ERROR_HEADER: FourfoldError.code})

    app.add_middleware(Lingering)
    app.add_exception_handler(FourfoldError, on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, on_crash)
    return app


class _PictureResponse(FileResponse):
    """A picture in pieces as large as the orchestrator's: each costs its way through all layers of the server."""

    chunk_size = 256 * 1024


class _Held(Response):
    """Sends *answer*; then its order's folder and place are given back, whether it was sent, broke off or never began.

    Around the whole answer: its body is not even asked for where the client leaves just before.
    """

    def __init__(self, answer: Response, release: Callable[[], None]) -> None:
        super().__init__()
        self._answer = answer
        self._release = release

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._answer(scope, receive, send)
        finally:
            self._release()


@dataclass(frozen=True, slots=True)
class _Routes:
    """The handlers, with what they need."""

    worker: Worker
    settings: WorkerSettings
    feeds: Feeds = field(default_factory=Feeds)

    async def upscale(self, request: Request) -> Response:
        """Upscale one picture (multipart: image, prompt, model_id, safety_check, seed, num_inference_steps)."""
        self._authorize(request)
        job_id = wire.check_job_id(request.headers.get(wire.JOB_HEADER) or uuid.uuid4().hex)
        asked = request.headers.get(wire.REQUEST_ID_HEADER, "")
        request_id.set(asked if wire.is_request_id(asked) else job_id)
        with ExitStack() as held:
            folder = held.enter_context(self.worker.admit(f"{job_id}-{secrets.token_hex(4)}"))
            order = await self._read_order(request, job_id, folder)
            done = await unless_gone(request.receive, self._run(order, folder), name=f"job-{job_id}")
            return self._reply(request, order, done, held.pop_all().close)

    async def health(self, request: Request) -> Response:
        """Say how the worker is: LOADING, OK, IDLE or ERROR; to ours, too, which models it has. Answers while jobs run.

        An orchestrator of ours offers those that can be had.
        """
        ours = {wire.PROTOCOL_HEADER: wire.PROTOCOL_VERSION}  # so that an orchestrator of ours knows us
        more = {"models": self._models()} if _is_ours(request) else {}
        return JSONResponse({"status": self.worker.health, **more}, headers=ours)

    async def hardware_info(self) -> Response:
        """Describe the compute devices."""
        return JSONResponse(self._identity() | {"gpu_info": hardware.compute_info()})

    async def hardware_stats(self) -> Response:
        """Say how busy the compute devices are."""
        return JSONResponse(self._identity() | {"gpu_stats": hardware.utilisation()})

    async def version(self) -> Response:
        """Name the pipeline, the model and this software's version."""
        return JSONResponse(self._identity() | {"version": __version__})

    async def models(self) -> Response:
        """List the models that this worker runs, which are in memory now, and why one cannot be had."""
        return JSONResponse({"models": self._models()})

    async def metrics(self) -> Response:
        """Give the counters in Prometheus' text format."""
        return Response(self.worker.metrics.exposition(), media_type=EXPOSITION_TYPE)

    async def cancel(self, request: Request, job_id: str) -> Response:
        """Cancel a job that runs or waits here."""
        self._authorize(request)
        self.feeds.cancel(job_id)
        return Response(status_code=204)

    async def events(self, request: Request, job_id: str) -> Response:
        """Stream the job's states as server-sent events, until it ends."""
        self._authorize(request)
        states = self.feeds.watch(job_id)
        first = await anext(states)  # so that an unknown job is a 404, not an empty stream

        async def lines() -> AsyncIterator[str]:
            yield f"data: {json.dumps(first)}\n\n"
            async for state in states:
                yield f"data: {json.dumps(state)}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    def _models(self) -> list[dict[str, Any]]:
        loaded, failures = set(self.worker.device.loaded), self.worker.device.failures
        return [
            {"model_id": model_id, "loaded": model_id in loaded}
            | ({"failure": failures[model_id].message} if model_id in failures else {})
            for model_id in self.worker.cards
        ]

    def _identity(self) -> dict[str, Any]:
        return {"pipeline": self.settings.pipeline, "model_id": self.settings.model_id or next(iter(self.worker.cards))}

    def _authorize(self, request: Request) -> None:
        """Raises: UnauthorizedError if a token is set and the caller's differs."""
        if self.settings.auth_token is None:
            return
        expected = f"Bearer {self.settings.auth_token.get_secret_value()}".encode()
        if not secrets.compare_digest(request.headers.get("Authorization", "").encode(), expected):
            raise UnauthorizedError("Invalid bearer token.")

    async def _read_order(self, request: Request, job_id: str, folder: Path) -> WorkOrder:
        """Read the form. Raises: ValidationError, UploadTooLargeError, InvalidImageError, InvalidParameterError."""
        limits = self.settings.limits
        upload = await read_form(
            request.stream(),
            request.headers,
            names=wire.FIELD_NAMES,
            image_path=folder / "upload",
            max_bytes=limits.upload_bytes,
            max_parts=limits.form_fields,
            silence_s=self.settings.body_timeout_s,
        )
        fields = wire.parse_fields(upload.fields, max_prompt_chars=limits.prompt_chars, max_steps=limits.steps)
        if upload.image is None:
            raise ValidationError("Field required", field="image", kind="missing")
        if not upload.image_bytes:
            raise InvalidImageError("the image is empty; expected the bytes of a picture")
        default = self._identity()["model_id"]
        if fields.model_id and fields.model_id not in self.worker.cards:
            raise InvalidParameterError(f"pipeline configured with {default} but called with {fields.model_id}.")
        return WorkOrder(
            job_id=job_id,
            source=upload.image,
            model_id=fields.model_id or default,
            prompt=fields.prompt,
            seed=secrets.randbits(32) if fields.seed is None else fields.seed,
            num_inference_steps=fields.num_inference_steps,
            safety_check=fields.safety_check,
            tileable=fields.tileable,
            max_bits=16 if _is_ours(request) and request.headers.get(wire.BITS_HEADER, "16") == "16" else 8,
            measure=False,  # whoever asked has the picture that it is to be compared with
            options=_options(fields),
        )

    async def _run(self, order: WorkOrder, folder: Path) -> Upscaled:
        """Do the order, telling its feed how far it is."""
        task = asyncio.current_task()
        assert task is not None
        feed = self.feeds.open(order.job_id, task)
        outcome = "failed"
        try:
            done = await self.worker.upscale(
                order, folder, lambda steps, total: feed.tell("running", done=steps, total=total)
            )
            outcome = "succeeded"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.feeds.close(order.job_id, outcome)
        return done

    def _reply(self, request: Request, order: WorkOrder, done: Upscaled, release: Callable[[], None]) -> Response:
        """Answer with the picture: its bytes to ours, a data URL in JSON to a Livepeer peer."""
        score = done.nsfw_score
        is_flagged = score is not None and score >= self.settings.nsfw_threshold
        safety = wire.SAFETY_NOT_CHECKED if score is None else wire.SAFETY_FLAGGED if is_flagged else wire.SAFETY_CLEAN
        headers = {
            wire.SEED_HEADER: str(done.seed),
            wire.NSFW_HEADER: "true" if is_flagged else "false",
            wire.SAFETY_HEADER: safety,
            wire.MODEL_HEADER: done.model_id,
        }
        warnings = tuple(done.notes.get("warnings", ()))
        padded_px = done.fidelity.padded_px if order.tileable else None
        headers |= wire.RunFacts(done.fidelity.tiles, done.notes.get("mode"), padded_px, warnings).to_headers()
        if _is_ours(request):
            return _Held(_PictureResponse(done.path, media_type="image/png", headers=headers), release)
        head = b'{"images":[{"url":"data:image/png;base64,'
        tail = f'","seed":{done.seed},"nsfw":{headers[wire.NSFW_HEADER]}}}]}}'.encode()
        size = len(head) + -(-done.path.stat().st_size // 3) * 4 + len(tail)
        answer = StreamingResponse(
            _off_the_loop(_base64_json(done.path, head, tail)),
            media_type="application/json",
            headers=headers | {"Content-Length": str(size)},
        )
        return _Held(answer, release)


def _options(fields: wire.UpscaleFields) -> DiffusionOptions:
    """Return what the caller said of the diffusion's options; the rest is as by default."""
    said: dict[str, Any] = {"negative_prompt": fields.negative_prompt, "guidance_scale": fields.guidance_scale}
    said |= {"noise_level": fields.noise_level, "mode": Mode(fields.mode) if fields.mode else None}
    return DiffusionOptions(**{name: value for name, value in said.items() if value is not None})


def _base64_json(path: Path, head: bytes, tail: bytes) -> Iterator[bytes]:
    """Yield the JSON piece by piece: a large picture's base64 never stands in memory whole."""
    yield head
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield base64.b64encode(chunk)
    yield tail


async def _off_the_loop(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield *chunks*, each read in a thread."""
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk


def _is_ours(request: Request) -> bool:
    """Whether the caller speaks our additions."""
    return request.headers.get(wire.PROTOCOL_HEADER) == wire.PROTOCOL_VERSION


def _error_response(request: Request, exc: FourfoldError) -> Response:
    """Turn any FourfoldError into the body that this caller understands."""
    status = exc.http_status
    headers = {wire.ERROR_HEADER: exc.code}
    if not _is_ours(request) and request.url.path.startswith(routes.UPSCALE):
        status = status if status in (400, 401, 422) else 400 if isinstance(exc, ClientError) else 500
    if isinstance(exc, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        headers["Retry-After"] = _RETRY_AFTER_S
    detail = exc.detail if isinstance(exc, ValidationError) else {"msg": exc.message}
    return JSONResponse({"detail": detail}, status_code=status, headers=headers)


async def _on_http_error(request: Request, exc: Exception) -> Response:
    """Give the framework's own refusals (no such path, wrong method) the same shape."""
    assert isinstance(exc, HTTPException)
    return JSONResponse({"detail": {"msg": str(exc.detail)}}, status_code=exc.status_code, headers=exc.headers)
