"""Calls to a worker, without a network: which failures of the HTTP library mean what, progress, cancellation."""

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from fourfold.errors import BadResultError, StorageFullError, UnreachableError, WorkerFailedError
from fourfold.orchestrator import worker_call
from fourfold.orchestrator.worker_call import Address, WorkOrder
from fourfold.protocol import wire

Handler = Callable[[httpx2.Request], httpx2.Response]
LIVEPEERS = Address("http://worker", None, is_ours=False)
UNKNOWN = Address("http://worker", "t0ken", is_ours=None)


def client(handler: Handler) -> httpx2.AsyncClient:
    """Return a client whose requests end in *handler*."""
    return httpx2.AsyncClient(transport=httpx2.MockTransport(handler))


def order(tmp_path: Path, progress: list[tuple[int, int]] | None = None) -> WorkOrder:
    """Return something to do."""
    image = tmp_path / "upload"
    image.write_bytes(b"image")
    fields = wire.UpscaleFields("m", prompt="", safety_check=True, seed=1, num_inference_steps=None)
    seen: list[tuple[int, int]] = [] if progress is None else progress
    return WorkOrder(
        "job-1",
        "request-1",
        image,
        fields,
        tmp_path / "result.png",
        asyncio.Event(),
        lambda done, total: seen.append((done, total)),
    )


def test_every_exception_of_the_http_library_is_translated() -> None:
    """A new one fails here before it surprises a gateway. Cookies are not used."""
    own = [cls for _, cls in inspect.getmembers(httpx2, inspect.isclass) if issubclass(cls, Exception)]
    assert len(own) > 20
    escaped = []
    for cls in own:
        error = cls.__new__(cls)
        Exception.__init__(error, "why")
        try:
            with worker_call.translated():
                raise error
        except UnreachableError as translated:
            assert translated.__cause__ is error
        except Exception:  # noqa: BLE001  # whatever it is, it got through
            escaped.append(cls.__name__)

    assert escaped == ["CookieConflict"]


def test_a_token_is_not_shown() -> None:
    """Addresses end up in tracebacks."""
    assert "t0ken" not in repr(UNKNOWN)


async def test_an_empty_prompt_is_a_space_unless_the_worker_is_known_as_ours(tmp_path: Path) -> None:
    """Livepeer's runner refuses an empty one; ours knows the difference."""
    bodies = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        bodies.append(request.read())
        return httpx2.Response(500)

    async with client(answer) as http:
        for is_ours in (None, False, True):
            with pytest.raises(WorkerFailedError):
                await worker_call.upscale(
                    http, Address("http://worker", None, is_ours), order(tmp_path), max_result_bytes=100
                )

    part = b'name="prompt"\r\n\r\n'
    assert [body.partition(part)[2].partition(b"\r\n")[0] for body in bodies] == [b" ", b" ", b""]


async def test_a_result_that_cannot_be_written_is_a_storage_failure(tmp_path: Path) -> None:
    """Not the worker's."""
    job = order(tmp_path)
    (tmp_path / "result.png").mkdir()
    async with client(lambda _: httpx2.Response(200, content=b"x", headers={"Content-Type": "image/png"})) as http:
        with pytest.raises(StorageFullError):
            await worker_call.upscale(http, UNKNOWN, job, max_result_bytes=100)


async def test_a_large_result_is_written_in_pieces(tmp_path: Path) -> None:
    """More than fits the buffer, and cut off where it is too much."""

    async def pieces() -> object:
        for _ in range(40):
            yield b"x" * 65_536

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=pieces(), headers={"Content-Type": "image/png"})

    async with client(answer) as http:
        with pytest.raises(BadResultError, match="Fourfold-Seed"):
            await worker_call.upscale(http, UNKNOWN, order(tmp_path), max_result_bytes=40 * 65_536)
        assert (tmp_path / "result.png").stat().st_size == 40 * 65_536
        with pytest.raises(BadResultError, match="the worker sends more"):
            await worker_call.upscale(http, UNKNOWN, order(tmp_path), max_result_bytes=40 * 65_536 - 1)


async def test_a_refusal_of_any_length_is_read_so_far(tmp_path: Path) -> None:
    """An endless error text does not fill the memory."""
    async with client(lambda _: httpx2.Response(500, content=b"x" * 10_000_000)) as http:
        with pytest.raises(WorkerFailedError) as caught:
            await worker_call.upscale(http, UNKNOWN, order(tmp_path), max_result_bytes=100)

    assert len(caught.value.message) < 400


def sse(*data: str) -> httpx2.Response:
    """Return events."""
    text = "".join(f"data: {one}\n\n" for one in data)
    return httpx2.Response(200, text=text, headers={"Content-Type": "text/event-stream"})


async def relayed(
    tmp_path: Path,
    answers: list[httpx2.Response],
    monkeypatch: pytest.MonkeyPatch,
    address: Address = UNKNOWN,
    *,
    watch: bool = True,
) -> tuple[list[tuple[int, int]], list[str]]:
    """Run a job that lasts until *answers* about its progress are used up; return what was told, and what asked."""
    monkeypatch.setattr(worker_call, "_PROGRESS_RETRY_S", 0.0)
    used_up = asyncio.Event()
    asked: list[str] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            if watch and address.is_ours is not False:
                await used_up.wait()
            else:
                await asyncio.sleep(0.01)
            return httpx2.Response(500)
        asked.append(str(request.url))
        if len(answers) == 1:
            used_up.set()
        return answers.pop(0) if answers else httpx2.Response(404)

    progress: list[tuple[int, int]] = []
    job = order(tmp_path, progress)
    if watch:
        job.watched.set()
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
        with pytest.raises(WorkerFailedError):
            await worker_call.upscale(http, address, job, max_result_bytes=100)
    return progress, asked


async def test_progress_is_asked_for_until_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker opens the job a little after we send it; strange events are passed over."""
    answers = [
        httpx2.Response(404),
        httpx2.Response(200, text="no events"),
        sse("{broken"),
        sse('{"state": "queued"}', '["list"]', '{"done": 1, "total": 4}', '{"done": true, "total": 4}'),
        httpx2.Response(404),
    ]
    progress, asked = await relayed(tmp_path, answers, monkeypatch)

    assert progress == [(1, 4)]
    assert set(asked) == {"http://worker/jobs/job-1/events"}
    assert len(asked) >= 5


async def test_nobody_is_asked_for_progress_that_nobody_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a Livepeer runner, which has none."""
    unwatched = await relayed(tmp_path, [], monkeypatch, watch=False)
    livepeers = await relayed(tmp_path, [], monkeypatch, LIVEPEERS)

    assert (unwatched[1], livepeers[1]) == ([], [])


async def test_a_job_is_forgotten_politely() -> None:
    """Told once with the token, whatever the worker makes of it; a Livepeer runner has nothing to hear it with."""
    asked = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append((request.method, str(request.url), request.headers.get("Authorization")))
        if len(asked) == 2:
            raise httpx2.ConnectError("gone")
        return httpx2.Response(500)

    async with client(answer) as http:
        await worker_call.forget(http, UNKNOWN, "job-1")
        await worker_call.forget(http, UNKNOWN, "job-1")
        await worker_call.forget(http, LIVEPEERS, "job-1")

    assert asked == [("DELETE", "http://worker/jobs/job-1", "Bearer t0ken")] * 2


async def test_a_silent_worker_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Health checks have a time limit of their own."""
    monkeypatch.setattr(worker_call, "_SHORT_S", 0.01)
    monkeypatch.setattr(worker_call, "_FORGET_S", 0.01)

    async def never(_: httpx2.Request) -> httpx2.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(never)) as http:
        with pytest.raises(UnreachableError, match="did not answer /health"):
            await worker_call.health(http, UNKNOWN)
        await worker_call.forget(http, UNKNOWN, "job-1")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (httpx2.Response(200, json={"version": "0.14.1"}), "0.14.1"),
        (httpx2.Response(200, json={"version": ""}), "0.0.0"),
        (httpx2.Response(200, json={}), "0.0.0"),
        (httpx2.Response(404), "0.0.0"),
    ],
)
async def test_a_worker_without_a_version_has_livepeers_default(answer: httpx2.Response, expected: str) -> None:
    """go-livepeer container.go."""
    async with client(lambda _: answer) as http:
        assert await worker_call.version(http, UNKNOWN) == expected


async def test_hardware_that_is_none_is_none() -> None:
    """A worker on a CPU has no gpu_info."""
    async with client(lambda _: httpx2.Response(200, json={"gpu_info": None})) as http:
        assert await worker_call.hardware(http, UNKNOWN) == {}
