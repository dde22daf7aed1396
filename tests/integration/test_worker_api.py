"""The worker's HTTP, with its real child processes, as Livepeer's peers and ours see it."""

import base64
import gzip
import http.client
import io
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from fourfold.testing.processes import Running, running

FAST = "fourfold/lanczos"
OURS = {"Fourfold-Protocol": "1"}


def png(width: int = 24, height: int = 16, mode: str = "RGB") -> bytes:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 7 % 256, y * 11 % 256, (x + y) * 5 % 256], axis=-1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "png")
    return stream.getvalue()


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A worker that offers two fast models and holds none warm."""
    folder = tmp_path_factory.mktemp("worker")
    config = folder / "fourfold.toml"
    config.write_text(
        "[worker]\nthreads = 1\nwarm = []\nqueue = 1\n"
        f"models = ['{FAST}', 'fourfold/realesr-animevideov3']\n"
        "[worker.limits]\ninput_pixels = 4000000\nupload_bytes = 2000000\nprompt_chars = 100\n"
    )
    with running("worker", "--config", str(config), "--data-dir", str(folder / "data"), "--port", "0") as command:
        yield command
    assert not list((folder / "data" / "worker").glob("cache/*"))


@pytest.fixture
def client(command: Running) -> Iterator[httpx2.Client]:
    """An HTTP client of the worker."""
    with httpx2.Client(base_url=command.ready["url"], timeout=60) as client:
        yield client


def post(client: httpx2.Client, image: bytes | None = None, *, headers: dict[str, str] | None = None, **form: str):
    files = {"image": ("x.png", png() if image is None else image)}
    return client.post(
        "/upscale", data={"prompt": "a cat", "safety_check": "false", **form}, files=files, headers=headers or {}
    )


def test_a_livepeer_peer_gets_a_data_url(client: httpx2.Client) -> None:
    """Exactly the runner's JSON."""
    reply = post(client, seed="0", safety_check="true")

    body = reply.json()
    url = body["images"][0].pop("url")
    assert (reply.status_code, body) == (200, {"images": [{"seed": 0, "nsfw": False}]})
    assert reply.headers["content-type"] == "application/json"
    picture = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    assert (picture.format, picture.size) == ("PNG", (96, 64))


def test_ours_gets_the_picture_itself(client: httpx2.Client) -> None:
    """With the facts in headers."""
    reply = post(client, headers=OURS, seed="7", model_id=FAST)

    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
    facts = {name: reply.headers[f"fourfold-{name}"] for name in ("seed", "nsfw", "safety", "model")}
    assert facts == {"seed": "7", "nsfw": "false", "safety": "not-checked", "model": FAST}
    assert Image.open(io.BytesIO(reply.content)).size == (96, 64)


def test_a_clean_picture_is_told_from_an_unchecked_one(client: httpx2.Client) -> None:
    """`nsfw: false` alone would not say which."""
    assert post(client, headers=OURS, safety_check="true").headers["fourfold-safety"] == "clean"


def test_a_missing_seed_is_drawn_and_told(client: httpx2.Client) -> None:
    """32 bits, another each time."""
    seeds = {post(client).json()["images"][0]["seed"] for _ in range(3)}

    assert len(seeds) == 3 and all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_pictures_keep_their_bands(client: httpx2.Client, mode: str) -> None:
    """A foreign orchestrator sends what its client sent."""
    source = Image.open(io.BytesIO(png(mode="RGB"))).convert(mode)
    if mode == "RGBA":
        source.putalpha(128)
    stream = io.BytesIO()
    source.save(stream, "png")

    result = Image.open(io.BytesIO(post(client, stream.getvalue(), headers=OURS).content))

    assert (result.mode, result.size) == ({"P": "RGB"}.get(mode, mode), (96, 64))


@pytest.mark.parametrize("path", ["/upscale", "/upscale/"])
@pytest.mark.parametrize(
    ("image", "form", "ours", "livepeers", "code"),
    [
        (b"", {}, 400, 400, "invalid_image"),
        (b"text, not a picture", {}, 415, 400, "unsupported_format"),
        (png()[:60], {}, 400, 400, "invalid_image"),
        (png(2100, 2000), {}, 413, 400, "image_too_large"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 2_100_000, {}, 413, 400, "upload_too_large"),
        (None, {"model_id": "no/such"}, 400, 400, "invalid_parameter"),
        (None, {"prompt": "x" * 101}, 400, 400, "invalid_parameter"),
        (None, {"num_inference_steps": "0"}, 400, 400, "invalid_parameter"),
        (None, {"seed": "abc"}, 422, 422, "validation_error"),
        (None, {"safety_check": "maybe"}, 422, 422, "validation_error"),
    ],
)
def test_a_bad_request_is_refused_in_both_dialects(
    client: httpx2.Client, path: str, image, form, ours: int, livepeers: int, code: str
) -> None:
    """Ours gets the exact status and code, Livepeer's Go only statuses that it survives."""
    for headers, status in ((OURS, ours), ({}, livepeers)):
        files = {"image": ("x", png() if image is None else image)}
        reply = client.post(path, data=form, files=files, headers=headers)

        assert (reply.status_code, reply.headers["fourfold-error"]) == (status, code)
        detail = reply.json()["detail"]
        assert isinstance(detail, list) if status == 422 else detail["msg"]


def test_a_refusal_arrives_while_the_request_is_still_sent(command: Running) -> None:
    """And the connection can be used again: a peer that pools them would else find its next request on a closed one."""
    url = httpx2.URL(command.ready["url"])
    with closing(http.client.HTTPConnection(url.host, url.port, timeout=60)) as connection:
        connection.putrequest("POST", "/upscale")
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.putheader("Content-Length", "2100000")
        connection.endheaders(b"-" * 100_000)
        refused = connection.getresponse()
        told = json.loads(refused.read())
        connection.send(b"-" * 2_000_000)
        connection.request("GET", "/health")
        healthy = connection.getresponse().status

    assert (refused.status, healthy) == (400, 200)
    assert "2100000" in told["detail"]["msg"]


def test_a_compressed_body_is_refused_with_its_reason(client: httpx2.Client) -> None:
    """It would else be "damaged"."""
    headers = {"Content-Encoding": "gzip", "Content-Type": "multipart/form-data; boundary=x"}
    reply = client.post("/upscale", content=gzip.compress(b"--x--"), headers=headers)

    detail = reply.json()["detail"][0]
    assert (reply.status_code, detail["loc"]) == (422, ["body"])
    assert "send it uncompressed" in detail["msg"]


def test_a_missing_image_is_fastapis_422(client: httpx2.Client) -> None:
    """The body that SDKs and Go clients parse."""
    reply = client.post("/upscale", data={"prompt": "x"}, files={"other": b"y"})

    assert reply.status_code == 422
    assert reply.json()["detail"] == [
        {"type": "missing", "loc": ["body", "image"], "msg": "Field required", "input": None}
    ]


def test_the_runner_api_is_complete(client: httpx2.Client) -> None:
    """What an orchestrator asks besides work; no token is needed for it."""
    health = client.get("/health").json()
    info = client.get("/hardware/info").json()
    stats = client.get("/hardware/stats").json()
    version = client.get("/version").json()

    assert client.get("/health/").json() == health == {"status": "IDLE"}
    assert (info["pipeline"], info["model_id"]) == ("upscale", FAST)
    assert {"id", "name", "memory_total", "memory_free", "major", "minor"} <= set(info["gpu_info"]["0"])
    assert {"utilization_compute", "utilization_memory"} <= set(stats["gpu_stats"]["0"])
    assert set(version) == {"pipeline", "model_id", "version"}
    assert "fourfold_stage_seconds" in client.get("/metrics").text


def test_each_refusal_is_counted_once_and_no_made_up_model_is_a_label(client: httpx2.Client) -> None:
    """What the caller was told, by code."""

    def refusals() -> float:
        told = re.search(r'fourfold_errors_total{.*code="invalid_parameter".*} (.*)', client.get("/metrics").text)
        assert told is not None
        return float(told[1])

    before = refusals()
    for number in range(3):
        post(client, headers=OURS, model_id=f"made-up/{number}")

    assert refusals() == before + 3
    assert "made-up" not in client.get("/metrics").text


def test_an_unknown_path_is_json_too(client: httpx2.Client) -> None:
    """Never HTML or plain text."""
    assert client.get("/nowhere").json()["detail"]["msg"]
    assert client.get("/upscale").status_code == 405


class InBackground(threading.Thread):
    """A slow request of its own thread."""

    def __init__(self, url: str, job_id: str, size: int = 1500) -> None:
        super().__init__()
        self.url, self.job_id, self.size = url, job_id, size
        self.reply: httpx2.Response | None = None
        self.start()

    def run(self) -> None:
        with httpx2.Client(base_url=self.url, timeout=120) as client:
            self.reply = post(
                client,
                png(self.size, self.size),
                headers={**OURS, "Fourfold-Job": self.job_id},
                model_id="fourfold/realesr-animevideov3",
            )


def wait_until(claim, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.02)  # a real process on the other side: there is nothing to wait on


def test_health_answers_while_a_job_runs_and_a_full_worker_says_so(client: httpx2.Client, command: Running) -> None:
    """One runs, one waits, the third is told 503 (ours) or 500 (Livepeer's) at once; cancel frees both."""
    url = command.ready["url"]
    slow = [InBackground(url, "slow-1"), InBackground(url, "slow-2")]
    wait_until(lambda: client.get("/metrics").text.count('in_flight{role="worker"} 2.0'))

    assert client.get("/health").json() == {"status": "OK"}
    busy = post(client, headers=OURS)
    assert (busy.status_code, busy.headers["fourfold-error"]) == (503, "insufficient_capacity")
    assert "retry-after" in busy.headers
    assert post(client).status_code == 500
    for job in ("slow-1", "slow-2"):
        wait_until(lambda job=job: client.delete(f"/jobs/{job}").status_code in (204, 404))
    for thread in slow:
        thread.join()
    assert [thread.reply.headers["fourfold-error"] for thread in slow if thread.reply] == ["cancelled"] * 2
    assert post(client, headers=OURS, model_id=FAST).status_code == 200


def test_events_tell_a_jobs_states_to_its_end(client: httpx2.Client, command: Running) -> None:
    """Server-sent events: progress counts tiles."""
    thread = InBackground(command.ready["url"], "watched", size=1500)
    wait_until(lambda: "watched" in str(client.delete("/jobs/none").json()) or thread.reply or _exists(client))
    with client.stream("GET", "/jobs/watched/events") as stream:
        states = [json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line]
    thread.join()

    assert states[-1] == {"state": "succeeded"}
    running_states = [state for state in states if state["state"] == "running"]
    assert running_states and running_states[-1]["done"] == running_states[-1]["total"] > 1


def _exists(client: httpx2.Client) -> bool:
    with client.stream("GET", "/jobs/watched/events") as stream:
        return stream.status_code == 200


def test_an_unknown_job_is_404(client: httpx2.Client) -> None:
    """For watching and for cancelling."""
    assert client.get("/jobs/none/events").status_code == 404
    assert client.delete("/jobs/none").status_code == 404


def test_a_client_that_leaves_frees_the_device(client: httpx2.Client, command: Running) -> None:
    """Its job is cancelled down to the child, whose process stays."""
    child = command.descendants("fourfold.worker.child")[0].pid
    with httpx2.Client(base_url=command.ready["url"], timeout=1.0) as impatient, pytest.raises(httpx2.ReadTimeout):
        post(impatient, png(1900, 1900), headers=OURS, model_id="fourfold/realesr-animevideov3")

    wait_until(lambda: client.get("/health").json() == {"status": "IDLE"}, 5)
    assert post(client, headers=OURS, model_id=FAST).status_code == 200
    assert command.descendants("fourfold.worker.child")[0].pid == child


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_job_survives_the_death_of_the_child(client: httpx2.Client, command: Running, number: int) -> None:
    """It is tried again, alone, in a new one; /health never stops answering."""
    child = command.descendants("fourfold.worker.child")[0]
    thread = InBackground(command.ready["url"], f"killed-{number}", size=500)
    wait_until(lambda: client.get("/health").json() == {"status": "OK"})
    child.send_signal(number)
    thread.join()

    assert thread.reply is not None and thread.reply.status_code == 200
    assert command.descendants("fourfold.worker.child")[0].pid != child.pid


def test_a_job_that_always_kills_its_child_fails_with_a_code(client: httpx2.Client, command: Running) -> None:
    """And the next one runs in a new child."""
    thread = InBackground(command.ready["url"], "doomed", size=1500)
    queued = 'fourfold_jobs_queued{role="worker"} 0.0'
    for _ in range(2):
        wait_until(lambda: client.get("/health").json() == {"status": "OK"} and queued in client.get("/metrics").text)
        children = command.descendants("fourfold.worker.child")
        wait_until(lambda: command.descendants("fourfold.worker.child"))
        before = command.descendants("fourfold.worker.child")[0]
        before.kill()
        wait_until(
            lambda before=before: (
                any(c.pid != before.pid for c in command.descendants("fourfold.worker.child")) or thread.reply
            )
        )
    thread.join()

    assert children is not None and thread.reply is not None
    assert (thread.reply.status_code, thread.reply.headers["fourfold-error"]) == (500, "engine_crashed")
    assert post(client, headers=OURS, model_id=FAST).status_code == 200


def test_a_token_is_demanded_where_one_is_set(tmp_path: Path) -> None:
    """By AUTH_TOKEN, as for Livepeer's containers; health needs none."""
    environ = {"AUTH_TOKEN": "hush", "MODEL_ID": FAST, "PIPELINE": "upscale", "PORT": "0"}
    with (
        running("worker", "--data-dir", str(tmp_path), environ=environ) as command,
        httpx2.Client(base_url=command.ready["url"], timeout=60) as client,
    ):
        refused = post(client, headers={"Authorization": "Bearer wrong"})
        taken = post(client, headers={"Authorization": "Bearer hush"})
        other = post(client, headers={"Authorization": "Bearer hush"}, model_id="some/other")
        health = client.get("/health")

    assert (refused.status_code, refused.json()) == (401, {"detail": {"msg": "Invalid bearer token."}})
    assert refused.headers["www-authenticate"] == "Bearer"
    assert (taken.status_code, health.status_code) == (200, 200)
    assert other.json()["detail"]["msg"] == f"pipeline configured with {FAST} but called with some/other."
    assert not any("hush" in line for line in command.log)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"PIPELINE": "text-to-image"}, "upscale"),
        ({"MODEL_ID": "no/such"}, "no/such"),
        ({"FOURFOLD_WORKER__WARM": '["fourfold/lanczos"]', "MODEL_ID": "fourfold/realsr-df2k"}, "warm"),
    ],
)
def test_a_worker_with_wrong_settings_says_so_and_ends(tmp_path: Path, environ: dict[str, str], words: str) -> None:
    """Before it is ready."""
    with (
        pytest.raises(RuntimeError, match=words),
        running("worker", "--data-dir", str(tmp_path), "--port", "0", environ=environ),
    ):
        pass
