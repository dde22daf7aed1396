"""The calls to one worker over seam 3, the AI runner's HTTP: health, hardware, a job, its progress, its cancellation.

Our own workers are recognised by a header on their answers; to a Livepeer runner everything that is ours is invisible.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import httpx2

from fourfold.errors import BadResultError, StorageFullError, UnreachableError, WorkerFailedError
from fourfold.orchestrator.answers import WorkResult, check_png, read_failure, read_headers, read_runner_json
from fourfold.protocol import routes, wire

_CONNECT_S: Final = 5.0
_WRITE_S: Final = 60.0  #: longest silence of a worker that is taking an image
_SHORT_S: Final = 5.0  #: any answer that needs no work: go-livepeer's health timeout
_FORGET_S: Final = 2.0
_PROGRESS_RETRY_S: Final = 0.5
_SHORT_BODY_BYTES: Final = 256 * 1024
_BUFFER_BYTES: Final = 2**20
_REASON_CHARS: Final = 500
#: An idle connection is used again within this time, less than a worker's own patience (a Livepeer runner's is 5 s).
_KEPT_S: Final = 2.0
_KEPT_CONNECTIONS: Final = 8  #: idle ones, of all workers together

HEALTHY: Final = frozenset({"OK", "IDLE"})
LOADING: Final = "LOADING"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a worker is now, and how to talk to it."""

    url: str
    token: str | None = field(repr=False)
    is_ours: bool | None  #: None = not known yet


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """What a worker is to do. One for each attempt: *job_id* is the attempt's, unguessable and never used again."""

    job_id: str
    request_id: str
    image: Path
    fields: wire.UpscaleFields
    result: Path  #: where the picture is to lie afterwards
    watched: asyncio.Event  #: set once somebody wants progress
    on_progress: Callable[[int, int], None]  #: done, total
    max_bits: int = 16  #: of one sample of the result


@dataclass(frozen=True, slots=True)
class Health:
    """A worker's answer to "how are you"."""

    status: str  #: OK | IDLE | LOADING | ERROR
    is_ours: bool
    model_to_failure: Mapping[str, str | None] | None = None  #: why each cannot be had, None if it can; None: not said


@contextlib.asynccontextmanager
async def open_client() -> AsyncIterator[httpx2.AsyncClient]:
    """Open the HTTP client for all workers."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    transport = httpx2.AsyncHTTPTransport(
        trust_env=False,
        limits=httpx2.Limits(max_keepalive_connections=_KEPT_CONNECTIONS, keepalive_expiry=_KEPT_S),
        socket_options=options,
    )
    timeout = httpx2.Timeout(connect=_CONNECT_S, write=_WRITE_S, read=None, pool=None)
    async with httpx2.AsyncClient(transport=transport, timeout=timeout, trust_env=False) as client:
        yield client


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn the HTTP library's exceptions inside the block into UnreachableError."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as exc:
        # The URL may be an operator's secret; the exception's text does not hold it.
        raise UnreachableError(f"the worker dropped the exchange ({type(exc).__name__}): {exc}") from exc


async def upscale(
    client: httpx2.AsyncClient, address: Address, order: WorkOrder, *, max_result_bytes: int
) -> WorkResult:
    """Have *order* done; the picture lies at ``order.result`` afterwards, whole.

    Raises: what the worker says went wrong; UnreachableError, BadResultError, StorageFullError.
    """
    relay = asyncio.create_task(_relay(client, address, order), name=f"progress-{order.job_id}")
    try:
        result = await _upscale(client, address, order, max_result_bytes)
    finally:
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)
    await check_png(result.path)
    return result


async def health(client: httpx2.AsyncClient, address: Address) -> Health:
    """Ask how the worker is. Raises: UnreachableError, WorkerFailedError if its answer makes no sense."""
    headers, answer = await _get_json(client, address, routes.HEALTH)
    status = answer.get("status")
    if not isinstance(status, str):
        raise WorkerFailedError('expected {"status": ...} from the worker\'s /health')
    return Health(status, wire.PROTOCOL_HEADER in headers, _model_to_failure(answer.get("models")))


def _model_to_failure(listed: object) -> dict[str, str | None] | None:
    """Return what a worker of ours says of its models; None for any other."""
    if not isinstance(listed, list):
        return None
    rows = [row for row in listed if isinstance(row, dict) and isinstance(row.get("model_id"), str)]
    return {row["model_id"]: str(row["failure"])[:_REASON_CHARS] if "failure" in row else None for row in rows}


async def hardware(client: httpx2.AsyncClient, address: Address) -> dict[str, Any]:
    """Return the ``gpu_info`` of the worker, {} where it has none. Raises: as :func:`health`."""
    _, answer = await _get_json(client, address, routes.HARDWARE_INFO)
    info = answer.get("gpu_info")
    return info if isinstance(info, dict) else {}


async def version(client: httpx2.AsyncClient, address: Address) -> str:
    """Return the worker's version, "0.0.0" (as go-livepeer does) where it has none. Raises: UnreachableError."""
    try:
        _, answer = await _get_json(client, address, routes.VERSION)
    except WorkerFailedError:
        return "0.0.0"
    found = answer.get("version")
    return found if isinstance(found, str) and found else "0.0.0"


async def metrics(client: httpx2.AsyncClient, address: Address) -> bytes:
    """Return the worker's counters in Prometheus' text format. Raises: as :func:`health`."""
    response, body = await _get(client, address, routes.METRICS)
    if response.status_code != 200:
        raise WorkerFailedError(f"expected counters from the worker's {routes.METRICS}, got {response.status_code}")
    return body


async def forget(client: httpx2.AsyncClient, address: Address, job_id: str) -> None:
    """Tell a worker once, without insisting, that nobody waits for *job_id* any more."""
    if address.is_ours is False:
        return
    with contextlib.suppress(TimeoutError, UnreachableError):
        async with asyncio.timeout(_FORGET_S):
            with translated():
                await client.delete(f"{address.url}{routes.JOBS}/{job_id}", headers=_headers(address))


async def _upscale(client: httpx2.AsyncClient, address: Address, order: WorkOrder, max_result_bytes: int) -> WorkResult:
    fields = order.fields
    if not fields.prompt and not address.is_ours:
        fields = replace(fields, prompt=" ")  # Livepeer's runner refuses an empty one
    headers = _headers(address) | {
        wire.JOB_HEADER: order.job_id,
        wire.REQUEST_ID_HEADER: order.request_id,
        wire.BITS_HEADER: str(order.max_bits),
        "Accept-Encoding": "identity",
    }
    with translated(), order.image.open("rb") as image:
        parts: list[tuple[str, Any]] = [("image", ("image", image, "application/octet-stream"))]
        parts += [(name, (None, value)) for name, value in fields.to_form().items()]
        async with client.stream("POST", address.url + routes.UPSCALE, headers=headers, files=parts) as response:
            if response.status_code != 200:
                raise read_failure(response.status_code, response.headers, await _read_short(response))
            if response.headers.get("Content-Type", "").startswith("image/"):
                await _save(response, order.result, max_result_bytes)
                return read_headers(response.headers, fields, order.result)
            body = order.result.with_suffix(".json")
            await _save(response, body, max_result_bytes * 4 // 3 + _SHORT_BODY_BYTES)
    return await read_runner_json(body, order.fields, order.result)


async def _relay(client: httpx2.AsyncClient, address: Address, order: WorkOrder) -> None:
    """Hand on the worker's progress as soon as somebody watches, until cancelled. Failing is fine: it is a courtesy."""
    await order.watched.wait()
    url = f"{address.url}{routes.JOBS}/{order.job_id}/events"
    while address.is_ours is not False:
        with contextlib.suppress(httpx2.HTTPError, httpx2.StreamError, ValueError):
            async with client.stream("GET", url, headers=_headers(address)) as response:
                if response.status_code == 200:
                    async for event in httpx2.EventSource(response, _SHORT_BODY_BYTES):
                        state = json.loads(event.data)
                        if isinstance(state, dict) and {type(state.get("done")), type(state.get("total"))} == {int}:
                            order.on_progress(state["done"], state["total"])
        await asyncio.sleep(_PROGRESS_RETRY_S)  # it has not opened the job yet, or its stream broke


async def _get_json(client: httpx2.AsyncClient, address: Address, path: str) -> tuple[httpx2.Headers, dict[str, Any]]:
    """Return headers and JSON object of a short answer. Raises: UnreachableError, WorkerFailedError."""
    response, body = await _get(client, address, path)
    try:
        answer = json.loads(body) if response.status_code == 200 else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise WorkerFailedError(f"expected JSON from the worker's {path}, got status {response.status_code}")
    return response.headers, answer


async def _get(client: httpx2.AsyncClient, address: Address, path: str) -> tuple[httpx2.Response, bytes]:
    """Return a short answer and its body. Raises: UnreachableError."""
    try:
        async with asyncio.timeout(_SHORT_S):
            with translated():
                async with client.stream("GET", address.url + path, headers=_headers(address)) as response:
                    return response, await _read_short(response)
    except TimeoutError:
        raise UnreachableError(f"the worker did not answer {path} within {_SHORT_S:g} s") from None


async def _read_short(response: httpx2.Response) -> bytes:
    """Return the first bytes of a body that should be short."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) >= _SHORT_BODY_BYTES:
            break
    return bytes(body[:_SHORT_BODY_BYTES])


async def _save(response: httpx2.Response, target: Path, max_bytes: int) -> None:
    """Write the body to *target* as it arrives. Raises: BadResultError beyond *max_bytes*, StorageFullError."""
    size = 0
    buffer = bytearray()
    try:
        with target.open("wb") as file:
            async for chunk in response.aiter_bytes():
                size += len(chunk)
                if size > max_bytes:
                    raise BadResultError(f"a result may have {max_bytes} bytes, the worker sends more")
                buffer += chunk
                if len(buffer) >= _BUFFER_BYTES:
                    await asyncio.to_thread(file.write, bytes(buffer))
                    buffer.clear()
            await asyncio.to_thread(file.write, bytes(buffer))
    except OSError as exc:
        raise StorageFullError(f"the result cannot be kept: {exc.strerror}; try again later") from exc


def _headers(address: Address) -> dict[str, str]:
    """Return what every request to the worker carries."""
    headers = {wire.PROTOCOL_HEADER: wire.PROTOCOL_VERSION}
    if address.token is not None:
        headers["Authorization"] = f"Bearer {address.token}"
    return headers
