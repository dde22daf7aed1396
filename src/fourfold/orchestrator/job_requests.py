"""``POST /upscale``, plain ASGI: one job in, a picture or the reason why not out, and nothing left behind.

Two dialects. With ``Fourfold-Protocol: 1`` the answer is the picture itself and failures carry a code; without it
everything is as Livepeer's gateways expect: JSON with a URL or a data URL, and failures as plain text.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from fourfold.config import OrchestratorSettings
from fourfold.errors import (
    CancelledByClientError,
    FourfoldError,
    NoCapacityError,
    ShuttingDownError,
    ValidationError,
)
from fourfold.orchestrator.admission import Claims
from fourfold.orchestrator.jobs import Job, Jobs
from fourfold.orchestrator.replies import Reply, failure, image_response
from fourfold.orchestrator.request_body import RequestBody, read_headers
from fourfold.orchestrator.sale import Counter, Sale
from fourfold.orchestrator.spool import JobFiles, Spool
from fourfold.orchestrator.streaming import send_data_url, send_png, send_reply
from fourfold.processes.serving import unless_gone
from fourfold.protocol import routes, wire
from fourfold.protocol.multipart import read_form
from fourfold.telemetry import Metrics, request_id

log = logging.getLogger(__name__)

_MAX_OPEN: Final = 64  #: requests whose body or picture lies in the spool at one time

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class ResultKeeper(Protocol):
    """Where results wait for whoever knows their name; ``fourfold.results.FilesystemStore`` is one."""

    async def put(self, source: Path, /) -> str:
        """Move *source* in; return its key, ``<32 hex>/<32 hex>.png``. Raises: StorageFullError."""


class JobRequests:
    """The handler of job requests; *jobs* are those in hand."""

    def __init__(
        self,
        counter: Counter,
        results: ResultKeeper,
        spool: Spool,
        settings: OrchestratorSettings,
        *,
        base_url: Callable[[Mapping[str, Any], str], str],
        metrics: Metrics,
    ) -> None:
        self.accepting = True
        self.jobs = Jobs()
        self._counter = counter
        self._results = results
        self._spool = spool
        self._settings = settings
        self._base_url = base_url
        self._metrics = metrics
        self._open = 0

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Take one job and answer it, whatever happens."""
        headers, body, watched = read_headers(scope), RequestBody(receive), _Watched(send)
        job: Job | None = None

        async def work(job_id: str, files: JobFiles) -> Sale:
            nonlocal job
            task = asyncio.current_task()
            assert task is not None
            with self.jobs.open(job_id, task) as job:
                fields = await self._read_form(headers, body, files)
                claims = Claims(
                    segment=headers.get(wire.SEGMENT_HEADER.lower(), ""),
                    payment=headers.get(wire.PAYMENT_HEADER.lower(), ""),
                    model_id=fields.model_id,
                )
                bits = 16 if _is_ours(headers) else 8  # Livepeer's peers know 8 bits alone
                sale = self._counter.sell(claims, fields, job, files, request_id=request_id.get(), max_bits=bits)
                return await unless_gone(receive, sale, name=f"work-{job_id}")

        try:
            job_id = wire.check_job_id(headers.get(wire.JOB_HEADER.lower()) or uuid.uuid4().hex)
            with self._place(), self._spool.files() as files:
                sale = await _cancellable(work(job_id, files), name=f"job-{job_id}")
                await self._send_result(scope, headers, sale, files, watched)
            return
        except FourfoldError as failed:
            error = failed
        except Exception:  # the edge of a request: its sender still gets an answer
            log.exception("request_failed", extra={"path": routes.UPSCALE})
            error = FourfoldError("the orchestrator failed; its log has the reason")
        self._note(error, job)
        if not watched.has_started:
            await body.discard()
            await send_reply(send, self._failure(headers, error, job))

    def _failure(self, headers: Mapping[str, str], error: FourfoldError, job: Job | None) -> Reply:
        has_run = job is not None and job.has_run
        return failure(error, ours=_is_ours(headers), by_worker=has_run, request_id=request_id.get())

    def _note(self, error: FourfoldError, job: Job | None) -> None:
        """Count and log a job that ended without a picture."""
        has_run = job is not None and job.has_run
        is_cancelled = isinstance(error, CancelledByClientError)
        event = "job_cancelled" if is_cancelled else "job_failed" if has_run else "job_refused"
        blame = error.blame.name.lower()
        self._metrics.count_error(error)
        log.info(event, extra={"job_id": job.job_id if job else "", "code": error.code, "blame": blame})

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

    async def _read_form(self, headers: Mapping[str, str], body: RequestBody, files: JobFiles) -> wire.UpscaleFields:
        """Read the request's form, its image to a file. Raises: ValidationError, UploadTooLargeError and the like."""
        limits = self._settings.limits
        upload = await read_form(
            aiter(body),
            headers,
            names=wire.FIELD_NAMES,
            image_path=files.upload,
            max_bytes=limits.upload_bytes,
            max_parts=limits.form_fields,
            silence_s=self._settings.body_timeout_s,
        )
        fields = wire.parse_fields(upload.fields, max_prompt_chars=limits.prompt_chars, max_steps=limits.steps)
        if upload.image is None:
            raise ValidationError("Field required", field="image", kind="missing")
        return fields

    async def _send_result(
        self, scope: Mapping[str, Any], headers: Mapping[str, str], sale: Sale, files: JobFiles, send: Send
    ) -> None:
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
        facts |= result.run.to_headers()
        silence_s = self._settings.body_timeout_s
        if _is_ours(headers):
            await send_png(send, files.result, facts, silence_s=silence_s)
        elif headers.get("authorization") == wire.AI_WORKER_PROTOCOL:
            key = await self._results.put(files.result)
            base = self._base_url(scope, headers.get("host", ""))
            answer = image_response(f"{base}{routes.STREAM}/{key}", seed=result.seed, nsfw=result.nsfw)
            await send_reply(send, Reply(200, "application/json", answer, facts))
        else:
            await send_data_url(send, files.result, facts, seed=result.seed, nsfw=result.nsfw, silence_s=silence_s)


def _is_ours(headers: Mapping[str, str]) -> bool:
    """Whether the caller speaks our additions."""
    return headers.get(wire.PROTOCOL_HEADER.lower()) == wire.PROTOCOL_VERSION


async def _cancellable(work: Coroutine[Any, Any, Sale], *, name: str) -> Sale:
    """Return what *work* returns. Raises: CancelledByClientError if somebody cancelled it, and not us with it."""
    task, us = asyncio.create_task(work, name=name), asyncio.current_task()
    try:
        return await task
    except asyncio.CancelledError:
        if us is not None and us.cancelling():
            raise
        raise CancelledByClientError("the job was cancelled") from None


class _Watched:
    """A *send* that remembers whether the answer has begun: then it is too late for another one."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_started = False

    async def __call__(self, message: Any) -> None:
        self.has_started = True
        await self._send(message)
