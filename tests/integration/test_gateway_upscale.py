"""``POST /upscale`` through a real gateway, over real sockets, to an orchestrator that is scripted."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from fourfold.errors import walk
from fourfold.testing.fake_orchestrator import FakeModel, FakeOrchestrator
from fourfold.testing.pictures import png, png_size
from fourfold.testing.running_gateway import RunningGateway, running_gateway

MODEL = "fourfold/realesrgan-x4plus"
PRICE = 6_357_828
STYLES = ["fourfold", "livepeer-url", "livepeer-data"]


@asynccontextmanager
async def network(
    folder: Path, *, models: object = (MODEL,), style: str = "fourfold", **settings: object
) -> AsyncIterator[tuple[FakeOrchestrator, RunningGateway, httpx2.AsyncClient]]:
    """One orchestrator, one gateway, one client."""
    async with (
        FakeOrchestrator(folder / "o", models=models, style=style) as orchestrator,
        running_gateway(folder / "g", [orchestrator.url], **settings) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as client,
    ):
        yield orchestrator, gateway, client
        assert list(gateway.spool.iterdir()) == []
        assert gateway.board.jobs() == []


def image(content: bytes | None = None) -> dict[str, tuple[str, bytes]]:
    return {"image": ("a.png", png() if content is None else content)}


def check_error(answer: httpx2.Response, status: int, code: str) -> str:
    """Assert design rule 3 on *answer*; return the message."""
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    body = answer.json()
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Request-ID"] == body["error"]["request_id"]
    assert set(body) == {"detail", "error"}
    assert set(body["error"]) == {"message", "code", "request_id", "retryable"}
    if status == 422:
        (told,) = body["detail"]
        assert body["error"]["message"] == ": ".join([*told["loc"][1:], told["msg"]])
    else:
        assert body["detail"] == {"msg": body["error"]["message"]}
    if status in (429, 503):
        assert int(answer.headers["Retry-After"]) > 0
        assert body["error"]["retryable"] is True
    return body["error"]["message"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("path", ["/upscale", "/upscale/", "/api/generate/upscale", "/api/beta/generate/upscale/"])
async def test_an_image_comes_back_four_times_larger(tmp_path: Path, style: str, path: str) -> None:
    """At every alias, from our orchestrator and from both kinds of Livepeer's."""
    async with network(tmp_path, style=style) as (_, _, client):
        answer = await client.post(path, files=image(), data={"model_id": MODEL, "seed": "7"})
        assert answer.status_code == 200, answer.text
        (found,) = answer.json()["images"]
        result = await client.get(found["url"])

    assert list(found) == ["nsfw", "seed", "url"]
    assert (found["nsfw"], found["seed"]) == (False, 7)
    assert png_size(result.content) == (48, 36)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Fourfold-Model"] == MODEL
    assert answer.headers["Fourfold-Input-Pixels"] == "108"
    assert answer.headers["Fourfold-Fee-Wei"] == str(108 * PRICE)
    assert answer.headers["Fourfold-Safety"] == "clean"
    assert int(answer.headers["Fourfold-Duration-Ms"]) >= 0
    assert len(answer.headers["X-Request-ID"]) == 32


async def test_the_job_request_is_livepeers(tmp_path: Path) -> None:
    """Parts in Livepeer's order, its headers, and ours besides."""
    async with network(tmp_path, style="livepeer-url") as (orchestrator, _, client):
        fields = {"num_inference_steps": "20", "seed": "0", "safety_check": "false", "model_id": MODEL, "prompt": "häß"}
        answer = await client.post("/upscale", files=image(), data=fields, headers={"X-Request-ID": "mine-1"})
        assert answer.status_code == 200
        (job,) = orchestrator.jobs

    names = [name for name, _ in job.parts]
    assert names == ["image", "prompt", "model_id", "safety_check", "seed", "num_inference_steps"]
    assert job.fields == {
        "prompt": "häß",
        "model_id": MODEL,
        "safety_check": "false",
        "seed": "0",
        "num_inference_steps": "20",
    }
    assert job.image == png()
    assert job.headers["authorization"] == "Livepeer-AI-Worker-1.0"
    assert job.headers["livepeer-payment"] == ""
    assert job.segment.manifestId == f"30_{MODEL}".encode()
    assert job.headers["fourfold-protocol"] == "1"
    assert job.headers["x-request-id"] == answer.headers["X-Request-ID"] == "mine-1"
    assert answer.headers["Fourfold-Safety"] == "not-checked"


@pytest.mark.parametrize(("style", "expected"), [("fourfold", ""), ("livepeer-url", " ")])
async def test_an_absent_prompt(tmp_path: Path, style: str, expected: str) -> None:
    """Ours gets it as it is; Livepeer's runner refuses an empty one and gets a space."""
    async with network(tmp_path, style=style) as (orchestrator, _, client):
        answer = await client.post("/upscale", files=image())

    assert answer.status_code == 200
    assert orchestrator.jobs[0].fields["prompt"] == expected


async def test_unsafe_pictures_are_flagged(tmp_path: Path) -> None:
    """Flagged, and delivered."""
    async with network(tmp_path) as (orchestrator, _, client):
        orchestrator.nsfw = True
        answer = await client.post("/upscale", files=image())

    assert answer.json()["images"][0]["nsfw"] is True
    assert answer.headers["Fourfold-Safety"] == "flagged"


@pytest.mark.parametrize("seed", ["0", "1", str(2**53 - 1)])
async def test_seeds_at_the_ends_of_the_range(tmp_path: Path, seed: str) -> None:
    """Zero is a seed, and so is the largest that JavaScript takes."""
    async with network(tmp_path) as (orchestrator, _, client):
        answer = await client.post("/upscale", files=image(), data={"seed": seed})

    assert answer.json()["images"][0]["seed"] == int(seed)
    assert orchestrator.jobs[0].fields["seed"] == seed


async def test_a_seed_is_drawn_and_told(tmp_path: Path) -> None:
    """32 bits, and the one that went out is the one that comes back."""
    async with network(tmp_path) as (orchestrator, _, client):
        seeds = [(await client.post("/upscale", files=image())).json()["images"][0]["seed"] for _ in range(3)]

    assert [int(job.fields["seed"]) for job in orchestrator.jobs] == seeds
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"seed": str(2**53)}, 400, "invalid_parameter"),
        ({"seed": "-1"}, 400, "invalid_parameter"),
        ({"seed": "abc"}, 422, "validation_error"),
        ({"seed": "1.5"}, 422, "validation_error"),
        ({"seed": "9" * 400}, 422, "validation_error"),
        ({"num_inference_steps": "0"}, 400, "invalid_parameter"),
        ({"num_inference_steps": "151"}, 400, "invalid_parameter"),
        ({"num_inference_steps": "x"}, 422, "validation_error"),
        ({"safety_check": "maybe"}, 422, "validation_error"),
        ({"prompt": "x" * 2001}, 400, "invalid_parameter"),
        ({"prompt": "x" * 70_000}, 422, "validation_error"),
        ({"model_id": "no/such"}, 400, "unknown_model"),
    ],
)
async def test_fields_that_are_refused(tmp_path: Path, fields: dict[str, str], status: int, code: str) -> None:
    """Malformed 422, refused 400; no orchestrator hears of it."""
    async with network(tmp_path) as (orchestrator, _, client):
        answer = await client.post("/upscale", files=image(), data=fields)

    check_error(answer, status, code)
    if status == 422:
        assert answer.json()["detail"][0]["loc"] == ["body", *fields]
    assert orchestrator.jobs == []


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": "", "num_inference_steps": "", "safety_check": "", "model_id": "", "prompt": ""},
        {"num_inference_steps": "150", "prompt": "x" * 2000},
        {"upscale_factor": "9", "": "?", "IMAGE": "no"},
        {"seed": " 5 ", "safety_check": "ON"},
    ],
)
async def test_fields_that_pass(tmp_path: Path, fields: dict[str, str]) -> None:
    """Empty optional ones count as absent, unknown ones are ignored, the limits are inside."""
    async with network(tmp_path) as (_, _, client):
        answer = await client.post("/upscale", files=image(), data=fields)

    assert answer.status_code == 200, answer.text


async def test_the_first_of_repeated_fields_wins(tmp_path: Path) -> None:
    """As in go-livepeer."""
    files = [
        ("seed", (None, b"1")),
        ("image", ("first", png(5, 4))),
        ("seed", (None, b"2")),
        ("image", ("second", b"not a picture")),
    ]
    async with network(tmp_path) as (orchestrator, _, client):
        answer = await client.post("/upscale", files=files)

    assert answer.status_code == 200, answer.text
    assert orchestrator.jobs[0].image == png(5, 4)
    assert orchestrator.jobs[0].fields["seed"] == "1"


@pytest.mark.parametrize(
    "part",
    [
        ("../../etc/passwd", png(), "text/html"),
        ("x.jpg", png(), "image/jpeg"),
        ("", png(), "application/octet-stream"),
        ('q"uote\r\n.png', png(), "image/png"),
        ("blob", png(), "not a type"),
    ],
)
async def test_names_and_types_of_the_file_may_lie(tmp_path: Path, part: tuple[str, bytes, str]) -> None:
    """Bytes count."""
    async with network(tmp_path) as (_, _, client):
        answer = await client.post("/upscale", files={"image": part})

    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "invalid_image"),
        (png()[:60], 400, "invalid_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unsupported_format"),
        (b"hello", 415, "unsupported_format"),
    ],
)
async def test_pictures_that_are_refused(tmp_path: Path, content: bytes, status: int, code: str) -> None:
    """The client's fault, told at once; no orchestrator hears of it and none is blamed."""
    async with network(tmp_path) as (orchestrator, gateway, client):
        answer = await client.post("/upscale", files=image(content))
        assert not any(offer.is_penalised for offer in gateway.discovery.offers())

    check_error(answer, status, code)
    assert orchestrator.jobs == []


async def test_a_picture_with_too_many_pixels(tmp_path: Path) -> None:
    """Refused by its header."""
    async with network(tmp_path, limits={"input_pixels": 100}) as (_, _, client):
        answer = await client.post("/upscale", files=image())

    check_error(answer, 413, "image_too_large")


async def test_a_missing_image(tmp_path: Path) -> None:
    """FastAPI's list form, to the letter."""
    async with network(tmp_path) as (_, _, client):
        answer = await client.post("/upscale", data={"prompt": "x"}, files={"other": b"x"})

    check_error(answer, 422, "validation_error")
    expected = [{"type": "missing", "loc": ["body", "image"], "msg": "Field required", "input": None}]
    assert answer.json()["detail"] == expected


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b'{"image": 1}', "application/json"),
        (b"image=1", "application/x-www-form-urlencoded"),
        (b"", ""),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"--x--", "multipart/form-data"),
        (b"garbage", "multipart/form-data; boundary=x"),
    ],
)
async def test_bodies_that_are_no_form(tmp_path: Path, content: bytes, content_type: str) -> None:
    """422, and never a dropped connection."""
    async with network(tmp_path) as (_, _, client):
        answer = await client.post("/upscale", content=content, headers={"Content-Type": content_type})

    check_error(answer, 422, "validation_error")


async def test_a_known_model_that_nobody_offers(tmp_path: Path) -> None:
    """503 with what is on offer; Livepeer's default model is a known one."""
    async with network(tmp_path) as (_, _, client):
        answer = await client.post(
            "/upscale", files=image(), data={"model_id": "stabilityai/stable-diffusion-x4-upscaler"}
        )

    assert MODEL in check_error(answer, 503, "no_orchestrator")


async def test_no_orchestrator_at_all(tmp_path: Path) -> None:
    """503 at once, where Livepeer's gateway drops the connection."""
    async with (
        running_gateway(tmp_path / "g", [], wait_for_offer=False) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        check_error(await client.post("/upscale", files=image()), 503, "no_orchestrator")
        check_error(await client.post("/upscale", files=image(), data={"model_id": "x/y"}), 400, "unknown_model")


async def test_a_price_above_the_ceiling(tmp_path: Path) -> None:
    """503 with the nearest price."""
    async with network(tmp_path, max_price_usd=1e-9) as (orchestrator, _, client):
        answer = await client.post("/upscale", files=image())

    assert str(PRICE) in check_error(answer, 503, "price_above_max")
    assert orchestrator.jobs == []


async def test_a_peer_without_prices_is_free(tmp_path: Path) -> None:
    """As go-livepeer is off-chain, whatever the ceiling."""
    models = [FakeModel(MODEL, price=None)]
    async with network(tmp_path, models=models, style="livepeer-url", max_price_usd=1e-9) as (_, _, client):
        answer = await client.post("/upscale", files=image())

    assert answer.headers["Fourfold-Fee-Wei"] == "0"


async def test_the_default_model(tmp_path: Path) -> None:
    """Livepeer's where it is offered; an empty model_id is none."""
    models = ["a/first", MODEL, "stabilityai/stable-diffusion-x4-upscaler"]
    async with network(tmp_path, models=models) as (_, _, client):
        answer = await client.post("/upscale", files=image(), data={"model_id": ""})

    assert answer.headers["Fourfold-Model"] == "stabilityai/stable-diffusion-x4-upscaler"


async def test_alpha_comes_back(tmp_path: Path) -> None:
    """A picture that is not canonical goes out as RGB and comes back with what it had."""
    import io

    from PIL import Image

    picture = Image.new("RGBA", (6, 5), (200, 10, 20, 128))
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    async with network(tmp_path) as (orchestrator, _, client):
        answer = await client.post("/upscale", files=image(buffer.getvalue()))
        result = await client.get(answer.json()["images"][0]["url"])

    assert Image.open(io.BytesIO(orchestrator.jobs[0].image)).mode == "RGB"
    back = Image.open(io.BytesIO(result.content))
    assert (back.mode, back.size, back.getpixel((3, 3))) == ("RGBA", (24, 20), (200, 10, 20, 128))


async def test_the_workers_bytes_are_passed_on_untouched(tmp_path: Path) -> None:
    """Encoded bytes are made once."""
    async with network(tmp_path, style="livepeer-url") as (orchestrator, _, client):
        answer = await client.post("/upscale", files=image())
        result = await client.get(answer.json()["images"][0]["url"])

    assert result.content in orchestrator._results.values()


async def test_many_at_once(tmp_path: Path) -> None:
    """Requests do not get each other's answers."""
    async with network(tmp_path) as (_, _, client):

        async def one(seed: int) -> tuple[int, tuple[int, int]]:
            answer = await client.post("/upscale", files=image(png(3 + seed, 4)), data={"seed": str(seed)})
            found = answer.json()["images"][0]
            return found["seed"], png_size((await client.get(found["url"])).content)

        answers = await asyncio.gather(*(one(seed) for seed in range(12)))

    assert answers == [(seed, (4 * (3 + seed), 16)) for seed in range(12)]


async def test_a_job_too_many(tmp_path: Path) -> None:
    """429 while the others go on."""
    async with network(tmp_path, max_jobs=1) as (orchestrator, gateway, client):
        orchestrator.script.append("hang")
        first = asyncio.create_task(client.post("/upscale", files=image()))
        while not orchestrator.jobs:
            await asyncio.sleep(0.01)
        check_error(await client.post("/upscale", files=image()), 429, "queue_full")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        while gateway.board.jobs():
            await asyncio.sleep(0.01)
        assert (await client.post("/upscale", files=image())).status_code == 200


async def test_a_gateway_that_drains(tmp_path: Path) -> None:
    """New requests are sent away with 503; the readiness probe says so."""
    async with network(tmp_path) as (_, gateway, client):
        assert await gateway.board.drain(1.0)
        check_error(await client.post("/upscale", files=image()), 503, "shutting_down")
        ready = await client.get("/readyz")

    assert (ready.status_code, ready.json()["reasons"]) == (503, ["shutting down"])


async def test_a_job_that_outlasts_the_drain_is_answered(tmp_path: Path) -> None:
    """Its client reads why, as JSON, and its orchestrator is told that nobody waits any more."""
    async with network(tmp_path) as (orchestrator, gateway, client):
        orchestrator.script.append("hang")
        waiting = asyncio.create_task(client.post("/upscale", files=image()))
        while not orchestrator.jobs:
            await asyncio.sleep(0.01)
        assert await gateway.board.drain(0.01) is False
        answer = await waiting

    check_error(answer, 503, "shutting_down")
    assert answer.headers["Retry-After"]
    assert orchestrator.jobs[0].was_left


def test_every_code_of_the_tree_is_unique() -> None:
    """Codes are what clients go by."""
    codes = [cls.code for cls in walk()]

    assert len(codes) == len(set(codes)), json.dumps(codes)
