"""What the gateway does when an orchestrator does its job badly, over real sockets."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from fourfold.testing.fake_orchestrator import FakeOrchestrator
from fourfold.testing.pictures import png, png_size
from fourfold.testing.running_gateway import RunningGateway, running_gateway

MODEL = "fourfold/realesrgan-x4plus"
IMAGE = {"image": ("a.png", png())}
FAULTS = [
    "busy",
    "crash",
    "out-of-memory",
    "cut",
    "garbage",
    "half",
    "wrong-size",
    "blank",
    "odd-seed",
    "oversize",
    "bad-token",
]


@asynccontextmanager
async def network(
    folder: Path, styles: Sequence[str] = ("fourfold",), **settings: object
) -> AsyncIterator[tuple[list[FakeOrchestrator], RunningGateway, httpx2.AsyncClient]]:
    """One orchestrator for each style, ranked in that order, a gateway and a client."""
    async with AsyncExitStack() as stack:
        orchestrators = [FakeOrchestrator(folder / f"o{n}", style=style) for n, style in enumerate(styles)]
        for rank, orchestrator in enumerate(orchestrators):
            orchestrator.models = [type(m)(m.model_id, price=(rank + 1, 1)) for m in orchestrator.models]
            await stack.enter_async_context(orchestrator)
        urls = [orchestrator.url for orchestrator in orchestrators]
        gateway = await stack.enter_async_context(running_gateway(folder / "g", urls, **settings))
        await gateway.discovery.first_round.wait()
        client = httpx2.AsyncClient(base_url=gateway.url, trust_env=False, timeout=60)
        yield orchestrators, gateway, await stack.enter_async_context(client)
        assert list(gateway.spool.iterdir()) == []


async def upscale(client: httpx2.AsyncClient) -> httpx2.Response:
    answer = await client.post("/upscale", files=IMAGE, data={"model_id": MODEL})
    if answer.status_code == 200:
        result = await client.get(answer.json()["images"][0]["url"])
        assert png_size(result.content) == (48, 36)
    return answer


def code_of(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize("style", ["fourfold", "livepeer-url", "livepeer-data"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_of_the_first_is_made_good_by_the_second(tmp_path: Path, style: str, fault: str) -> None:
    """The client gets its image, whatever the first orchestrator did, and in whichever protocol."""
    async with network(tmp_path, [style, "fourfold"]) as (orchestrators, _, client):
        orchestrators[0].script.extend([fault] * 3)
        answer = await upscale(client)
        tried = [len(o.jobs) for o in orchestrators]

    assert answer.status_code == 200, answer.text
    assert tried == [3 if fault == "bad-token" else 1, 1]
    seeds = {job.fields["seed"] for o in orchestrators for job in o.jobs}
    assert len(seeds) == 1


@pytest.mark.parametrize("fault", ["elsewhere", "missing"])
async def test_a_result_that_is_not_where_it_should_be(tmp_path: Path, fault: str) -> None:
    """An address on another host is not followed; one where nothing is leads to another orchestrator."""
    async with network(tmp_path, ["livepeer-url", "fourfold"]) as (orchestrators, _, client):
        orchestrators[0].script.append(fault)
        answer = await upscale(client)

    assert answer.status_code == 200, answer.text
    assert [len(o.jobs) for o in orchestrators] == [1, 1]


async def test_a_model_that_was_named_is_never_substituted(tmp_path: Path) -> None:
    """Not by an orchestrator either."""
    async with network(tmp_path, ["fourfold", "fourfold"]) as (orchestrators, _, client):
        orchestrators[0].script.append("other-model")
        answer = await upscale(client)

    assert answer.headers["Fourfold-Model"] == MODEL
    assert [len(o.jobs) for o in orchestrators] == [1, 1]


@pytest.mark.parametrize("style", ["fourfold", "livepeer-url"])
async def test_the_clients_fault_is_told_and_blames_nobody(tmp_path: Path, style: str) -> None:
    """A worker's 400 is the client's 400, at once."""
    async with network(tmp_path, [style, "fourfold"]) as (orchestrators, gateway, client):
        orchestrators[0].script.append("refuse")
        answer = await upscale(client)
        penalised = [offer.is_penalised for offer in gateway.discovery.offers()]

    assert code_of(answer) == (400, "invalid_parameter")
    assert [len(o.jobs) for o in orchestrators] == [1, 0]
    assert penalised == [False, False]


async def test_only_a_workers_fault_puts_an_orchestrator_behind(tmp_path: Path) -> None:
    """A crash does; being full does not."""
    async with network(tmp_path, ["fourfold", "fourfold"]) as (orchestrators, gateway, client):
        orchestrators[0].script.append("busy")
        await upscale(client)
        assert [o.is_penalised for o in gateway.discovery.offers()] == [False, False]
        orchestrators[0].script.append("crash")
        # The second one was quicker than the first has shown to be; whichever is asked first may crash.
        orchestrators[1].script.append("crash")
        await upscale(client)
        assert any(o.is_penalised for o in gateway.discovery.offers())


async def test_a_lone_orchestrator_whose_worker_crashed_delivers_in_the_end(tmp_path: Path) -> None:
    """The image comes by a second attempt, a little later."""
    async with network(tmp_path) as ((orchestrator,), _, client):
        orchestrator.script.extend(["crash", "busy", "busy"])
        answer = await upscale(client)

    assert answer.status_code == 200
    assert [job.behaviour for job in orchestrator.jobs] == ["crash", "busy", "busy", "ok"]
    assert len({job.job_id for job in orchestrator.jobs}) == 4


async def test_a_lone_orchestrator_that_crashes_twice(tmp_path: Path) -> None:
    """500 with the reason; the next request works."""
    async with network(tmp_path) as ((orchestrator,), _, client):
        orchestrator.script.extend(["crash", "crash"])
        assert code_of(await upscale(client)) == (500, "engine_crashed")
        assert (await upscale(client)).status_code == 200


async def test_a_full_network(tmp_path: Path) -> None:
    """503 with Retry-After, once the wait is over."""
    async with network(tmp_path, capacity_wait_s=0.6) as ((orchestrator,), _, client):
        orchestrator.script.extend(["busy"] * 50)
        answer = await upscale(client)

    assert code_of(answer) == (503, "insufficient_capacity")
    assert int(answer.headers["Retry-After"]) > 0
    assert len(orchestrator.jobs) == 3


async def test_a_job_waits_for_room(tmp_path: Path) -> None:
    """Rather than fail while somebody else's job is done."""
    async with network(tmp_path) as ((orchestrator,), _, client):
        orchestrator.script.extend(["busy", "busy"])
        answer = await upscale(client)

    assert answer.status_code == 200


async def test_a_deadline(tmp_path: Path) -> None:
    """504, and the orchestrator is left and told."""
    async with network(tmp_path, job_deadline_s=0.5) as ((orchestrator,), _, client):
        orchestrator.script.append("hang")
        started_s = time.monotonic()
        answer = await upscale(client)
        took_s = time.monotonic() - started_s
        await _until(lambda: orchestrator.jobs[0].was_left and orchestrator.cancelled)

    assert code_of(answer) == (504, "deadline_exceeded")
    assert answer.json()["error"]["retryable"] is False
    assert took_s < 5
    assert orchestrator.cancelled == [orchestrator.jobs[0].job_id]


async def test_a_slow_result_is_bounded_by_the_deadline(tmp_path: Path) -> None:
    """A byte at a time is no answer."""
    async with network(tmp_path, job_deadline_s=0.5) as ((orchestrator,), _, client):
        orchestrator.script.append("slow")
        answer = await upscale(client)
        await _until(lambda: orchestrator.jobs[0].was_left)

    assert code_of(answer) == (504, "deadline_exceeded")


@pytest.mark.parametrize("style", ["fourfold", "livepeer-url"])
async def test_a_client_that_leaves_cancels_its_job(tmp_path: Path, style: str) -> None:
    """The connection to the orchestrator closes, and one of ours is told besides."""
    async with network(tmp_path, [style]) as ((orchestrator,), gateway, client):
        orchestrator.script.append("hang")
        request = asyncio.create_task(upscale(client))
        await _until(lambda: orchestrator.jobs)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await _until(lambda: orchestrator.jobs[0].was_left and not gateway.board.jobs())
        if style == "fourfold":
            await _until(lambda: orchestrator.cancelled)
        metrics = gateway.metrics.exposition().decode()
        assert (await upscale(client)).status_code == 200

    assert orchestrator.cancelled == ([orchestrator.jobs[0].job_id] if style == "fourfold" else [])
    assert 'outcome="cancelled"' in metrics


async def test_a_client_that_leaves_in_its_upload(tmp_path: Path) -> None:
    """Nothing is left of it."""
    async with network(tmp_path) as (_, gateway, client):
        host, port = gateway.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /upscale HTTP/1.1\r\nHost: g\r\nContent-Length: 5000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n\x89PNG'
        )
        await writer.drain()
        await _until(gateway.board.jobs)
        writer.close()
        await _until(lambda: not gateway.board.jobs())
        assert (await upscale(client)).status_code == 200


async def test_an_orchestrator_that_goes_away_in_mid_job(tmp_path: Path) -> None:
    """The other one delivers."""
    async with network(tmp_path, ["fourfold", "fourfold"]) as (orchestrators, _, client):
        orchestrators[0].script.append("hang")
        request = asyncio.create_task(upscale(client))
        await _until(lambda: orchestrators[0].jobs)
        await orchestrators[0].stop()
        answer = await request

    assert answer.status_code == 200
    assert len(orchestrators[1].jobs) == 1


async def test_a_lone_orchestrator_that_restarts_in_mid_job(tmp_path: Path) -> None:
    """With a new certificate and without its old tokens, as go-livepeer does; the client gets its image."""
    async with network(tmp_path) as ((orchestrator,), gateway, client):
        orchestrator.script.append("hang")
        request = asyncio.create_task(upscale(client))
        await _until(lambda: orchestrator.jobs)
        await orchestrator.stop()
        orchestrator.forget_tokens()
        await _until(lambda: not gateway.discovery.offers())
        await orchestrator.start()
        answer = await request

    assert answer.status_code == 200


async def test_a_new_certificate_between_two_jobs(tmp_path: Path) -> None:
    """It is fetched once more, even before discovery has noticed."""
    async with network(tmp_path, discovery_interval_s=3600.0) as ((orchestrator,), _, client):
        await orchestrator.stop()
        orchestrator.forget_tokens()
        await orchestrator.start()
        answer = await upscale(client)

    assert answer.status_code == 200
    assert [job.behaviour for job in orchestrator.jobs] == ["bad-token", "ok"]


async def test_a_new_certificate_where_pins_are_strict(tmp_path: Path) -> None:
    """It is refused, for jobs and for quotes."""
    async with network(tmp_path, pin="strict", capacity_wait_s=0.5) as ((orchestrator,), gateway, client):
        assert (await upscale(client)).status_code == 200
        await orchestrator.stop()
        await orchestrator.start()
        answer = await upscale(client)
        await _until(lambda: not gateway.discovery.offers())
        ready = await client.get("/readyz")

    assert code_of(answer) in {(502, "unreachable"), (503, "no_orchestrator")}
    assert len(orchestrator.jobs) == 1
    assert "gateway.pin is strict" in ready.json()["reasons"][0]


async def test_tokens_near_their_end_are_replaced(tmp_path: Path) -> None:
    """In the last tenth of their life, before they are used."""
    async with network(tmp_path, discovery_interval_s=3600.0) as ((orchestrator,), _, client):
        orchestrator.token_life_s = 100
        orchestrator.forget_tokens()
        await upscale(client)  # refused once, renewed
        asked = orchestrator.questions
        await upscale(client)
        assert orchestrator.questions == asked
        orchestrator.token_life_s = -1
        orchestrator.forget_tokens()
        await upscale(client)
        asked = orchestrator.questions
        await upscale(client)
        assert orchestrator.questions > asked


async def _until(condition: object, *, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)
