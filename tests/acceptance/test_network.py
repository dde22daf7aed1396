"""`fourfold up` as its users run it: real processes, signals, kill -9."""

import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest
from PIL import Image

from fourfold.testing.processes import Running, running

pytestmark = pytest.mark.slow

FAST = "fourfold/lanczos"
SLOW = "fourfold/realesr-animevideov3"


def png(width: int = 24, height: int = 16) -> bytes:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 7 % 256, y * 11 % 256, (x + y) * 5 % 256], axis=-1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def write_config(folder: Path, extra: str = "") -> Path:
    models = [{"pipeline": "upscale", "model_id": model_id, "warm": model_id == SLOW} for model_id in (FAST, SLOW)]
    (folder / "aiModels.json").write_text(json.dumps(models))
    config = folder / "fourfold.toml"
    config.write_text(f"[worker]\nthreads = 1\n[orchestrator]\nmodels = '{folder / 'aiModels.json'}'\n{extra}")
    return config


def up(folder: Path, *, extra: str = "", ports: tuple[int, int] = (0, 0)):
    return running(
        "up",
        "--config",
        str(write_config(folder, extra)),
        "--data-dir",
        str(folder / "data"),
        "--port",
        str(ports[0]),
        "--orchestrator-port",
        str(ports[1]),
    )


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One network for the tests that leave it as they found it."""
    with up(tmp_path_factory.mktemp("network")) as command:
        yield command


def post(gateway: str, image: bytes, timeout_s: float = 120, **form: str) -> httpx2.Response:
    files = {"image": ("photo.png", image)}
    data = {"prompt": "", "safety_check": "false", "model_id": FAST, **form}
    return httpx2.post(f"{gateway}/upscale", data=data, files=files, timeout=timeout_s)


def download(reply: httpx2.Response) -> Image.Image:
    assert reply.status_code == 200, reply.text
    picture = httpx2.get(reply.json()["images"][0]["url"])
    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
    return Image.open(io.BytesIO(picture.content))


class Job(threading.Thread):
    """A slow job in the background."""

    def __init__(self, gateway: str, size: int = 900) -> None:
        super().__init__()
        self.gateway, self.size = gateway, size
        self.reply: httpx2.Response | None = None
        self.start()

    def run(self) -> None:
        self.reply = post(self.gateway, png(self.size, self.size), model_id=SLOW)

    def done(self) -> httpx2.Response:
        self.join()
        assert self.reply is not None
        return self.reply


def wait_until(claim, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.02)  # real processes on the other side: there is nothing to wait on


def is_running_a_job(network: Running) -> bool:
    """Whether the device's child computes: it has used processor time lately."""
    children = network.descendants("fourfold.worker.child")
    return bool(children) and children[0].cpu_percent(0.1) > 10


def has_a_job_running(network: Running) -> bool:
    """Whether the child computes and the gateway has given a job away: a model that loads is no job."""
    told = httpx2.get(f"{network.ready['gateway']}/metrics").text
    is_given = all(f'{m}{{role="gateway"}} {n}' in told for m, n in (("in_flight", "1.0"), ("queued", "0.0")))
    return is_given and is_running_a_job(network)


def test_a_picture_goes_through_and_comes_back_four_times_larger(network: Running) -> None:
    """The whole path, as with curl."""
    reply = post(network.ready["gateway"], png(33, 21), model_id=SLOW, safety_check="true", seed="0")

    assert download(reply).size == (132, 84)
    assert reply.json()["images"][0]["seed"] == 0
    assert list(reply.json()["images"][0]) == ["nsfw", "seed", "url"]
    assert reply.headers["fourfold-model"] == SLOW
    assert reply.headers["fourfold-fee-wei"] == str(33 * 21 * 6357828)
    assert reply.headers["fourfold-safety"] == "clean"


@pytest.mark.parametrize(("mode", "kind"), [("L", "png"), ("LA", "png"), ("RGBA", "png"), ("RGBA", "webp")])
def test_pictures_keep_grey_and_alpha(network: Running, mode: str, kind: str) -> None:
    """Prepared and finished at the gateway; the network in between sees plain RGB."""
    source = Image.open(io.BytesIO(png())).convert("RGBA")
    source.putalpha(Image.fromarray(np.tile(np.arange(24, dtype=np.uint8) * 10, (16, 1))))
    stream = io.BytesIO()
    source.convert(mode).save(stream, kind, lossless=True)

    result = download(post(network.ready["gateway"], stream.getvalue()))

    assert (result.mode, result.size) == (mode, (96, 64))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_child_costs_time_not_the_picture(network: Running, number: int) -> None:
    """The job is retried, the next one works."""
    job = Job(network.ready["gateway"])
    wait_until(lambda: has_a_job_running(network))
    network.descendants("fourfold.worker.child")[0].send_signal(number)

    assert download(job.done()).size == (3600, 3600)
    assert post(network.ready["gateway"], png()).status_code == 200


def test_a_killed_worker_costs_time_not_the_picture(network: Running) -> None:
    """The orchestrator starts it again; everything it owned has gone with it."""
    job = Job(network.ready["gateway"])
    wait_until(lambda: has_a_job_running(network))
    worker = network.descendants("worker", "--supervised")[0] if network.descendants("worker") else None
    assert worker is not None
    orphans = worker.children(recursive=True)
    worker.kill()

    assert download(job.done()).size == (3600, 3600)
    assert psutil.wait_procs(orphans, timeout=10)[1] == []
    assert post(network.ready["gateway"], png()).status_code == 200


def test_a_killed_gateway_comes_back_where_it_was(network: Running) -> None:
    """Same port, and the results of before are still there."""
    gateway = network.ready["gateway"]
    url = post(gateway, png()).json()["images"][0]["url"]
    network.descendants("gateway", "--supervised")[0].kill()

    wait_until(lambda: _answers(url))
    wait_until(lambda: httpx2.get(f"{gateway}/readyz").status_code == 200)
    assert post(gateway, png()).status_code == 200


def test_a_killed_orchestrator_comes_back_and_the_gateway_finds_it(network: Running) -> None:
    """Its worker went with it and is there again, too."""
    network.descendants("orchestrator", "--supervised")[0].kill()

    assert post(network.ready["gateway"], png()).status_code == 200


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.TransportError:
        return False


def test_a_client_that_leaves_frees_the_device(network: Running) -> None:
    """Down to the child, at once: the job had many seconds to go."""
    with pytest.raises(httpx2.TimeoutException):
        post(network.ready["gateway"], png(1900, 1900), timeout_s=1.5, model_id=SLOW)

    wait_until(lambda: not is_running_a_job(network), 5)
    assert post(network.ready["gateway"], png()).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_the_open_job_finish_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    """Drain: the client gets its picture, every process ends, the exit status is 0."""
    with up(tmp_path) as network:
        job = Job(network.ready["gateway"], size=600)
        wait_until(lambda: has_a_job_running(network))
        family = psutil.Process(network.process.pid).children(recursive=True)
        status = network.stop(number)

    assert (status, job.done().status_code) == (0, 200)
    assert psutil.wait_procs(family, timeout=1)[1] == []
    left = [path.relative_to(tmp_path / "data") for path in (tmp_path / "data").rglob("*") if path.is_file()]
    kept = {"lock", "certificate.pem", "key.pem"}
    assert all(path.name in kept or "results" in path.parts for path in left), left


def test_a_killed_owner_takes_everything_with_it(tmp_path: Path) -> None:
    """No role, worker, child or codec outlives it."""
    with up(tmp_path) as network:
        family = psutil.Process(network.process.pid).children(recursive=True)
        network.process.kill()
        network.process.wait()

        assert len(family) >= 6
        assert psutil.wait_procs(family, timeout=15)[1] == []


def test_a_second_network_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    """With a line that says who has it; the first one goes on."""
    with up(tmp_path) as network:
        with pytest.raises(RuntimeError, match="is in use by process"), up(tmp_path):
            pass
        assert post(network.ready["gateway"], png()).status_code == 200


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    """With the way out."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"{port}.*--port"), up(tmp_path, ports=(port, 0)):
            pass


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"pipeline": "upscale", "model_id": FAST, "price_per_unit": "0.5e-2USD"}], "price_per_unit"),
        ([{"pipeline": "upscale", "model_id": FAST}, {"pipeline": "llm", "model_id": "x"}], "entry 2"),
        ([{"pipeline": "upscale", "model_id": "no/such"}], "no/such"),
        ([], "at least one model"),
    ],
)
def test_a_wrong_models_file_is_refused_at_the_start(tmp_path: Path, entries: list[object], words: str) -> None:
    """Naming the entry and the reason."""
    config = write_config(tmp_path)
    (tmp_path / "aiModels.json").write_text(json.dumps(entries))
    arguments = ("--config", str(config), "--data-dir", str(tmp_path / "d"), "--port", "0", "--orchestrator-port", "0")

    with pytest.raises(RuntimeError, match=words), running("up", *arguments):
        pass


def test_a_gateway_of_its_own_finds_an_orchestrator_of_its_own(tmp_path: Path) -> None:
    """Two commands, two folders: seam 2 between processes that share nothing."""
    config = str(write_config(tmp_path))
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with (
        running("orchestrator", "--config", config, "--data-dir", a, "--port", "0") as seller,
        running("gateway", "--data-dir", b, "--port", "0", "--orchestrator", seller.ready["url"]) as gateway,
    ):
        reply = post(gateway.ready["url"], png())

        assert download(reply).size == (96, 64)
        assert os.path.isdir(tmp_path / "a" / "orchestrator" / "worker")


def test_a_worker_and_an_orchestrator_with_its_own_share_a_data_folder(tmp_path: Path) -> None:
    """As the roles' commands stand in the README, one by one, with the default folder for all."""
    data = ("--config", str(write_config(tmp_path)), "--data-dir", str(tmp_path / "d"), "--port", "0")
    with running("worker", *data), running("orchestrator", *data) as seller:
        assert seller.ready["url"].startswith("https://")
