"""The two clients: they send what a flow yields and give it what comes back."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self, TypeVar, Unpack

import httpx2

from fourfold.client import flows
from fourfold.client.flows import Exchange, Flow, Image, Options, Progress, Reply, Upscaled
from fourfold.errors import BadResultError, DeadlineExceededError, UnreachableError

_T = TypeVar("_T")

_TIMEOUT_S: Final = 330.0  #: a little beyond a gateway's own deadline
_CONNECT_S: Final = 10.0
_BODY_BYTES: Final = 16 * 2**20  #: of an answer that is not a result; ours have a few kB


class Client:
    """A gateway, from ordinary code. Use as a context manager, or call :meth:`close`.

    Args: *base_url*, the gateway; *api_key*, sent as a bearer token; *timeout_s*, the longest wait for an answer.
    """

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout_s: float = _TIMEOUT_S) -> None:
        self._base_url = base_url
        self._http = httpx2.Client(**_settings(api_key, timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def upscale(self, image: Image, **options: Unpack[Options]) -> Upscaled:
        """Have *image* upscaled; see :class:`~fourfold.client.flows.Options`. Raises: FourfoldError by its code."""
        return self._run(flows.upscale(image, options))

    def download(self, upscaled: Upscaled, target: Path, *, on_progress: Progress | None = None) -> None:
        """Save a result to *target*. Raises: NotFoundError if it is gone, UnreachableError."""
        self._run(flows.download(upscaled.url, target, on_progress))

    def models(self) -> dict[str, Any]:
        """Return what is on offer, as ``GET /models`` tells it."""
        return self._run(flows.models())

    def _run(self, flow: Flow[_T]) -> _T:
        try:
            exchange = next(flow)
            while True:
                try:
                    reply = self._exchange(exchange)
                except Exception as exc:  # noqa: BLE001  # the flow cleans up and decides
                    exchange = flow.throw(exc)
                else:
                    exchange = flow.send(reply)
        except StopIteration as end:
            result: _T = end.value
            return result
        finally:
            flow.close()

    def _exchange(self, exchange: Exchange) -> Reply:
        with _translated(), _request(self._http, self._base_url, exchange) as request:
            response = self._http.send(request, stream=True)
            try:
                with _Sink(exchange, response) as sink:
                    for chunk in response.iter_bytes():
                        sink.take(chunk)
            finally:
                response.close()
        return sink.reply


class AsyncClient:
    """A gateway, from async code; otherwise like :class:`Client`."""

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout_s: float = _TIMEOUT_S) -> None:
        self._base_url = base_url
        self._http = httpx2.AsyncClient(**_settings(api_key, timeout_s))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def upscale(self, image: Image, **options: Unpack[Options]) -> Upscaled:
        """Have *image* upscaled; see :meth:`Client.upscale`. Cancelling the task cancels the job."""
        return await self._run(flows.upscale(image, options))

    async def download(self, upscaled: Upscaled, target: Path, *, on_progress: Progress | None = None) -> None:
        """Save a result to *target*; see :meth:`Client.download`."""
        await self._run(flows.download(upscaled.url, target, on_progress))

    async def models(self) -> dict[str, Any]:
        """Return what is on offer; see :meth:`Client.models`."""
        return await self._run(flows.models())

    async def _run(self, flow: Flow[_T]) -> _T:
        try:
            exchange = next(flow)
            while True:
                try:
                    reply = await self._exchange(exchange)
                except Exception as exc:  # noqa: BLE001  # the flow cleans up and decides
                    exchange = flow.throw(exc)
                else:
                    exchange = flow.send(reply)
        except StopIteration as end:
            result: _T = end.value
            return result
        finally:
            flow.close()

    async def _exchange(self, exchange: Exchange) -> Reply:
        with _translated(), _request(self._http, self._base_url, exchange) as request:
            response = await self._http.send(request, stream=True)
            try:
                with _Sink(exchange, response) as sink:
                    async for chunk in response.aiter_bytes():
                        sink.take(chunk)
            finally:
                await response.aclose()
        return sink.reply


def _settings(api_key: str | None, timeout_s: float) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"headers": headers, "timeout": httpx2.Timeout(timeout_s, connect=_CONNECT_S), "follow_redirects": False}


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn the HTTP library's exceptions into ours."""
    try:
        yield
    except httpx2.ConnectTimeout as exc:
        raise UnreachableError("the gateway does not accept the connection") from exc
    except httpx2.TimeoutException as exc:
        raise DeadlineExceededError("the gateway did not answer in time") from exc
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as exc:
        raise UnreachableError(f"the gateway cannot be reached: {str(exc) or type(exc).__name__}") from exc


@contextlib.contextmanager
def _request(http: httpx2.Client | httpx2.AsyncClient, base_url: str, exchange: Exchange) -> Iterator[httpx2.Request]:
    """Build the request; the image's file, where we opened it, is closed with the block."""
    url = exchange.url if "://" in exchange.url else base_url.rstrip("/") + exchange.url
    with contextlib.ExitStack() as stack:
        image = exchange.image
        if isinstance(image, Path | str):
            image = stack.enter_context(Path(image).open("rb"))
        files = None if image is None else {"image": ("image", image, "application/octet-stream")}
        yield http.build_request(exchange.method, url, data=exchange.form, files=files, headers=exchange.headers)


class _Sink:
    """Where a body goes as it arrives: into a file if it is a result, else into memory, bounded."""

    def __init__(self, exchange: Exchange, response: httpx2.Response) -> None:
        self._exchange = exchange
        self._response = response
        length = response.headers.get("Content-Length", "")
        self._total = int(length) if length.isdigit() else None
        self._received = 0
        self._memory = bytearray()
        is_result = exchange.save_to is not None and response.status_code == 200
        self._file = exchange.save_to.open("wb") if is_result and exchange.save_to is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def take(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self._received += len(chunk)
        if self._file is None:
            self._memory += chunk
            if self._received > _BODY_BYTES:
                raise BadResultError(f"an answer may have {_BODY_BYTES} bytes, the gateway's has more")
            return
        self._file.write(chunk)
        if self._exchange.on_progress is not None:
            self._exchange.on_progress(self._received, self._total)

    @property
    def reply(self) -> Reply:
        """What came back, once all of it was taken."""
        headers = {name.lower(): value for name, value in self._response.headers.items()}
        return Reply(self._response.status_code, str(self._response.url), headers, bytes(self._memory))
