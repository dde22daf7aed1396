"""An orchestrator on a real port, and stand-ins for the two kinds of worker it knows."""

import asyncio
import base64
import contextlib
import io
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx2
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fourfold.config import LimitSettings, OrchestratorSettings
from fourfold.errors import ImageTooLargeError, InvalidImageError, UnsupportedFormatError
from fourfold.orchestrator.app import OrchestratorApp, create_app
from fourfold.orchestrator.models import ModelConfig
from fourfold.orchestrator.workers import Workers, external_endpoints
from fourfold.processes.serving import serve
from fourfold.processes.sockets import authority, listen
from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol import routes, wire
from fourfold.protocol.capabilities import demand
from fourfold.protocol.tls import ensure_certificate
from fourfold.results import FilesystemStore
from fourfold.telemetry import Metrics

MODEL = "stabilityai/stable-diffusion-x4-upscaler"


def png(width: int = 8, height: int = 6) -> bytes:
    """Return a small picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (10, 200, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Header:
    width: int
    height: int


class PillowCodec:
    """What the orchestrator needs of ``fourfold.imaging.Codec``, by Pillow."""

    async def inspect(self, path: Path, limits: LimitSettings, /) -> Header:
        try:
            with Image.open(path) as image:
                header = Header(*image.size)
        except OSError as exc:
            if path.read_bytes()[:4] == b"\x89PNG":
                raise InvalidImageError("the picture is damaged") from exc
            raise UnsupportedFormatError("no picture this build reads") from exc
        if header.width * header.height > limits.input_pixels:
            raise ImageTooLargeError("too many pixels")
        return header


@dataclass
class Seen:
    """What a stand-in was asked."""

    fields: dict[str, str]
    image: bytes
    headers: dict[str, str]


Answer = Callable[[Seen], Awaitable[Response]]


@dataclass
class StandIn:
    """A worker of either kind that answers as the test says."""

    url: str = ""
    status: str = "OK"
    jobs: list[Seen] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)  #: a caller went away while it waited
    answer: Answer | None = None
    hold: asyncio.Event | None = None  #: jobs wait for it

    async def seen(self, request: Request) -> Seen:
        form = await request.form()
        image = form["image"]
        assert not isinstance(image, str)
        job = Seen(
            {name: value for name, value in form.items() if isinstance(value, str)},
            await image.read(),
            dict(request.headers),
        )
        await form.close()
        self.jobs.append(job)
        return job

    async def wait(self, request: Request) -> None:
        """Wait until the test lets the job go on, or the caller leaves."""
        if self.hold is None:
            return

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        held, left = asyncio.create_task(self.hold.wait()), asyncio.create_task(gone())
        try:
            await asyncio.wait({held, left}, return_when=asyncio.FIRST_COMPLETED)
            if left.done():
                self.left.set()
        finally:
            for task in (held, left):
                task.cancel()
            await asyncio.gather(held, left, return_exceptions=True)

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": self.status})

    async def hardware(self, _: Request) -> Response:
        gpu = {"id": "GPU-1", "name": "H200", "memory_total": 10, "memory_free": 7, "major": 9, "minor": 0}
        return JSONResponse({"pipeline": "upscale", "model_id": MODEL, "gpu_info": {"0": gpu}})


class LivepeerRunner(StandIn):
    """Livepeer's runner: data URLs, its statuses and bodies, no idea of ours."""

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/upscale", self.upscale, methods=["POST"]),
                Route("/health", self.health),
                Route("/hardware/info", self.hardware),
            ]
        )

    async def upscale(self, request: Request) -> Response:
        seen = await self.seen(request)
        await self.wait(request)
        if not seen.fields.get("prompt"):
            missing = {"type": "missing", "loc": ["body", "prompt"], "msg": "Field required", "input": None}
            return JSONResponse({"detail": [missing]}, 422)
        if self.answer is not None:
            return await self.answer(seen)
        url = "data:image/png;base64," + base64.b64encode(png(32, 24)).decode()
        seed = int(seen.fields.get("seed", "4242"))
        return JSONResponse({"images": [{"url": url, "seed": seed, "nsfw": False}]})


class OurWorker(StandIn):
    """A worker of ours: raw bytes, codes, progress, cancellation."""

    progress = ((0, 4), (1, 4), (2, 4))

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/upscale", self.upscale, methods=["POST"]),
                Route("/health", self.health),
                Route("/hardware/info", self.hardware),
                Route("/version", self.version),
                Route("/jobs/{job_id}", self.cancel, methods=["DELETE"]),
                Route("/jobs/{job_id}/events", self.events),
            ]
        )

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": self.status}, headers={wire.PROTOCOL_HEADER: "1"})

    async def version(self, _: Request) -> Response:
        return JSONResponse({"version": "1.2.3"})

    async def cancel(self, request: Request) -> Response:
        self.cancelled.append(request.path_params["job_id"])
        return Response(status_code=204)

    async def events(self, _: Request) -> Response:
        text = "".join(f'data: {{"state":"running","done":{d},"total":{t}}}\n\n' for d, t in self.progress)
        return Response(text, media_type="text/event-stream")

    async def upscale(self, request: Request) -> Response:
        seen = await self.seen(request)
        await self.wait(request)
        if self.answer is not None:
            return await self.answer(seen)
        headers = {
            wire.SEED_HEADER: seen.fields.get("seed", "77"),
            wire.NSFW_HEADER: "true",
            wire.SAFETY_HEADER: "flagged",
            wire.MODEL_HEADER: seen.fields["model_id"],
        }
        return Response(png(32, 24), media_type="image/png", headers=headers)


def refusal(status: int, body: Any, headers: dict[str, str] | None = None) -> Answer:
    """Return an answer with this status; a text body is plain text."""

    async def answer(_: Seen) -> Response:
        if isinstance(body, str):
            return PlainTextResponse(body, status, headers)
        return JSONResponse(body, status, headers)

    return answer


@dataclass
class Running:
    """An orchestrator that serves."""

    url: str
    authority: str
    app: OrchestratorApp
    workers: Workers
    spool: Path
    certificate: Path
    client: httpx2.AsyncClient

    async def ask(self, request: pb.OrchestratorRequest | None = None, *, name: str = "") -> pb.OrchestratorInfo:
        """Call GetOrchestrator as a grpcio client that pins the certificate, by *name* if one is given."""
        credentials = grpc.ssl_channel_credentials(self.certificate.read_bytes())
        options = [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)] if name else []
        async with grpc.aio.secure_channel(self.authority, credentials, options=options) as channel:
            call = channel.unary_unary(
                routes.GRPC_GET_ORCHESTRATOR,
                request_serializer=pb.OrchestratorRequest.SerializeToString,
                response_deserializer=pb.OrchestratorInfo.FromString,
            )
            return await call(request or pb.OrchestratorRequest(), timeout=5)

    async def segment(self, model_id: str = MODEL) -> str:
        """Return fresh credentials for a job."""
        info = await self.ask(pb.OrchestratorRequest(capabilities=demand(model_id)))
        segment = pb.SegData(
            manifestId=f"30_{model_id}".encode(), capabilities=demand(model_id), auth_token=info.auth_token
        )
        return base64.b64encode(segment.SerializeToString()).decode()

    async def upscale(
        self,
        image: bytes | None = None,
        *,
        ours: bool = True,
        headers: dict[str, str] | None = None,
        segment: str | None = None,
        **fields: str,
    ) -> httpx2.Response:
        """Post a job."""
        sent = {
            "Livepeer-Segment": await self.segment() if segment is None else segment,
            "Livepeer-Payment": "",
            "Authorization": wire.AI_WORKER_PROTOCOL,
        }
        if ours:
            sent[wire.PROTOCOL_HEADER] = "1"
        form = {"prompt": "", "model_id": MODEL, **fields}
        return await self.client.post(
            self.url + "/upscale",
            headers=sent | (headers or {}),
            data={name: value for name, value in form.items() if value != "-"},
            files={"image": ("x.png", png() if image is None else image, "application/octet-stream")},
        )

    async def until_nothing_held(self) -> None:
        """Fail unless every slot, file and job is given back soon: a reply may be read before its folder is gone."""
        async with asyncio.timeout(5):
            while self.app.requests.jobs or any(w.in_use for w in self.workers.workers) or list(self.spool.iterdir()):
                await asyncio.sleep(0.01)


Serve = Callable[..., contextlib.AbstractAsyncContextManager[str]]
Start = Callable[..., contextlib.AbstractAsyncContextManager[Running]]


@contextlib.asynccontextmanager
async def _served(app: Any, tls: tuple[Path, Path] | None = None) -> AsyncIterator[str]:
    stop = asyncio.Event()
    with listen("127.0.0.1", 0) as sock:
        task = asyncio.create_task(serve(app, sock, stop=stop, drain_s=2.0, tls=tls))
        try:
            yield authority(sock)
        finally:
            stop.set()
            # A peer that writes while the server closes fails asyncio's TLS shutdown, and Hypercorn lets that out.
            with contextlib.suppress(ssl.SSLError):
                await task


@pytest.fixture
async def livepeer_runner() -> AsyncIterator[LivepeerRunner]:
    """A Livepeer runner on a port of its own."""
    runner = LivepeerRunner()
    async with _served(runner.app()) as address:
        runner.url = f"http://{address}"
        yield runner


@pytest.fixture
async def our_worker() -> AsyncIterator[OurWorker]:
    """A worker of ours on a port of its own."""
    worker = OurWorker()
    async with _served(worker.app()) as address:
        worker.url = f"http://{address}"
        yield worker


@pytest.fixture
def served() -> Serve:
    """Serve an ASGI application while a context lasts; yields host:port."""
    return _served


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Run an orchestrator on a free port with TLS while a context lasts; it starts once its workers are ready."""

    @contextlib.asynccontextmanager
    async def run(
        *urls: str,
        models: list[ModelConfig] | None = None,
        endpoints: list[Any] | None = None,
        ready: bool = True,
        worker_timeout_s: float = 20.0,
        revive_s: float = 3.0,
        service_url: str | None = None,
        **settings: Any,
    ) -> AsyncIterator[Running]:
        configs = models or [ModelConfig(MODEL, url=url, token="secret", warm=True) for url in urls]
        files = ensure_certificate(tmp_path / "tls", "127.0.0.1")
        results = FilesystemStore(tmp_path / "results", ttl_s=60, max_bytes=10**8)
        metrics = Metrics("orchestrator")
        own = OrchestratorSettings(worker_timeout_s=worker_timeout_s, **settings)
        async with Workers(
            [*external_endpoints(configs), *(endpoints or [])],
            check_s=0.05,
            timeout_s=worker_timeout_s,
            revive_s=revive_s,
            on_retry=metrics.count_error,
        ) as workers:
            app = create_app(
                own,
                configs,
                workers=workers,
                codec=PillowCodec(),
                results=results,
                spool=tmp_path / "spool",
                service_url=service_url,
                metrics=metrics,
            )
            if ready:
                async with asyncio.timeout(5):
                    for model in configs:
                        await workers.wait_ready(model.model_id)
                        while not all(worker.is_ready for worker in workers.serving(model.model_id)):
                            await asyncio.sleep(0.01)
            context = ssl.create_default_context(cafile=str(files.certificate))
            async with (
                _served(app, (files.certificate, files.key)) as address,
                httpx2.AsyncClient(verify=context, trust_env=False, timeout=20) as client,
            ):
                yield Running(
                    f"https://{address}", address, app, workers, tmp_path / "spool", files.certificate, client
                )

    return run


@pytest.fixture
def make_png() -> Callable[..., bytes]:
    """Make a small picture of a size."""
    return png


@pytest.fixture
def make_refusal() -> Callable[..., Answer]:
    """Make a worker's refusal."""
    return refusal
