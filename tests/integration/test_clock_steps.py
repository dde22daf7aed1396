"""The wall clock of a running gateway is set forward and back: results and jobs take no harm."""

import time
from pathlib import Path

import httpx2
import pytest

from fourfold.testing.fake_orchestrator import FakeOrchestrator
from fourfold.testing.pictures import png
from fourfold.testing.running_gateway import running_gateway

DAY_S = 86_400.0


@pytest.mark.parametrize("step_s", [-400 * DAY_S, -7_200.0, 7_200.0, 400 * DAY_S])
async def test_a_step_of_the_wall_clock(tmp_path: Path, step_s: float) -> None:
    """Forward, results expire; back, they live no longer than their time. New jobs are done either way."""
    offset_s = 0.0

    async with (
        FakeOrchestrator(tmp_path / "o") as orchestrator,
        running_gateway(tmp_path / "g", [orchestrator.url], wall_clock=lambda: time.time() + offset_s) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as client,
    ):

        async def upscale() -> str:
            reply = await client.post("/upscale", files={"image": ("a.png", png())}, data={"prompt": ""})
            assert reply.status_code == 200, reply.text
            return str(reply.json()["images"][0]["url"])

        before = await upscale()
        offset_s = step_s
        old = await client.get(before)
        new = await client.get(await upscale())

    assert (200 if step_s < 0 else 404) == old.status_code
    assert new.status_code == 200
    lifetime_s = int(new.headers["Cache-Control"].partition("max-age=")[2].partition(",")[0])
    assert lifetime_s <= gateway.settings.result_ttl_s
