"""What a gateway relies on at seam 2, asked of the real orchestrator and of the fake that ships for tests."""

import asyncio
import base64
import contextlib
import io
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx2
import pytest
from PIL import Image

from fourfold.config import LimitSettings, OrchestratorSettings
from fourfold.orchestrator.app import create_app
from fourfold.orchestrator.models import ModelConfig
from fourfold.orchestrator.workers import Workers, external_endpoints
from fourfold.processes.serving import serve
from fourfold.processes.sockets import authority, listen
from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol import routes, wire
from fourfold.protocol.capabilities import demand, incompatibility, offered_models
from fourfold.protocol.tls import ensure_certificate
from fourfold.results import FilesystemStore
from fourfold.testing.fake_orchestrator import FakeOrchestrator

MODEL = "fourfold/realesrgan-x4plus"
PRICE = (6_357_828, 1)


@dataclass(frozen=True)
class Peer:
    """An orchestrator that listens, as a gateway sees it."""

    url: str
    certificate: Path
    is_ours: bool  #: whether it answers in our dialect when asked
    asked_by: tuple[bool, ...]  #: the gateways it serves: one of ours, Livepeer's

    async def quote(self, request: pb.OrchestratorRequest) -> pb.OrchestratorInfo:
        """Call GetOrchestrator, trusting the certificate."""
        credentials = grpc.ssl_channel_credentials(self.certificate.read_bytes())
        async with grpc.aio.secure_channel(self.url.removeprefix("https://"), credentials) as channel:
            method = channel.unary_unary(routes.GRPC_GET_ORCHESTRATOR)
            return pb.OrchestratorInfo.FromString(await method(request.SerializeToString(), timeout=5))

    async def post(self, token: pb.AuthToken, *, ours: bool) -> tuple[httpx2.Response, bytes]:
        """Post a job in one dialect; return the answer and the picture in it, b"" where there is none."""
        segment = pb.SegData(manifestId=f"30_{MODEL}".encode(), capabilities=demand(MODEL), auth_token=token)
        headers = {
            wire.SEGMENT_HEADER: base64.b64encode(segment.SerializeToString()).decode(),
            wire.PAYMENT_HEADER: "",
            "Authorization": wire.AI_WORKER_PROTOCOL,
        }
        if ours:
            headers |= {wire.PROTOCOL_HEADER: wire.PROTOCOL_VERSION, wire.JOB_HEADER: "job-1"}
        context = ssl.create_default_context(cafile=str(self.certificate))
        async with httpx2.AsyncClient(verify=context, trust_env=False, timeout=10) as client:
            reply = await client.post(
                self.url + routes.UPSCALE,
                headers=headers,
                data={"prompt": "a cat", "model_id": MODEL, "seed": "5"},
                files={"image": ("image", picture(8, 6), "application/octet-stream")},
            )
            if reply.status_code != 200:
                return reply, b""
            if reply.headers["Content-Type"] == "image/png":
                return reply, reply.content
            url = reply.json()["images"][0]["url"]
            return reply, wire.decode_data_url(url) or (await client.get(url)).content


def picture(width: int, height: int) -> bytes:
    """Return a PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (9, 9, 9)).save(buffer, "PNG")
    return buffer.getvalue()


class PillowCodec:
    """What the orchestrator needs of ``fourfold.imaging.Codec``."""

    async def inspect(self, path: Path, limits: LimitSettings, /) -> Any:
        """Return the header."""
        return Image.open(io.BytesIO(path.read_bytes()))


async def worker(scope: Any, receive: Any, send: Any) -> None:
    """Answer as a worker of ours does, always with the same picture."""
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == routes.UPSCALE:
        facts = {wire.SEED_HEADER: "5", wire.NSFW_HEADER: "false", wire.SAFETY_HEADER: "clean"}
        headers, body = {"Content-Type": "image/png", **facts}, picture(32, 24)
    else:
        headers, body = {"Content-Type": "application/json"}, b'{"status": "OK"}'
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def serving(app: Any, tls: tuple[Path, Path] | None = None) -> AsyncIterator[str]:
    """Serve *app*; yields host:port."""
    stop = asyncio.Event()
    with listen("127.0.0.1", 0) as sock:
        task = asyncio.create_task(serve(app, sock, stop=stop, drain_s=1.0, tls=tls))
        try:
            yield authority(sock)
        finally:
            stop.set()
            with contextlib.suppress(ssl.SSLError):
                await task


@contextlib.asynccontextmanager
async def real(folder: Path) -> AsyncIterator[Peer]:
    """Run the real orchestrator."""
    async with serving(worker) as address:
        models = [ModelConfig(MODEL, url=f"http://{address}", warm=True)]
        tls = ensure_certificate(folder / "tls", "127.0.0.1")
        async with Workers(external_endpoints(models), check_s=0.05, timeout_s=10.0) as workers:
            app = create_app(
                OrchestratorSettings(),
                models,
                workers=workers,
                codec=PillowCodec(),
                results=FilesystemStore(folder / "results", ttl_s=60.0, max_bytes=10**8),
                spool=folder / "spool",
            )
            await asyncio.wait_for(workers.wait_ready(MODEL), 5)
            async with serving(app, (tls.certificate, tls.key)) as own:
                yield Peer(f"https://{own}", tls.certificate, is_ours=True, asked_by=(True, False))


def fake(style: Any) -> Callable[[Path], AbstractAsyncContextManager[Peer]]:
    """Return what runs the fake in one style."""

    @contextlib.asynccontextmanager
    async def run(folder: Path) -> AsyncIterator[Peer]:
        async with FakeOrchestrator(folder, models=[MODEL], style=style) as orchestrator:
            certificate = next(folder.glob("tls-*")) / "certificate.pem"
            is_ours = style == "fourfold"  # then it answers in our dialect, asked or not: our gateway always asks
            yield Peer(orchestrator.url, certificate, is_ours, asked_by=(True,) if is_ours else (True, False))

    return run


@pytest.fixture(params=["real", "fourfold", "livepeer-url", "livepeer-data"])
async def peer(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Peer]:
    """Each orchestrator in turn."""
    run = real if request.param == "real" else fake(request.param)
    async with run(tmp_path) as orchestrator:
        yield orchestrator


async def test_the_list_names_models_prices_and_a_token(peer: Peer) -> None:
    """The first form of the question."""
    info = await peer.quote(pb.OrchestratorRequest())

    assert info.transcoder == peer.url
    assert list(offered_models(info.capabilities)) == [MODEL]
    assert [(p.pricePerUnit, p.pixelsPerUnit, p.capability, p.constraint) for p in info.capabilities_prices] == [
        (*PRICE, 30, MODEL)
    ]
    assert info.auth_token.expiration > time.time() + 1000


async def test_a_models_quote_is_exact_and_fits_its_demand(peer: Peer) -> None:
    """The second form of the question."""
    info = await peer.quote(pb.OrchestratorRequest(capabilities=demand(MODEL)))

    assert (info.price_info.pricePerUnit, info.price_info.pixelsPerUnit) == PRICE
    assert incompatibility(demand(MODEL), info.capabilities) is None
    assert (info.auth_token.token != b"", info.auth_token.session_id != "") == (True, True)


async def test_whether_it_is_ours_shows_in_its_version(peer: Peer) -> None:
    """The suffix that a Livepeer gateway leaves out when it compares."""
    info = await peer.quote(pb.OrchestratorRequest())

    assert ("fourfold" in info.capabilities.version) is peer.is_ours
    assert incompatibility(demand(MODEL, min_version="0.9.1"), info.capabilities) is None


async def test_a_job_gives_a_picture_in_the_dialect_it_was_asked_in(peer: Peer) -> None:
    """A Livepeer orchestrator does not know ours and answers in its own."""
    info = await peer.quote(pb.OrchestratorRequest(capabilities=demand(MODEL)))
    for ours in peer.asked_by:
        reply, png = await peer.post(info.auth_token, ours=ours)

        assert reply.status_code == 200
        with Image.open(io.BytesIO(png)) as image:
            assert image.size == (32, 24)
        if ours and peer.is_ours:
            assert (reply.headers["Content-Type"], reply.headers[wire.SEED_HEADER]) == ("image/png", "5")
        else:
            assert reply.json()["images"][0]["seed"] == 5


async def test_a_token_that_is_not_its_own_is_refused(peer: Peer) -> None:
    """By code in our dialect, in Livepeer's words otherwise."""
    forged = pb.AuthToken(token=b"x" * 32, session_id="s", expiration=int(time.time()) + 1000)
    for ours in peer.asked_by:
        reply, _ = await peer.post(forged, ours=ours)

        assert reply.status_code == 403
        if ours and peer.is_ours:
            assert reply.headers[wire.ERROR_HEADER] == "invalid_credentials"
        else:
            assert "invalid auth token" in reply.text
