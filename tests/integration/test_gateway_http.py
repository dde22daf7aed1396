"""What holds for every request, down to the bytes on the connection."""

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from fourfold.engine.base import EngineCard, SizeRules
from fourfold.testing.fake_orchestrator import FakeModel, FakeOrchestrator
from fourfold.testing.pictures import png
from fourfold.testing.running_gateway import RunningGateway, ThreadCodec, running_gateway

MODEL = "fourfold/realesrgan-x4plus"
CARD = EngineCard(
    model_id=MODEL,
    title="photos",
    aliases=(),
    scale=4,
    size_rules=SizeRules(),
    margin_px=1,
    core_px=256,
    fixed_bytes=1,
    bytes_per_input_pixel=1,
    guided_by_prompt=False,
    default_steps=0,
    code_licence="Apache-2.0",
    weights_licence="BSD-3-Clause",
)


class BrokenCodec(ThreadCodec):
    """A codec with a bug."""

    async def prepare(self, *_: object, **__: object) -> object:  # type: ignore[override]
        raise RuntimeError("secret detail")


@pytest.fixture
async def orchestrator(tmp_path: Path) -> AsyncIterator[FakeOrchestrator]:
    models = [FakeModel(MODEL, price=(13, 2)), FakeModel("a/foreign", warm=False, capacity=3)]
    async with FakeOrchestrator(tmp_path / "o", models=models) as started:
        yield started


@pytest.fixture
async def gateway(tmp_path: Path, orchestrator: FakeOrchestrator) -> AsyncIterator[RunningGateway]:
    options = {"model_aliases": {"old/name": MODEL}, "limits": {"upload_bytes": 100_000}}
    async with running_gateway(tmp_path / "g", [orchestrator.url], cards={MODEL: CARD}, **options) as started:
        yield started


@pytest.fixture
async def client(gateway: RunningGateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as opened:
        yield opened


async def raw(
    gateway: RunningGateway, request: bytes, *, answer_bytes: int = 65536
) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are; return status, headers and body of the first answer."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(15):
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            while " 100 " in head.split("\r\n")[0]:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
    finally:
        writer.transport.abort()
    return int(lines[0].split(" ")[1]), headers, body


def form(*, host: str = "g", boundary: str = "x", extra: str = "") -> bytes:
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'.encode()
        + png()
        + f"\r\n--{boundary}--\r\n".encode()
    )
    head = f"POST /upscale HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n{extra}"
    return f"{head}Content-Type: multipart/form-data; boundary={boundary}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("shop.example", "http://shop.example/stream/"),
        ("shop.example:81", "http://shop.example:81/stream/"),
        ("evil.example/x?", "{gateway}/stream/"),
        ("a@evil.example", "{gateway}/stream/"),
        ('"><script>', "{gateway}/stream/"),
    ],
)
async def test_the_host_header_in_the_url(gateway: RunningGateway, host: str, expected: str) -> None:
    """It is used where it is a host; tricks give way to the address that was dialled."""
    status, _, body = await raw(gateway, form(host=host))

    assert status == 200
    assert json.loads(body)["images"][0]["url"].startswith(expected.format(gateway=gateway.url))


async def test_a_public_url(tmp_path: Path, orchestrator: FakeOrchestrator) -> None:
    """The operator's word goes first."""
    async with running_gateway(tmp_path / "h", [orchestrator.url], public_url="https://cdn.example") as gateway:
        _, _, body = await raw(gateway, form())

    assert json.loads(body)["images"][0]["url"].startswith("https://cdn.example/stream/")


@pytest.mark.parametrize(("asked", "is_kept"), [("abc-1", True), ("a" * 128, True), ("a" * 129, False), ("a b", False)])
async def test_request_ids(client: httpx2.AsyncClient, asked: str, is_kept: bool) -> None:
    """A safe one is kept, any other replaced."""
    answer = await client.get("/healthz", headers={"X-Request-ID": asked})

    assert (answer.headers["X-Request-ID"] == asked) == is_kept
    assert is_kept or re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


@pytest.mark.parametrize("path", ["/nothing", "/", "/upscale/x", "/models/", "/Upscale"])
async def test_paths_where_nothing_is(client: httpx2.AsyncClient, path: str) -> None:
    """404 as JSON, without a redirect."""
    answer = await client.get(path)

    body = answer.json()
    assert answer.status_code == 404
    assert body["detail"] == {"msg": body["error"]["message"]}
    assert (body["error"]["code"], body["error"]["retryable"]) == ("not_found", False)
    assert answer.headers["X-Request-ID"] == body["error"]["request_id"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/upscale", {"POST"}), ("PUT", "/upscale", {"POST"}), ("POST", "/models", {"GET", "HEAD"})],
)
async def test_methods_that_are_not_for_a_path(
    client: httpx2.AsyncClient, method: str, path: str, allowed: set[str]
) -> None:
    """405 with Allow."""
    answer = await client.request(method, path)

    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == allowed


async def test_a_bug_is_answered(
    tmp_path: Path, orchestrator: FakeOrchestrator, caplog: pytest.LogCaptureFixture
) -> None:
    """500 as JSON; the cause stands in the log under the request's id and nowhere else."""
    async with (
        running_gateway(tmp_path / "h", [orchestrator.url], codec=BrokenCodec()) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        answer = await client.post("/upscale", files={"image": ("a", png())})
        again = await client.get("/healthz")

    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "secret detail" not in answer.text
    assert again.status_code == 200
    (record,) = [r for r in caplog.records if r.getMessage() == "request_failed"]
    assert "secret detail" in str(record.exc_info)


async def test_a_preflight(client: httpx2.AsyncClient) -> None:
    """A page of any origin may send what SDKs send."""
    asked = {
        "Origin": "https://page.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-request-id",
    }
    answer = await client.options("/upscale", headers=asked)

    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization,content-type,x-request-id"


async def test_a_preflight_with_odd_headers(client: httpx2.AsyncClient) -> None:
    """What is no list of names is not repeated."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x<y>"}
    answer = await client.options("/upscale", headers=asked)

    assert answer.headers["Access-Control-Allow-Headers"] == "Content-Type"


async def test_cors_is_on_the_api_and_not_on_the_metrics(client: httpx2.AsyncClient) -> None:
    """Any page may read the API with every header that its description names; counters are the operator's."""
    described = set((await client.get("/openapi.json")).json()["components"]["headers"])
    for path in ("/models", "/healthz", "/openapi.json", "/nothing"):
        answer = await client.get(path)
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
        assert len(exposed) == len(set(exposed)) and described <= set(exposed)
    assert "Access-Control-Allow-Origin" not in (await client.get("/metrics")).headers


async def test_an_upload_that_says_it_is_too_large(gateway: RunningGateway) -> None:
    """413 at once, before a byte of it has come."""
    request = (
        b"POST /upscale HTTP/1.1\r\nHost: g\r\nContent-Length: 100001\r\nExpect: 100-continue\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    status, _, body = await raw(gateway, request)

    assert (status, json.loads(body)["error"]["code"]) == (413, "upload_too_large")


async def test_a_compressed_body_is_refused_with_its_reason(client: httpx2.AsyncClient) -> None:
    """It would else be "damaged"."""
    headers = {"Content-Encoding": "gzip", "Content-Type": "multipart/form-data; boundary=x"}
    answer = await client.post("/upscale", content=gzip.compress(b"--x--"), headers=headers)

    detail = answer.json()["detail"][0]
    assert (answer.status_code, detail["loc"]) == (422, ["body"])
    assert "'gzip'; send it uncompressed" in detail["msg"]


async def _endless(chunk: bytes, count: int) -> AsyncIterator[bytes]:
    yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    for _ in range(count):
        yield chunk


@pytest.mark.parametrize("path", ["/upscale", "/nothing"])
async def test_a_chunked_upload_beyond_the_limit(client: httpx2.AsyncClient, path: str) -> None:
    """A client that goes on sending still reads why it was refused; httpx reads no answer before it has sent all."""
    answer = await client.post(
        path,
        content=_endless(b"\x00" * 50_000, 400),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )

    expected = (413, "upload_too_large") if path == "/upscale" else (404, "not_found")
    assert (answer.status_code, answer.json()["error"]["code"]) == expected


async def test_a_large_upload_with_its_length(client: httpx2.AsyncClient) -> None:
    """The same with Content-Length."""
    answer = await client.post("/upscale", files={"image": ("a", b"\x00" * 20_000_000)})

    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "upload_too_large")


async def test_a_client_that_goes_on_for_ever_is_let_go(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway does not listen to it for longer than a while."""
    monkeypatch.setattr("fourfold.processes.lingering._LINGER_S", 0.2)
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /upscale HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n")
    head = await reader.readuntil(b"\r\n")
    with pytest.raises(ConnectionError):
        async with asyncio.timeout(10):
            while True:
                writer.write(b"400\r\n" + b"\x00" * 1024 + b"\r\n")
                await writer.drain()
                await asyncio.sleep(0.001)
    writer.transport.abort()

    assert b" 422 " in head


async def test_a_silent_upload(tmp_path: Path, orchestrator: FakeOrchestrator) -> None:
    """422 rather than a connection that stays open for ever."""
    async with running_gateway(tmp_path / "h", [orchestrator.url], body_timeout_s=0.2) as gateway:
        status, _, body = await raw(gateway, form()[:-20])

    assert (status, json.loads(body)["error"]["code"]) == (422, "validation_error")


async def test_two_requests_on_one_connection(client: httpx2.AsyncClient) -> None:
    """An answer leaves the connection usable, a refusal with its body read too."""
    for _ in range(3):
        assert (await client.post("/upscale", data={"prompt": "x"}, files={"z": b"1"})).status_code == 422
        assert (await client.get("/healthz")).status_code == 200


async def test_models(client: httpx2.AsyncClient) -> None:
    """What is on offer, with prices in wei and USD; what only a card tells is null without one."""
    body = (await client.get("/models")).json()

    ours, foreign = body["models"][1], body["models"][0]
    assert body["default_model"] == MODEL
    assert body["aliases"] == {"old/name": MODEL}
    assert body["limits"]["upload_bytes"] == 100_000
    assert ours == {
        "model_id": MODEL,
        "title": "photos",
        "scale": 4,
        "guided_by_prompt": False,
        "default_steps": 0,
        "licence": {"code": "Apache-2.0", "weights": "BSD-3-Clause"},
        "warm": True,
        "capacity": 1,
        "offers": [
            {
                "price_per_unit": 13,
                "pixels_per_unit": 2,
                "wei_per_input_pixel": 6.5,
                "usd_per_input_pixel": 6.5 * 3000 / 10**18,
                "warm": True,
                "capacity": 1,
            }
        ],
    }
    assert (foreign["model_id"], foreign["scale"], foreign["licence"]) == ("a/foreign", None, None)
    assert (foreign["warm"], foreign["capacity"]) == (False, 3)


async def test_probes(client: httpx2.AsyncClient, orchestrator: FakeOrchestrator) -> None:
    """Alive as long as it answers; ready while one offer is known."""
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.head("/livez")).status_code == 200
    ready = await client.get("/readyz")
    assert ready.json() == {"status": "ready", "reasons": [], "models": {"a/foreign": "cold", MODEL: "warm"}}

    await orchestrator.stop()
    async with asyncio.timeout(10):
        while (lost := await client.get("/readyz")).status_code == 200:
            await asyncio.sleep(0.02)

    assert lost.json()["status"] == "not ready"
    assert orchestrator.url in lost.json()["reasons"][0]
    assert int(lost.headers["Retry-After"]) > 0
    assert (await client.get("/livez")).status_code == 200


async def test_metrics(client: httpx2.AsyncClient) -> None:
    """Jobs, errors and stages, in Prometheus' text."""
    await client.post("/upscale", files={"image": ("a", png())})
    await client.post("/upscale", files={"image": ("a", b"x")})
    for number in range(3):
        await client.post("/upscale", files={"image": ("a", png())}, data={"model_id": f"made-up/{number}"})

    text = (await client.get("/metrics")).text

    assert "made-up" not in text
    assert 'fourfold_errors_total{blame="client",code="unknown_model",role="gateway"} 3.0' in text
    assert f'fourfold_job_seconds_count{{model_id="{MODEL}",role="gateway"}} 1.0' in text
    assert 'fourfold_peers{role="gateway",state="up"} 1.0' in text

    assert f'fourfold_jobs_total{{model_id="{MODEL}",outcome="succeeded",role="gateway"}} 1.0' in text
    assert 'fourfold_errors_total{blame="client",code="unsupported_format",role="gateway"} 1.0' in text
    for stage in ("submit", "verify", "store"):
        assert f'fourfold_stage_seconds_count{{model_id="{MODEL}",role="gateway",stage="{stage}"}} 1.0' in text
