"""When a worker lets a job down: what its gateway is told, what is tried again, and that nothing stays held."""

import asyncio
import contextlib
import json

import pytest

from fourfold.orchestrator.models import ModelConfig
from fourfold.protocol import wire

MODEL = "stabilityai/stable-diffusion-x4-upscaler"


class Socket:
    """A worker that is no HTTP server: healthy when asked, and then the test decides what happens to the connection."""

    def __init__(self, behave):
        self.behave = behave
        self.jobs = 0

    async def connected(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"POST"):
                self.jobs += 1
                await self.behave(reader, writer)
            elif head.startswith(b"GET /health"):
                body = b'{"status": "OK"}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
            else:
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
        writer.transport.abort()


@pytest.fixture
def raw_worker():
    """Run a :class:`Socket` while a context lasts; yields it and its URL."""

    @contextlib.asynccontextmanager
    async def run(behave):
        worker = Socket(behave)
        server = await asyncio.start_server(worker.connected, "127.0.0.1", 0)
        try:
            yield worker, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            await server.wait_closed()

    return run


async def close(reader, writer):
    """Take the request and hang up."""
    await reader.read(100_000)


async def half(reader, writer):
    """Begin to answer, then hang up."""
    await reader.read(100_000)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n\x89PNG\r\n\x1a\n")
    await writer.drain()


async def garbage(reader, writer):
    """Answer with what is no HTTP."""
    await reader.read(100_000)
    writer.write(b"\0\xff\0\xff\r\n\r\n")
    await writer.drain()


async def hang(reader, writer):
    """Never answer."""
    while await reader.read(100_000):
        pass


DETAIL_400 = {"detail": {"msg": "Error during model execution: too dark."}}
DETAIL_422 = {"detail": [{"type": "missing", "loc": ["body", "prompt"], "msg": "Field required", "input": None}]}


@pytest.mark.parametrize(
    ("status", "body", "text", "code"),
    [
        (
            400,
            DETAIL_400,
            "upscale container returned 400: Error during model execution: too dark.",
            "invalid_parameter",
        ),
        (422, DETAIL_422, "upscale container returned 400: prompt: Field required", "validation_error"),
        (
            401,
            {"detail": {"msg": "Invalid bearer token."}},
            "upscale container returned 500: the worker ref",
            "worker_failed",
        ),
        (
            500,
            {"detail": {"msg": "Out of memory error. Try"}},
            "upscale container returned 500: Out of m",
            "out_of_memory",
        ),
        (
            500,
            {"detail": {"msg": "Upscale pipeline error."}},
            "upscale container returned 500: the work",
            "worker_failed",
        ),
        (500, "Internal Server Error", "upscale container returned 500: the worker returned 500: Int", "worker_failed"),
        (503, {"detail": {"msg": "busy"}}, "insufficient capacity", "insufficient_capacity"),
        (200, "garbage", "upscale container returned 500: expected the worker to answer with an image", "bad_result"),
        (200, {"images": []}, "upscale container returned 500: expected the worker", "bad_result"),
        (
            200,
            {"images": [{"url": "data:image/png;base64,iVBORw0KGgo=", "seed": 1}]},
            "upscale container",
            "bad_result",
        ),
    ],
)
async def test_a_livepeer_runners_failure(start, livepeer_runner, make_refusal, status, body, text, code):
    """Each of its answers, as a Livepeer gateway and one of ours hear of it; the slot is free afterwards."""
    livepeer_runner.answer = make_refusal(status, body)
    async with start(livepeer_runner.url) as running:
        livepeers, ours = await running.upscale(ours=False), await running.upscale()

        assert livepeers.status_code == 500
        assert livepeers.text.startswith(text)
        assert ours.headers["Fourfold-Error"] == code
        await running.until_nothing_held()
        livepeer_runner.answer = None
        assert (await running.upscale()).status_code == 200


async def test_a_refusal_of_the_input_is_not_tried_again(start, livepeer_runner, make_refusal):
    """The next worker would say the same."""
    livepeer_runner.answer = make_refusal(400, DETAIL_400)
    async with start(livepeer_runner.url) as running:
        reply = await running.upscale()

        assert (reply.status_code, len(livepeer_runner.jobs)) == (400, 1)


async def test_our_workers_codes_pass_through(start, our_worker, make_refusal):
    """From the worker to a gateway of ours."""
    our_worker.answer = make_refusal(
        413, {"detail": {"msg": "too many pixels"}}, {wire.ERROR_HEADER: "image_too_large"}
    )
    async with start(our_worker.url) as running:
        ours, livepeers = await running.upscale(), await running.upscale(ours=False)

        assert (ours.status_code, ours.headers["Fourfold-Error"]) == (413, "image_too_large")
        assert ours.json()["error"]["message"] == "too many pixels"
        assert livepeers.text == "upscale container returned 400: too many pixels\n"


async def test_our_worker_without_its_facts_is_a_bad_result(start, our_worker, make_refusal, make_png):
    """A seed that was not told cannot be repeated."""
    from starlette.responses import Response

    async def answer(_):
        return Response(make_png(32, 24), media_type="image/png")

    our_worker.answer = answer
    async with start(our_worker.url) as running:
        reply = await running.upscale()

        assert (reply.status_code, reply.headers["Fourfold-Error"]) == (502, "bad_result")
        await running.until_nothing_held()


async def test_a_result_beyond_the_limit_is_a_bad_result(start, our_worker):
    """Whatever a worker sends, the disk is not filled."""
    async with start(our_worker.url) as running:
        running.workers._max_result_bytes = 50
        reply = await running.upscale()

        assert reply.headers["Fourfold-Error"] == "bad_result"
        await running.until_nothing_held()


@pytest.mark.parametrize("behave", [close, half, garbage], ids=lambda behave: behave.__name__)
async def test_a_worker_that_drops_the_connection_is_tried_once_more(start, raw_worker, behave):
    """It answers its health check again, so it gets one more chance; then the gateway is told."""
    async with raw_worker(behave) as (worker, url), start(url) as running:
        ours = await running.upscale()
        await running.workers.wait_ready(MODEL)
        livepeers = await running.upscale(ours=False)

        assert (ours.status_code, ours.headers["Fourfold-Error"]) == (502, "unreachable")
        assert (livepeers.status_code, livepeers.text) == (500, "no workers can process job requested\n")
        assert worker.jobs == 4
        await running.until_nothing_held()


async def test_a_worker_that_hangs_is_given_up_at_the_deadline(start, raw_worker):
    """The deadline holds for everything together, and it is not tried again."""
    async with raw_worker(hang) as (worker, url), start(url, worker_timeout_s=0.3) as running:
        ours = await running.upscale()
        livepeers = await running.upscale(ours=False)

        assert (ours.status_code, ours.headers["Fourfold-Error"]) == (504, "deadline_exceeded")
        assert (livepeers.status_code, livepeers.text) == (500, "Remote worker took too long\n")
        assert worker.jobs == 2
        await running.until_nothing_held()


async def test_a_failing_worker_is_replaced_by_another(start, livepeer_runner, our_worker, make_refusal):
    """Whichever is asked first, the job is done by the one that can."""
    livepeer_runner.answer = make_refusal(500, {"detail": {"msg": "Upscale pipeline error."}})
    async with start(livepeer_runner.url, our_worker.url) as running:
        replies = [await running.upscale() for _ in range(4)]

        assert [reply.status_code for reply in replies] == [200] * 4
        assert len(our_worker.jobs) == 4
        await running.until_nothing_held()


async def test_a_busy_worker_is_replaced_by_another(start, livepeer_runner, our_worker, make_refusal):
    """It works for somebody else, too."""
    livepeer_runner.answer = make_refusal(503, {"detail": {"msg": "busy"}})
    async with start(livepeer_runner.url, our_worker.url) as running:
        reply = await running.upscale()

        assert (reply.status_code, len(our_worker.jobs)) == (200, 1)


async def test_the_emptier_worker_is_chosen(start, livepeer_runner, our_worker):
    """By its share of slots in use."""
    livepeer_runner.hold = our_worker.hold = asyncio.Event()
    models = [
        ModelConfig(MODEL, url=livepeer_runner.url, capacity=2),
        ModelConfig(MODEL, url=our_worker.url, capacity=4),
    ]
    async with start(models=models) as running:
        jobs = []
        for number in range(6):
            jobs.append(asyncio.create_task(running.upscale()))
            while len(livepeer_runner.jobs) + len(our_worker.jobs) <= number:
                await asyncio.sleep(0.01)
        assert (len(livepeer_runner.jobs), len(our_worker.jobs)) == (2, 4)
        info = await running.ask()
        assert info.capabilities.constraints.PerCapability[30].models[MODEL].capacityInUse == 6
        assert (await running.upscale()).status_code == 503
        our_worker.hold.set()
        assert [(await job).status_code for job in jobs] == [200] * 6
        await running.until_nothing_held()


class Movable:
    """The endpoint of a worker that is restarted elsewhere."""

    token = None
    models = (MODEL,)
    capacity = 1

    def __init__(self, url):
        self.url = url


async def test_a_job_waits_for_its_only_worker_to_come_back(start, raw_worker, our_worker, make_png):
    """It died in mid-job and was started again on another port: the gateway gets its picture."""
    async with contextlib.AsyncExitStack() as stack:
        endpoint = Movable(None)

        async def die(reader, writer):
            await reader.read(100_000)
            endpoint.url = None

        worker, endpoint.url = await stack.enter_async_context(raw_worker(die))
        running = await stack.enter_async_context(start(models=[ModelConfig(MODEL)], endpoints=[endpoint]))
        job = asyncio.create_task(running.upscale())
        while endpoint.url is not None:
            await asyncio.sleep(0.01)
        busy = await running.upscale()
        assert (busy.status_code, busy.headers["Fourfold-Error"]) == (503, "insufficient_capacity")
        down = await running.ask()
        assert down.capabilities.constraints.PerCapability[30].models[MODEL].capacity == 0
        waiting = (await running.client.get(running.url + "/metrics")).text
        endpoint.url = our_worker.url
        reply = await job
        metrics = (await running.client.get(running.url + "/metrics")).text

        assert (reply.status_code, reply.content) == (200, make_png(32, 24))
        assert (worker.jobs, len(our_worker.jobs)) == (1, 1)
        for state in ('jobs_in_flight{role="orchestrator"}', 'jobs_queued{role="orchestrator"}'):
            assert f"fourfold_{state} 1.0" in waiting and f"fourfold_{state} 0.0" in metrics
        assert 'fourfold_peers{role="orchestrator",state="down"} 1.0' in waiting
        assert 'fourfold_errors_total{blame="network",code="unreachable",role="orchestrator"} 1.0' in metrics
        await running.until_nothing_held()


async def test_a_job_does_not_wait_for_ever_for_its_only_worker(start, raw_worker):
    """The setting's patience, then the first failure."""
    async with contextlib.AsyncExitStack() as stack:
        endpoint = Movable(None)

        async def die(reader, writer):
            endpoint.url = None

        _, endpoint.url = await stack.enter_async_context(raw_worker(die))
        running = await stack.enter_async_context(
            start(models=[ModelConfig(MODEL)], endpoints=[endpoint], revive_s=0.2)
        )
        reply = await running.upscale()

        assert (reply.status_code, reply.headers["Fourfold-Error"]) == (502, "unreachable")
        await running.until_nothing_held()


async def test_a_worker_that_is_not_there_is_no_capacity(start):
    """Nobody listens; the model stays listed, with room for nothing."""
    async with start("http://127.0.0.1:1", ready=False) as running:
        info = await running.ask()
        reply = await running.upscale()

        assert (reply.status_code, reply.headers["Fourfold-Error"]) == (503, "insufficient_capacity")
        model = info.capabilities.constraints.PerCapability[30].models[MODEL]
        assert (model.capacity, model.warm, info.capabilities.capacities[30]) == (0, False, 0)


@pytest.mark.parametrize("status", ["ERROR", "LOADING", "CONFUSED"])
async def test_a_livepeer_runner_that_is_not_ready_gets_no_jobs(start, livepeer_runner, status):
    """Until it says OK or IDLE."""
    livepeer_runner.status = status
    async with start(livepeer_runner.url, ready=False) as running:
        assert (await running.upscale()).status_code == 503
        livepeer_runner.status = "IDLE"
        async with asyncio.timeout(5):
            await running.workers.wait_ready(MODEL)
        assert (await running.upscale()).status_code == 200
        assert len(livepeer_runner.jobs) == 1


async def test_a_worker_of_ours_takes_jobs_while_it_loads(start, our_worker):
    """It makes them wait, which is sooner than to be asked again."""
    our_worker.status = "LOADING"
    async with start(our_worker.url) as running:
        assert (await running.upscale()).status_code == 200


async def test_a_health_check_that_makes_no_sense_is_no_health(start, served):
    """HTML from a proxy, a list, no status."""
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    answers = [b"<html>", b"[]", b"{}", json.dumps({"status": 1}).encode()]

    async def health(_):
        return Response(answers[0] if len(answers) == 1 else answers.pop(0))

    async with (
        served(Starlette(routes=[Route("/health", health)])) as address,
        start(f"http://{address}", ready=False) as running,
    ):
        async with asyncio.timeout(5):
            while len(answers) > 1:
                await asyncio.sleep(0.01)
        assert (await running.upscale()).status_code == 503
