"""One image through a real gateway, over real sockets, to an orchestrator that is scripted."""

import io
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from fourfold.testing.fake_orchestrator import FakeOrchestrator
from fourfold.testing.running_gateway import running_gateway

MODEL = "fourfold/realesrgan-x4plus"


def png(width: int = 12, height: int = 9) -> bytes:
    image = Image.new("RGB", (width, height))
    image.putdata([(x * 20 % 256, y * 25 % 256, 90) for y in range(height) for x in range(width)])
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize("style", ["fourfold", "livepeer-url", "livepeer-data"])
async def test_an_image_comes_back_four_times_larger(tmp_path: Path, style: str) -> None:
    async with (
        FakeOrchestrator(tmp_path / "o", style=style) as orchestrator,
        running_gateway(tmp_path / "g", [orchestrator.url]) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        answer = await client.post("/upscale", files={"image": ("a.png", png())}, data={"model_id": MODEL, "seed": "7"})
        assert answer.status_code == 200, answer.text
        (image,) = answer.json()["images"]
        result = await client.get(image["url"])

    assert list(image) == ["nsfw", "seed", "url"]
    assert image["seed"] == 7
    assert Image.open(io.BytesIO(result.content)).size == (48, 36)
    assert answer.headers["Fourfold-Model"] == MODEL
    assert answer.headers["Fourfold-Input-Pixels"] == "108"
    assert str(108 * 6_357_828) == answer.headers["Fourfold-Fee-Wei"]
    assert list(gateway.spool.iterdir()) == []
