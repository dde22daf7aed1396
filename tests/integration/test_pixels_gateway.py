"""Formats, sizes, depth and fidelity through a real gateway over real sockets, to an orchestrator that is scripted."""

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from fourfold.imaging import writing
from fourfold.testing.fake_jobs import Style
from fourfold.testing.fake_orchestrator import FakeOrchestrator
from fourfold.testing.running_gateway import RunningGateway, running_gateway

MODEL = "fourfold/realesrgan-x4plus"


def picture(mode: str = "RGB", kind: str = "png", size: tuple[int, int] = (12, 9), **options: object) -> bytes:
    image = Image.new("RGB", size)
    image.putdata([(x * 20 % 256, y * 25 % 256, 90) for y in range(size[1]) for x in range(size[0])])
    image = image.convert(mode)
    if mode == "RGBA":
        image.putalpha(120)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@asynccontextmanager
async def network(
    folder: Path, style: Style = "fourfold", **settings: object
) -> AsyncIterator[tuple[FakeOrchestrator, RunningGateway, httpx2.AsyncClient]]:
    async with (
        FakeOrchestrator(folder / "o", style=style) as orchestrator,
        running_gateway(folder / "g", [orchestrator.url], **settings) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        yield orchestrator, gateway, client


async def post(client: httpx2.AsyncClient, data: bytes, accept: str = "*/*", **form: str) -> httpx2.Response:
    return await client.post(
        "/upscale", files={"image": ("a", data)}, data={"model_id": MODEL, **form}, headers={"Accept": accept}
    )


async def test_a_plain_picture_is_encoded_once_and_by_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway writes no picture at all; with alpha it writes the hop and the result."""
    written: list[str] = []
    save = writing._save
    monkeypatch.setattr(
        writing, "_save", lambda image, saver, *rest: (written.append(saver), save(image, saver, *rest))
    )
    async with network(tmp_path) as (_, _, client):
        plain = await post(client, picture())
        assert (plain.status_code, written) == (200, [])
        await post(client, picture(kind="jpeg"))
        assert written == []
        await post(client, picture("RGBA"))
        assert written == ["pngsave", "pngsave"]


async def test_the_answer_says_what_was_done(tmp_path: Path) -> None:
    """An extra key beside Livepeer's, and the same in a header."""
    exif = Image.Exif()
    exif[0x0112] = 6
    async with network(tmp_path) as (_, _, client):
        answer = await post(client, picture(kind="jpeg", exif=exif), scale="2")

    body = answer.json()
    assert list(body) == ["images", "fidelity"] and list(body["images"][0]) == ["nsfw", "seed", "url"]
    said = body["fidelity"]
    assert json.loads(answer.headers["Fourfold-Fidelity"]) == said
    assert said["input"] | {"colour": "rgb"} == {
        "format": "jpeg", "width": 9, "height": 12, "bits": 8, "colour": "rgb", "frames": 1,
    }  # fmt: skip
    assert said["output"] == {"format": "png", "width": 18, "height": 24, "bits": 8}
    assert (said["oriented"], said["resampled"], said["metadata_kept"]) == (6, True, ["exif"])
    assert 0 < said["lr_psnr_db"] <= 99


@pytest.mark.parametrize(
    ("kind", "suffix"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp"), ("avif", "avif"), ("tiff", "tif")]
)
async def test_a_format_is_asked_for_by_field_or_by_accept(tmp_path: Path, kind: str, suffix: str) -> None:
    """By field: its address, in JSON. By Accept: the bytes themselves, the facts in headers."""
    async with network(tmp_path) as (_, _, client):
        answer = await post(client, picture(), output_format=kind)
        url = answer.json()["images"][0]["url"]
        fetched = await client.get(url)
        direct = await post(client, picture(), f"image/{kind}")
        assert url.endswith(f".{suffix}")
        assert direct.headers["Content-Location"].startswith("http")

    assert fetched.headers["Content-Type"] == direct.headers["Content-Type"] == f"image/{kind}"
    assert direct.headers["Fourfold-Nsfw"] == "false" and direct.headers["Fourfold-Seed"].isdigit()
    assert json.loads(direct.headers["Fourfold-Fidelity"])["output"]["format"] == kind
    for data in (fetched.content, direct.content):
        with Image.open(io.BytesIO(data)) as result:
            assert ((result.format or "").lower(), result.size) == (kind, (48, 36))


@pytest.mark.parametrize(
    ("form", "status", "code", "match"),
    [
        ({"output_format": "gif"}, 400, "invalid_parameter", "output_format must be one of"),
        ({"quality": "much"}, 422, "validation_error", "valid integer"),
        ({"width": "49"}, 400, "invalid_parameter", "at most 48 x 36"),
        ({"scale": "0.5"}, 400, "invalid_parameter", "from 1 to 4"),
    ],
)
async def test_what_cannot_be_is_refused_before_anybody_works(tmp_path: Path, form, status, code, match) -> None:
    """The orchestrator hears nothing of it."""
    async with network(tmp_path) as (orchestrator, _, client):
        answer = await post(client, picture(), **form)
        jobs = len(orchestrator.jobs)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert match in answer.json()["error"]["message"]
    assert jobs == 0


async def test_a_picture_too_wide_for_webp_is_refused_before_the_work(tmp_path: Path) -> None:
    """16,383 pixels are all that the format holds."""
    async with network(tmp_path) as (orchestrator, _, client):
        answer = await post(client, picture(size=(4096, 1)), output_format="webp")
        jobs = len(orchestrator.jobs)

    assert (answer.status_code, jobs) == (400, 0)
    assert "16383" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("style", "jobs"), [("livepeer-url", 1), ("livepeer-data", 1), ("fourfold", 2)])
async def test_a_peer_that_knows_no_tileable_is_sent_the_edges(tmp_path: Path, style: Style, jobs: int) -> None:
    """Livepeer's at once; ours with a Livepeer runner once it has not said that it did it. The fee counts them."""
    async with network(tmp_path, style) as (orchestrator, _, client):
        answer = await post(client, picture("RGBA"), "image/png", tileable="true")

    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as result:
        assert (result.size, result.mode) == ((48, 36), "RGBA")
    sent = [Image.open(io.BytesIO(dict(job.parts)["image"])).size for job in orchestrator.jobs]
    assert sent == [(12, 9), (204, 201)][-jobs:]
    assert "tileable" not in dict(orchestrator.jobs[-1].parts)
    assert answer.headers["Fourfold-Input-Pixels"] == str(204 * 201)
    assert json.loads(answer.headers["Fourfold-Fidelity"])["padded_px"] == 96
