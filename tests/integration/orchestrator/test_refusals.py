"""What an orchestrator refuses, in Livepeer's order and words and in ours, and that a refusal holds nothing."""

import asyncio
import base64

import httpx2
import pytest

from fourfold.config import LimitSettings
from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol import wire
from fourfold.protocol.capabilities import demand

MODEL = "stabilityai/stable-diffusion-x4-upscaler"


async def both(running, *args, **options):
    """Send the same request as a Livepeer gateway and as one of ours; return status, text and status, code."""
    livepeers = await running.upscale(*args, ours=False, **options)
    ours = await running.upscale(*args, **options)
    await running.until_nothing_held()
    assert livepeers.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert ours.headers["Content-Type"] == "application/json"
    return (livepeers.status_code, livepeers.text), (ours.status_code, ours.headers["Fourfold-Error"])


@pytest.mark.parametrize(
    ("fields", "livepeers", "ours"),
    [
        (
            {"seed": "x"},
            "upscale request returned 400: seed: Input should be a valid integer\n",
            (422, "validation_error"),
        ),
        ({"seed": "-1"}, "upscale request returned 400: seed must be from 0", (400, "invalid_parameter")),
        ({"num_inference_steps": "0"}, "upscale request returned 400: num_inf", (400, "invalid_parameter")),
        (
            {"safety_check": "perhaps"},
            "upscale request returned 400: safety_check: Input should be",
            (422, "validation_error"),
        ),
        ({"prompt": "p" * 2001}, "upscale request returned 400: prompt may have", (400, "invalid_parameter")),
        ({"model_id": "-"}, "upscale request returned 400: model_id is missing", (400, "invalid_parameter")),
    ],
)
async def test_a_wrong_field_is_the_clients_fault(start, our_worker, fields, livepeers, ours):
    """Row 1 of 3.8, with words at which a Livepeer gateway stops instead of trying 20 orchestrators."""
    async with start(our_worker.url) as running:
        (status, text), our_answer = await both(running, **fields)

        assert status == 400
        assert text.startswith(livepeers)
        assert our_answer == ours
        assert our_worker.jobs == []


async def test_a_compressed_body_is_refused_with_its_reason(start, our_worker):
    """It would else be "damaged"."""
    async with start(our_worker.url) as running:
        (status, text), ours = await both(running, headers={"Content-Encoding": "gzip"})

        assert (status, ours) == (400, (422, "validation_error"))
        assert "'gzip'; send it uncompressed" in text


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (b"", "unsupported_format"),
        (b"RIFF....no picture", "unsupported_format"),
        (b"\x89PNG\r\n\x1a\nbroken", "invalid_image"),
    ],
)
async def test_a_picture_that_cannot_be_read(start, our_worker, image, code):
    """Row 4 of 3.8; it never reaches a worker."""
    async with start(our_worker.url) as running:
        (status, text), (_, our_code) = await both(running, image)

        assert (status, our_code) == (400, code)
        assert text.startswith("upscale request returned 400: ")
        assert our_worker.jobs == []


async def test_a_picture_with_too_many_pixels(start, our_worker, make_png):
    """By the header, before any pixel is decoded."""
    async with start(our_worker.url, limits=LimitSettings(input_pixels=47)) as running:
        (status, _), ours = await both(running, make_png(8, 6))

        assert status == 400
        assert ours == (413, "image_too_large")


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upload_beyond_the_limit_is_refused_and_the_refusal_read(start, our_worker, chunked):
    """With its length told or not; the sender is not cut off in mid-body."""
    async with start(our_worker.url, limits=LimitSettings(upload_bytes=100_000)) as running:
        boundary = b"b"
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        body = head + b"x" * 3_000_000 + b"\r\n--b--\r\n"

        async def pieces():
            for start_at in range(0, len(body), 65536):
                yield body[start_at : start_at + 65536]

        reply = await running.client.post(
            running.url + "/upscale",
            headers={"Content-Type": f"multipart/form-data; boundary={boundary.decode()}", "Fourfold-Protocol": "1"},
            content=pieces() if chunked else body,
        )

        assert (reply.status_code, reply.headers["Fourfold-Error"]) == (413, "upload_too_large")
        await running.until_nothing_held()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"--b\r\ngarbage"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b--\r\n',
        ),
    ],
)
async def test_a_body_that_is_no_form_with_an_image(start, our_worker, content_type, body):
    """Row 1 of 3.8, before credentials are looked at."""
    async with start(our_worker.url) as running:
        reply = await running.client.post(
            running.url + "/upscale", headers={"Content-Type": content_type}, content=body
        )

        assert reply.status_code == 400
        assert reply.text.startswith("upscale request returned 400: ")
        await running.until_nothing_held()


async def test_credentials_and_payment_are_refused_in_livepeers_words(start, our_worker):
    """Rows 2 and 3 of 3.8, over the wire."""
    async with start(our_worker.url) as running:
        good = pb.SegData.FromString(base64.b64decode(await running.segment()))
        forged = pb.SegData()
        forged.CopyFrom(good)
        forged.auth_token.session_id = "other"
        bare = pb.SegData(capabilities=demand(MODEL))

        async def refused(segment, payment=""):
            encoded = segment if isinstance(segment, str) else base64.b64encode(segment.SerializeToString()).decode()
            return await both(running, segment=encoded, headers={wire.PAYMENT_HEADER: payment})

        assert await refused("*") == ((403, "ErrorSegEncoding\n"), (403, "invalid_credentials"))
        assert await refused("") == ((403, "incompatible capabilities\n"), (403, "invalid_credentials"))
        assert await refused(bare) == ((403, "missing auth token\n"), (403, "invalid_credentials"))
        assert await refused(forged) == ((403, "invalid auth token\n"), (403, "invalid_credentials"))
        (status, _), ours = await refused(good, payment="*")
        assert (status, ours) == (402, (402, "invalid_payment"))
        assert our_worker.jobs == []


async def test_a_token_of_another_process_is_refused(start, our_worker):
    """As after a restart: the gateway asks for a new one."""
    async with start(our_worker.url) as running:
        segment = await running.segment()
    async with start(our_worker.url) as running:
        assert await both(running, segment=segment) == (
            (403, "invalid auth token\n"),
            (403, "invalid_credentials"),
        )


async def test_a_full_orchestrator_says_insufficient_capacity(start, our_worker):
    """Row 5 of 3.8; with the time to come back. The slot that is taken belongs to the job that runs."""
    our_worker.hold = asyncio.Event()
    async with start(our_worker.url) as running:
        first = asyncio.create_task(running.upscale())
        while not our_worker.jobs:
            await asyncio.sleep(0.01)
        livepeers, ours = await running.upscale(ours=False), await running.upscale()
        our_worker.hold.set()

        assert (livepeers.status_code, livepeers.text) == (503, "insufficient capacity\n")
        assert (ours.status_code, ours.headers["Fourfold-Error"]) == (503, "insufficient_capacity")
        assert livepeers.headers["Retry-After"] == ours.headers["Retry-After"] == "1"
        assert (await first).status_code == 200
        await running.until_nothing_held()
        assert (await running.upscale()).status_code == 200


async def test_too_many_open_requests_are_refused_before_they_are_read(start, our_worker, monkeypatch):
    """Uploads are bounded as a whole, not only one by one."""
    monkeypatch.setattr("fourfold.orchestrator.job_requests._MAX_OPEN", 0)
    async with start(our_worker.url) as running:
        (status, text), ours = await both(running)

        assert (status, text) == (503, "insufficient capacity\n")
        assert ours == (503, "insufficient_capacity")


async def test_a_job_id_that_is_none(start, our_worker):
    """It goes into paths and logs."""
    async with start(our_worker.url) as running:
        reply = await running.upscale(headers={wire.JOB_HEADER: "../x"})

        assert (reply.status_code, reply.headers["Fourfold-Error"]) == (422, "validation_error")
        assert reply.json()["detail"][0]["loc"] == ["body", "Fourfold-Job"]


async def test_a_bug_of_ours_is_an_answer_and_holds_nothing(start, our_worker, caplog):
    """The text says where to look and nothing of what is there."""

    class Broken:
        async def inspect(self, path, limits):
            raise ZeroDivisionError("secret detail")

    async with start(our_worker.url) as running:
        running.app.requests._counter._admission._codec = Broken()
        livepeers, ours = await running.upscale(ours=False), await running.upscale()

        assert (livepeers.status_code, ours.status_code, ours.headers["Fourfold-Error"]) == (500, 500, "internal")
        assert "secret" not in livepeers.text + ours.text
        assert "request_failed" in [record.message for record in caplog.records]
        await running.until_nothing_held()


async def test_a_result_that_cannot_be_kept(start, our_worker):
    """Row 8 of 3.8; go-livepeer never gives that slot back."""
    async with start(our_worker.url) as running:
        store = running.app.requests._results
        store._max_bytes = 1
        reply = await running.upscale(ours=False)

        assert (reply.status_code, reply.text) == (500, "Could not create storage to receive results\n")
        await running.until_nothing_held()


async def test_a_connection_that_breaks_in_mid_upload_leaves_nothing(start, our_worker, caplog):
    """Neither a file nor a slot nor a traceback."""
    async with start(our_worker.url) as running:

        async def breaking():
            yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + b"x" * 100_000
            raise ConnectionAbortedError

        with pytest.raises((ConnectionAbortedError, httpx2.HTTPError)):
            await running.client.post(
                running.url + "/upscale",
                headers={"Content-Type": "multipart/form-data; boundary=b", "Content-Length": "1000000"},
                content=breaking(),
            )
        await running.until_nothing_held()

        assert [record for record in caplog.records if record.exc_info] == []


async def test_a_sender_that_falls_silent_is_given_up(start, our_worker):
    """After the setting's time."""
    async with start(our_worker.url, body_timeout_s=0.1) as running:

        async def stalling():
            yield b"--b\r\n"
            await asyncio.sleep(1.0)
            yield b"x"

        reply = await running.client.post(
            running.url + "/upscale",
            headers={"Content-Type": "multipart/form-data; boundary=b", "Fourfold-Protocol": "1"},
            content=stalling(),
        )

        assert (reply.status_code, reply.headers["Fourfold-Error"]) == (422, "validation_error")
        assert "stopped arriving" in reply.text
        await running.until_nothing_held()
