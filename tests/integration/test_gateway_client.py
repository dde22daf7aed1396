"""The client against a real gateway."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fourfold.client import AsyncClient, Client
from fourfold.errors import (
    BadResultError,
    DeadlineExceededError,
    InvalidImageError,
    NotFoundError,
    UnknownModelError,
    UnreachableError,
    UnsupportedFormatError,
)
from fourfold.testing.fake_orchestrator import FakeOrchestrator
from fourfold.testing.pictures import png, png_size
from fourfold.testing.running_gateway import RunningGateway, running_gateway

MODEL = "fourfold/realesrgan-x4plus"


@pytest.fixture
async def orchestrator(tmp_path: Path) -> AsyncIterator[FakeOrchestrator]:
    async with FakeOrchestrator(tmp_path / "o") as started:
        yield started


@pytest.fixture
async def gateway(tmp_path: Path, orchestrator: FakeOrchestrator) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path / "g", [orchestrator.url]) as started:
        yield started


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "file"])
async def test_a_picture_from_anywhere(gateway: RunningGateway, tmp_path: Path, kind: str) -> None:
    """A path, bytes or an open file; the sync client does the same as the async one."""
    path = tmp_path / "a.png"
    path.write_bytes(png())
    image = {"path": path, "text": str(path), "bytes": png(), "file": io.BytesIO(png())}[kind]
    seen: list[tuple[int, int | None]] = []

    def sync() -> None:
        with Client(gateway.url) as client:
            done = client.upscale(image, seed=5, prompt="x", model_id=MODEL, request_id="mine")
            client.download(done, tmp_path / "out.png", on_progress=lambda *step: seen.append(step))
            assert client.models()["default_model"] == MODEL
            assert (done.seed, done.model_id, done.input_pixels, done.request_id) == (5, MODEL, 108, "mine")

    await asyncio.to_thread(sync)
    size = (tmp_path / "out.png").stat().st_size
    assert png_size((tmp_path / "out.png").read_bytes()) == (48, 36)
    assert seen[-1] == (size, size)

    async with AsyncClient(gateway.url + "/") as client:
        done = await client.upscale(image, seed=0)
        await client.download(done, tmp_path / "again.png")
    assert done.seed == 0
    assert png_size((tmp_path / "again.png").read_bytes()) == (48, 36)


async def test_errors_come_back_as_what_they_are(gateway: RunningGateway, tmp_path: Path) -> None:
    """By their codes."""
    async with AsyncClient(gateway.url, api_key="k") as client:
        with pytest.raises(UnsupportedFormatError):
            await client.upscale(b"hello")
        with pytest.raises(InvalidImageError):
            await client.upscale(b"")
        with pytest.raises(UnknownModelError, match="on offer"):
            await client.upscale(png(), model_id="no/such")
        done = await client.upscale(png())
        for file in gateway.results.rglob("*.png"):
            file.unlink()
        with pytest.raises(NotFoundError):
            await client.download(done, tmp_path / "out.png")
        with pytest.raises(FileNotFoundError):
            await client.upscale(tmp_path / "nothing.png")
    assert not (tmp_path / "out.png").exists()


async def test_a_gateway_that_is_not_there() -> None:
    """Unreachable, from both clients."""
    async with AsyncClient("http://127.0.0.1:1") as client:
        with pytest.raises(UnreachableError):
            await client.models()
    with Client("http://127.0.0.1:1") as sync_client, pytest.raises(UnreachableError):
        sync_client.upscale(png())


async def test_a_gateway_that_takes_too_long(gateway: RunningGateway, orchestrator: FakeOrchestrator) -> None:
    """The client's own patience; its job is cancelled by that."""
    orchestrator.script.append("hang")
    async with AsyncClient(gateway.url, timeout_s=0.5) as client:
        with pytest.raises(DeadlineExceededError):
            await client.upscale(png())
    async with asyncio.timeout(5):
        while not orchestrator.jobs[0].was_left:
            await asyncio.sleep(0.01)


async def test_cancelling_the_call_cancels_the_job(gateway: RunningGateway, orchestrator: FakeOrchestrator) -> None:
    """Down to the orchestrator."""
    orchestrator.script.append("hang")
    async with AsyncClient(gateway.url) as client:
        call = asyncio.create_task(client.upscale(png()))
        async with asyncio.timeout(5):
            while not orchestrator.jobs:
                await asyncio.sleep(0.01)
            call.cancel()
            while not orchestrator.jobs[0].was_left:
                await asyncio.sleep(0.01)


async def test_a_gateway_that_talks_without_end() -> None:
    """An answer has a limit."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        try:
            while True:
                writer.write(b" " * 1_000_000)
                await writer.drain()
        except ConnectionError:
            writer.transport.abort()
            ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server, AsyncClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        with pytest.raises(BadResultError, match="has more"):
            await client.models()
        await ended.wait()
