"""A job that nobody waits for any more ends everywhere; and a job that runs can be watched."""

import asyncio
import contextlib
import json

import httpx2
import pytest

from fourfold.protocol import wire


async def until(condition):
    """Wait, within bounds, for *condition*."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("http2", [False, True])
async def test_a_gateway_that_leaves_cancels_its_job_at_the_worker(start, our_worker, http2, make_png):
    """The connection to the worker is closed, it is told besides, and nothing stays held."""
    import ssl

    our_worker.hold = asyncio.Event()
    async with start(our_worker.url) as running:
        segment = await running.segment()
        context = ssl.create_default_context(cafile=str(running.certificate))
        async with httpx2.AsyncClient(verify=context, http2=http2, trust_env=False, timeout=20) as client:
            job = asyncio.create_task(
                client.post(
                    running.url + "/upscale",
                    headers={"Livepeer-Segment": segment, "Fourfold-Protocol": "1"},
                    data={"prompt": "", "model_id": our_worker_model()},
                    files={"image": ("x.png", make_png(), "image/png")},
                )
            )
            await until(lambda: our_worker.jobs)
            job.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await job
        await asyncio.wait_for(our_worker.left.wait(), 5)
        await running.until_nothing_held()
        await until(lambda: our_worker.cancelled)

        assert our_worker.cancelled == [our_worker.jobs[0].headers["fourfold-job"]]
        our_worker.hold = None
        assert (await running.upscale()).status_code == 200


def our_worker_model():
    """Return the model that every test sells."""
    return "stabilityai/stable-diffusion-x4-upscaler"


async def test_a_livepeer_runner_just_loses_the_connection(start, livepeer_runner):
    """It has no other way to be told; that it is Livepeer's was learnt from its first answer."""
    async with start(livepeer_runner.url) as running:
        await running.upscale()
        livepeer_runner.hold = asyncio.Event()
        job = asyncio.create_task(running.upscale())
        await until(lambda: len(livepeer_runner.jobs) == 2)
        job.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await job
        await asyncio.wait_for(livepeer_runner.left.wait(), 5)
        await running.until_nothing_held()

        assert [worker.is_ours for worker in running.workers.workers] == [False]


async def test_delete_cancels_a_job(start, our_worker):
    """Whoever knows its id may: the gateway that gave it."""
    our_worker.hold = asyncio.Event()
    async with start(our_worker.url) as running:
        job = asyncio.create_task(running.upscale(headers={wire.JOB_HEADER: "job-1"}))
        await until(lambda: our_worker.jobs)
        gone = await running.client.delete(running.url + "/jobs/job-1")
        reply = await job
        await asyncio.wait_for(our_worker.left.wait(), 5)
        await until(lambda: our_worker.cancelled)
        again = await running.client.delete(running.url + "/jobs/job-1")

        assert (gone.status_code, reply.status_code, again.status_code) == (204, 499, 404)
        assert reply.headers["Fourfold-Error"] == "cancelled"
        assert again.headers["Fourfold-Error"] == "not_found"
        await running.until_nothing_held()


async def test_the_same_job_again_takes_the_place_of_the_first(start, our_worker):
    """A gateway that lost its connection asks again before we have noticed."""
    our_worker.hold = asyncio.Event()
    async with start(our_worker.url) as running:
        first = asyncio.create_task(running.upscale(headers={wire.JOB_HEADER: "job-1"}))
        await until(lambda: our_worker.jobs)
        second = asyncio.create_task(running.upscale(headers={wire.JOB_HEADER: "job-1"}))
        replaced = await first
        while len(our_worker.jobs) < 2 and not second.done():
            await asyncio.sleep(0.01)
        our_worker.hold.set()
        reply = await second

        assert replaced.status_code == 499
        assert reply.status_code in (200, 503)  # 503 if its slot was still being given back
        await running.until_nothing_held()


async def events_of(running, job_id):
    """Return all events of a job."""
    async with running.client.stream("GET", f"{running.url}/jobs/{job_id}/events") as response:
        assert (response.status_code, response.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
        lines = [line async for line in response.aiter_lines()]
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]


async def test_a_job_can_be_watched_to_its_end(start, our_worker):
    """Its states, and the worker's own progress while it runs."""
    our_worker.hold = asyncio.Event()
    async with start(our_worker.url) as running:
        job = asyncio.create_task(running.upscale(headers={wire.JOB_HEADER: "job-1"}))
        await until(lambda: our_worker.jobs)
        watcher = asyncio.create_task(events_of(running, "job-1"))
        current = running.app.requests.jobs._get("job-1")
        await until(lambda: current.facts == {"done": 2, "total": 4})
        our_worker.hold.set()
        await job
        events = await watcher

        assert events[0] == {"state": "running"}
        assert {"state": "running", "done": 2, "total": 4} in events
        assert events[-1] == {"state": "succeeded"}


async def test_a_watched_job_that_fails_says_so(start, livepeer_runner, make_refusal):
    """A worker that has no progress to tell does no harm."""
    livepeer_runner.hold = asyncio.Event()
    livepeer_runner.answer = make_refusal(400, {"detail": {"msg": "no"}})
    async with start(livepeer_runner.url) as running:
        job = asyncio.create_task(running.upscale(headers={wire.JOB_HEADER: "job-1"}))
        await until(lambda: livepeer_runner.jobs)
        watcher = asyncio.create_task(events_of(running, "job-1"))
        await until(lambda: running.app.requests.jobs._get("job-1").watched.is_set())
        livepeer_runner.hold.set()
        await job

        assert (await watcher)[-1] == {"state": "failed"}


async def test_a_job_that_is_not_in_hand_cannot_be_watched(start, our_worker):
    """A 404, not an empty stream."""
    async with start(our_worker.url) as running:
        reply = await running.client.get(running.url + "/jobs/nothing/events")

        assert (reply.status_code, reply.headers["Fourfold-Error"]) == (404, "not_found")


async def test_a_draining_orchestrator_finishes_what_it_has(start, our_worker):
    """New jobs are refused meanwhile."""
    our_worker.hold = asyncio.Event()
    async with start(our_worker.url) as running:
        segment = await running.segment()
        job = asyncio.create_task(running.upscale(segment=segment))
        await until(lambda: our_worker.jobs)
        running.app.drain()
        refused = await running.upscale(segment=segment)
        our_worker.hold.set()

        assert (await job).status_code == 200
        assert refused.headers["Fourfold-Error"] == "shutting_down"


async def test_a_reader_that_stops_reading_is_cut_off(start, our_worker):
    """A picture that nobody takes does not stay in the spool for ever."""
    import ssl

    from starlette.responses import Response

    async def large(_):
        big = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + b"IHDR" + b"\0" * 17
        data = 30_000_000
        big += data.to_bytes(4, "big") + b"IDAT" + b"\0" * (data + 4) + b"\0\0\0\0IEND\0\0\0\0"
        facts = {wire.SEED_HEADER: "1", wire.NSFW_HEADER: "false", wire.SAFETY_HEADER: "clean"}
        return Response(big, media_type="image/png", headers=facts)

    our_worker.answer = large
    async with start(our_worker.url, body_timeout_s=0.3) as running:
        segment = await running.segment()
        context = ssl.create_default_context(cafile=str(running.certificate))
        async with httpx2.AsyncClient(verify=context, trust_env=False, timeout=20) as client:
            request = client.build_request(
                "POST",
                running.url + "/upscale",
                headers={"Livepeer-Segment": segment, "Fourfold-Protocol": "1"},
                data={"prompt": "", "model_id": our_worker_model()},
                files={"image": ("x.png", small(), "image/png")},
            )
            response = await client.send(request, stream=True)
            assert response.status_code == 200
            await running.until_nothing_held()
            await response.aclose()


def small():
    """Return a small picture."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()
