"""``POST /upscale``: spool the upload, open the job, wait for it, answer; let it go when the client goes."""

import asyncio
import contextlib
import json
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from fourfold.config import GatewaySettings
from fourfold.errors import (
    CancelledByClientError,
    DeadlineExceededError,
    InvalidImageError,
    StorageFullError,
    ValidationError,
)
from fourfold.gateway.app_stream import file_response
from fourfold.gateway.board import JobBoard
from fourfold.gateway.dispatch import Delivered, Dispatcher
from fourfold.gateway.output_form import OUTPUT_NAMES, Wanted, parse_wanted
from fourfold.gateway.ports import Clock
from fourfold.gateway.public_url import result_url
from fourfold.processes.serving import unless_gone
from fourfold.protocol import wire
from fourfold.protocol.multipart import read_form
from fourfold.results.base import ResultStore
from fourfold.telemetry import request_id


def upscale_endpoint(
    settings: GatewaySettings,
    *,
    board: JobBoard,
    dispatcher: Dispatcher,
    store: ResultStore,
    spool: Path,
    clock: Clock,
) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler. *spool*, the folder in which each open job has a folder of its own."""

    async def upscale(request: Request) -> Response:
        started_s = clock.monotonic()
        with board.open(secrets.token_hex(16)) as open_job:
            async with _own_folder(spool, open_job.job_id) as folder:
                source, fields, wanted = await _read_upload(request, settings, folder)
                work = dispatcher.upscale(
                    open_job, source, fields, folder=folder, request_id=request_id.get(), wanted=wanted
                )
                delivered = await unless_gone(request.receive, work, name=f"job-{open_job.job_id}")
        url, headers = _facts(request, settings, delivered, seconds=clock.monotonic() - started_s)
        if wanted.is_body:
            headers |= {"Content-Location": url, wire.NSFW_HEADER: "true" if delivered.nsfw else "false"}
            group, _, name = delivered.key.partition("/")
            return file_response(store, group, name, headers)
        image = {"nsfw": delivered.nsfw, "seed": delivered.seed, "url": url}
        return JSONResponse({"images": [image], "fidelity": delivered.fidelity.to_json()}, headers=headers)

    return upscale


@contextlib.asynccontextmanager
async def _own_folder(spool: Path, job_id: str) -> AsyncIterator[Path]:
    """Make a folder for one job's files; it goes, with all that is in it, in every outcome."""
    folder = spool / job_id
    try:
        folder.mkdir(mode=0o700, parents=True)  # parents: somebody may have tidied up the data folder
    except OSError as exc:
        raise StorageFullError(f"the upload cannot be kept: {exc.strerror}; try again later") from exc
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _read_upload(
    request: Request, settings: GatewaySettings, folder: Path
) -> tuple[Path, wire.UpscaleFields, Wanted]:
    """Return the spooled image, the checked fields, and how the result is wanted."""
    limits = settings.limits
    try:
        async with asyncio.timeout(settings.job_deadline_s):
            upload = await read_form(
                request.stream(),
                request.headers,
                names=wire.FIELD_NAMES | OUTPUT_NAMES,
                image_path=folder / "upload",
                max_bytes=limits.upload_bytes,
                max_parts=limits.form_fields,
                silence_s=settings.body_timeout_s,
            )
    except ClientDisconnect:
        raise CancelledByClientError("the client left during the upload") from None
    except TimeoutError:
        raise DeadlineExceededError(f"the upload took longer than {settings.job_deadline_s:g} s") from None
    if upload.image is None:
        raise ValidationError("Field required", field="image", kind="missing")
    fields = wire.parse_fields(upload.fields, max_prompt_chars=limits.prompt_chars, max_steps=limits.steps)
    wanted = parse_wanted(upload.fields, request.headers.get("Accept", ""))
    if upload.image_bytes == 0:
        raise InvalidImageError("the image has no bytes; was the file empty?")
    return upload.image, fields, wanted


def _facts(
    request: Request, settings: GatewaySettings, delivered: Delivered, *, seconds: float
) -> tuple[str, dict[str, str]]:
    """Return the result's address and our headers of a success."""
    url = result_url(
        delivered.key,
        public_url=settings.public_url,
        scheme=request.scope["scheme"],
        host=request.headers.get("Host", ""),
        listening=request.scope.get("server") or (settings.host, settings.port),
    )
    headers = {
        wire.MODEL_HEADER: delivered.model_id,
        wire.SEED_HEADER: str(delivered.seed),
        wire.SAFETY_HEADER: delivered.safety,
        wire.INPUT_PIXELS_HEADER: str(delivered.input_pixels),
        wire.FEE_HEADER: str(delivered.fee),
        wire.DURATION_HEADER: str(round(seconds * 1000)),
        wire.FIDELITY_HEADER: json.dumps(delivered.fidelity.to_json(), separators=(",", ":")),
    }
    if delivered.fidelity.mode is not None:
        headers[wire.MODE_HEADER] = delivered.fidelity.mode
    if delivered.fidelity.warnings:
        headers[wire.WARNINGS_HEADER] = json.dumps(delivered.fidelity.warnings)
    return url, headers
