"""An orchestrator for tests: a real TLS server on loopback that speaks seam 2, as one of ours or as Livepeer's.

It enlarges by repeating pixels, and does one job after another as its script says: well, or wrong in a named way.
"""

import asyncio
import itertools
import json
import secrets
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from fourfold.processes.serving import serve
from fourfold.processes.sockets import authority, listen
from fourfold.protocol import capabilities, wire
from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol.grpc_asgi import Call, GrpcApp, GrpcError, Receive, Scope, Send, Status, Unary, is_grpc
from fourfold.protocol.routes import GRPC_GET_ORCHESTRATOR, JOBS, STREAM, UPSCALE
from fourfold.protocol.tls import CertificateFiles, ensure_certificate
from fourfold.testing.fake_jobs import (
    LIVEPEER_ERRORS,
    OUR_ERRORS,
    Behaviour,
    ReceivedJob,
    Style,
    answer,
    blank,
    enlarge,
    read_body,
    read_parts,
    start_answer,
    until_left,
)


@dataclass(frozen=True, slots=True)
class FakeModel:
    """One model on offer; a price of None leaves prices out, as go-livepeer does off-chain."""

    model_id: str
    price: tuple[int, int] | None = (6_357_828, 1)  #: wei per so many pixels
    warm: bool = True
    capacity: int = 1


class FakeOrchestrator:
    """Use as a context manager; inside, :attr:`url` is where it listens.

    Args: *folder*, for certificates; *names*, for them, the first a DNS name or an address.
    """

    def __init__(
        self,
        folder: Path,
        *,
        models: Iterable[FakeModel | str] = ("fourfold/realesrgan-x4plus",),
        style: Style = "fourfold",
        name: str = "localhost",
        nsfw: bool = False,
        token_life_s: float = 1800.0,
    ) -> None:
        self.models = [FakeModel(model) if isinstance(model, str) else model for model in models]
        self.style = style
        self.name = name
        self.nsfw = nsfw
        self.token_life_s = token_life_s
        #: What the next jobs meet, first to last; without one, "ok".
        self.script: deque[Behaviour] = deque()
        self.jobs: list[ReceivedJob] = []
        #: Ids that were asked to be cancelled.
        self.cancelled: list[str] = []
        #: Requests for quotes so far.
        self.questions = 0
        #: None answers quotes; "hang" never does; "fail" says no; "empty" offers nothing.
        self.quoting: Literal["ok", "hang", "fail", "empty"] = "ok"
        #: What it names as its own address; None: the real one.
        self.transcoder: str | None = None
        self._folder = folder
        self._certificates = itertools.count()
        self._tokens: set[bytes] = set()
        self._results: dict[str, bytes] = {}
        self._authority = ""
        self._stop = asyncio.Event()
        self._server: asyncio.Task[None] | None = None
        self._grpc = GrpcApp({GRPC_GET_ORCHESTRATOR: Unary(pb.OrchestratorRequest, self._quote)})

    @property
    def url(self) -> str:
        """Where it listens, or last listened."""
        return f"https://{self._authority}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen: at a free port, or where it listened before; with a new certificate each time, as go-livepeer."""
        host, _, port = self._authority.rpartition(":")
        sock = listen(host or "127.0.0.1", int(port or 0))
        self._authority = authority(sock)
        files = self._new_certificate()
        self._stop = asyncio.Event()
        tls = (files.certificate, files.key)
        serving = serve(self._app, sock, stop=self._stop, drain_s=0.2, tls=tls)
        self._server = asyncio.create_task(serving, name=f"fake-orchestrator-{self._authority}")

    async def stop(self) -> None:
        """Stop listening and drop what is open."""
        if self._server is not None:
            self._stop.set()
            # Peers that were cut off in the middle make the server complain; they are meant to be.
            await asyncio.gather(self._server, return_exceptions=True)
            self._server = None

    def forget_tokens(self) -> None:
        """Refuse the tokens given out so far, as after a restart."""
        self._tokens.clear()

    def _new_certificate(self) -> CertificateFiles:
        return ensure_certificate(self._folder / f"tls-{next(self._certificates)}", self.name)

    async def _quote(self, request: pb.OrchestratorRequest, _: Call) -> pb.OrchestratorInfo:
        self.questions += 1
        if self.quoting == "hang":
            await asyncio.sleep(3600)
        if self.quoting == "fail":
            raise GrpcError(Status.UNKNOWN, "insufficient sender reserve")
        offered = self.models if self.quoting == "ok" else []
        info = pb.OrchestratorInfo(
            transcoder=self.transcoder if self.transcoder is not None else self.url,
            capabilities=capabilities.offer(
                (capabilities.ModelOffer(m.model_id, m.warm, m.capacity) for m in offered),
                capacity=sum(m.capacity for m in offered),
                version=f"{capabilities.LIVEPEER_VERSION}-fourfold.0.0.0" if self.style == "fourfold" else "0.9.1",
            ),
            auth_token=self._issue_token(),
        )
        asked = capabilities.demanded_models(request.capabilities)
        for model in offered:
            if model.price is None:
                continue
            price = pb.PriceInfo(pricePerUnit=model.price[0], pixelsPerUnit=model.price[1])
            if model.model_id in asked:
                info.price_info.CopyFrom(price)
            elif not asked:
                price.capability, price.constraint = wire.UPSCALE_CAPABILITY, model.model_id
                info.capabilities_prices.append(price)
        return info

    def _issue_token(self) -> pb.AuthToken:
        token = secrets.token_bytes(16)
        self._tokens.add(token)
        return pb.AuthToken(token=token, session_id=token.hex()[:8], expiration=int(time.time() + self.token_life_s))

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        elif is_grpc(scope):
            await self._grpc(scope, receive, send)
        elif (scope["method"], scope["path"]) == ("POST", UPSCALE):
            await self._upscale(scope, receive, send)
        elif scope["method"] == "GET" and scope["path"] in self._results:
            await answer(send, 200, self._results[scope["path"]], {"Content-Type": "image/png"})
        elif scope["method"] == "DELETE" and scope["path"].startswith(JOBS):
            self.cancelled.append(scope["path"].removeprefix(f"{JOBS}/"))
            await answer(send, 204, b"")
        else:
            await answer(send, 404, b"404 page not found", {"Content-Type": "text/plain"})

    async def _upscale(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        behaviour: str = self.script.popleft() if self.script else "ok"
        job = ReceivedJob(headers, read_parts(await read_body(receive), headers["content-type"]), behaviour)
        self.jobs.append(job)
        if job.segment.auth_token.token not in self._tokens:
            behaviour = job.behaviour = "bad-token"
        if behaviour in OUR_ERRORS:
            await self._fail(send, behaviour)
        elif behaviour == "hang":
            await until_left(receive)
            job.was_left = True
        else:
            await self._succeed(job, receive, send)

    async def _fail(self, send: Send, behaviour: str) -> None:
        if self.style == "fourfold":
            status, code = OUR_ERRORS[behaviour]
            headers = {wire.ERROR_HEADER: code, "Content-Type": "text/plain"}
            await answer(send, status, f"scripted: {behaviour}".encode(), headers)
        else:
            status, text = LIVEPEER_ERRORS[behaviour]
            await answer(send, status, text.encode() + b"\n", {"Content-Type": "text/plain; charset=utf-8"})

    async def _succeed(self, job: ReceivedJob, receive: Receive, send: Send) -> None:
        png = await asyncio.to_thread(enlarge, job.image, 3 if job.behaviour == "wrong-size" else 4)
        if job.behaviour == "garbage":
            png = b"<html>not a picture</html>"
        elif job.behaviour == "blank":
            png = await asyncio.to_thread(blank, job.image, 4)
        elif job.behaviour == "half":
            png = png[: len(png) // 2]
        seed = -7 if job.behaviour == "odd-seed" else int(job.fields.get("seed", "0"))
        if self.style == "fourfold":
            headers = {
                "Content-Type": "image/png",
                wire.SEED_HEADER: str(seed),
                wire.NSFW_HEADER: "true" if self.nsfw else "false",
                wire.SAFETY_HEADER: wire.SAFETY_FLAGGED if self.nsfw else wire.SAFETY_CLEAN,
                wire.MODEL_HEADER: "other/model" if job.behaviour == "other-model" else job.fields["model_id"],
            }
            body = png
        else:
            headers = {"Content-Type": "application/json"}
            image = {"url": self._keep(png, job.behaviour), "seed": seed, "nsfw": self.nsfw}
            body = json.dumps({"images": [image]}).encode()
        length = 10**15 if job.behaviour == "oversize" else len(body)
        await start_answer(send, 200, {**headers, "Content-Length": str(length)})
        if job.behaviour in {"cut", "oversize"}:
            await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
        elif job.behaviour == "slow":
            left = asyncio.create_task(until_left(receive))
            for byte in body:
                if left.done():
                    job.was_left = True
                    break
                await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
                await asyncio.sleep(0.05)
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
        else:
            await send({"type": "http.response.body", "body": body, "more_body": False})

    def _keep(self, png: bytes, behaviour: str) -> str:
        """Return the ``url`` of a Livepeer answer."""
        if self.style == "livepeer-data":
            return wire.data_url(png)
        path = f"{STREAM}/{secrets.token_hex(4)}/{secrets.token_hex(4)}.png"
        if behaviour == "elsewhere":
            return f"https://127.0.0.1:1{path}"
        if behaviour != "missing":
            self._results[path] = png
        return self.url + path
