"""What breaks in an operator's night: processes killed and stopped, full disks, damaged files, lost names.

Real processes; each test ends by itself and `running` fails it if a process is left.
"""

import io
import os
import random
import resource
import shutil
import signal
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
from fourfold.testing.running_network import (
    FAST_MODEL,
    SLOW_MODEL,
    BackgroundPost,
    post,
    result_size,
    running_network,
    wait_until,
    write_config,
)

pytestmark = pytest.mark.slow

#: Who may be killed: words of the command line that name it.
VICTIMS = {
    "child": ("fourfold.worker.child",),
    "worker": ("worker", "--supervised"),
    "orchestrator": ("orchestrator", "--supervised"),
    "gateway": ("gateway", "--supervised"),
    "codec": ("fourfold.imaging.server",),
}
#: How long a network may take to notice that a process stands still, to replace it, and to do the job.
NOTICE_S = 60.0


def png(width: int = 24, height: int = 16) -> bytes:
    """Return noise: nothing about it compresses, so that files have their full size."""
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One network for the tests that leave it as they found it."""
    with running_network(tmp_path_factory.mktemp("network")) as command:
        yield command


def find(network: Running, who: str) -> list[psutil.Process]:
    """Return the processes of the kind *who*: of a role its own, not those below it."""
    return network.descendants(*VICTIMS[who])


def is_computing(network: Running) -> bool:
    """Whether the gateway has given its one job away and the child computes: a model that loads is no job."""
    told = httpx2.get(f"{network.ready['gateway']}/metrics").text
    if not all(f'{m}{{role="gateway"}} {n}' in told for m, n in (("in_flight", "1.0"), ("queued", "0.0"))):
        return False
    children = find(network, "child")
    try:
        return bool(children) and children[0].cpu_percent(0.1) > 10
    except psutil.Error:
        return False


def serves(network: Running) -> bool:
    """Whether a small picture comes through."""
    try:
        return post(network.ready["gateway"], png()).status_code == 200
    except httpx2.TransportError:
        return False


def spooled(folder: Path) -> list[Path]:
    """Return the files of open jobs."""
    return [p for p in folder.rglob("*") if p.is_file() and {"spool", "cache"} & set(p.parts)]


class Client(threading.Thread):
    """Sends one picture after another until told to stop; keeps what it was answered and when."""

    def __init__(self, gateway: str, number: int) -> None:
        super().__init__(name=f"client-{number}")
        self.gateway, self.number = gateway, number
        self.stopping = threading.Event()
        self.answers: list[tuple[float, float, int, str]] = []  # began, ended, status (0: none), what
        self.start()

    def was_served_since(self, moment: float) -> bool:
        return any(status == 200 and began > moment for began, _, status, _ in self.answers)

    def run(self) -> None:
        size = 60 + 20 * self.number
        model = FAST_MODEL if self.number % 2 else SLOW_MODEL
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                reply = post(self.gateway, png(size, size), model_id=model)
                if reply.status_code == 200 and (got := result_size(reply)) != (4 * size, 4 * size):
                    self.answers.append((began, time.monotonic(), -1, f"wrong size {got}"))
                    continue
                self.answers.append((began, time.monotonic(), reply.status_code, reply.text[:300]))
            except (httpx2.TransportError, AssertionError) as exc:
                self.answers.append((began, time.monotonic(), 0, repr(exc)))
                time.sleep(0.2)


@pytest.mark.parametrize("seed", [1])
def test_kills_at_random_moments_under_load(tmp_path: Path, seed: int) -> None:
    """Who is killed costs time. Only those whose gateway was killed hear nothing; nobody gets a wrong picture."""
    dice = random.Random(seed)
    gateway_kills: list[float] = []
    with running_network(tmp_path) as network:
        clients = [Client(network.ready["gateway"], number) for number in range(4)]
        try:
            for _ in range(8):
                time.sleep(dice.uniform(0.3, 4))
                who = dice.choice(list(VICTIMS))
                if victims := find(network, who):
                    if who == "gateway":
                        gateway_kills.append(time.monotonic())
                    victims[dice.randrange(len(victims))].kill()
            last_kill = time.monotonic()
            wait_until(lambda: all(client.was_served_since(last_kill) for client in clients), NOTICE_S)
        except TimeoutError:
            pytest.fail("it did not recover; its log:\n" + "\n".join(network.log[-100:]))
        finally:
            for client in clients:
                client.stopping.set()
            for client in clients:
                client.join()
        wait_until(lambda: not spooled(tmp_path / "data"), 20)

    answers = [answer for client in clients for answer in client.answers]
    # A gateway needs some seconds to be back; until then its port refuses.
    unheard = [a for a in answers if a[2] == 0 and not any(a[0] - 15 < kill < a[1] for kill in gateway_kills)]
    assert unheard == []
    assert [a for a in answers if a[2] not in (0, 200) and '"retryable":true' not in a[3]] == []


@pytest.mark.parametrize("who", ["child", "worker", "orchestrator"])
def test_what_stands_still_is_replaced_and_the_job_is_done(network: Running, who: str) -> None:
    """SIGSTOP: no connection breaks, nothing is said. Signs of life are missed instead."""
    job = BackgroundPost(network.ready["gateway"], png(700, 700), model_id=SLOW_MODEL)
    wait_until(lambda: is_computing(network))
    stopped = find(network, who)[0]
    stopped.suspend()
    began = time.monotonic()
    try:
        assert result_size(job.reply()) == (2800, 2800)
    finally:
        if stopped.is_running():
            stopped.resume()

    assert time.monotonic() - began < NOTICE_S
    assert psutil.wait_procs([stopped], timeout=5)[1] == []
    wait_until(lambda: serves(network), 20)


def test_a_gateway_that_stands_still_is_replaced(network: Running) -> None:
    """Same port; its clients see a closed connection rather than wait for ever."""
    stopped = find(network, "gateway")[0]
    stopped.suspend()

    wait_until(lambda: not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE, NOTICE_S)
    wait_until(lambda: serves(network), 30)


@pytest.mark.parametrize("who", ["gateway", "orchestrator", "worker"])
def test_a_full_disk_is_a_507_and_passes(network: Running, who: str) -> None:
    """A role that can write no more than 4 KiB into any file: told by code, and forgotten once there is room.

    A worker's own disk is the worker's own fault: others are tried, and nobody can make room for it.
    """
    expected = (502, "worker_failed") if who == "worker" else (507, "storage_full")
    processes = [
        p for p in (find(network, who)[0], *find(network, who)[0].children()) if "resource_tracker" not in p.name()
    ]
    before = processes[0].rlimit(resource.RLIMIT_FSIZE)
    for process in processes:
        process.rlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        reply = post(network.ready["gateway"], png(200, 200), timeout_s=120)
    finally:
        for process in processes:
            if process.is_running():
                process.rlimit(resource.RLIMIT_FSIZE, before)

    assert expected == (reply.status_code, reply.json()["error"]["code"]), reply.text
    assert reply.json()["error"]["retryable"] is True
    assert result_size(post(network.ready["gateway"], png(200, 200))) == (800, 800)


@pytest.mark.skipif(
    os.geteuid() != 0, reason="mounting a small tmpfs needs root; the limit on files above stands for it"
)
def test_a_small_disk_is_a_507_and_passes(tmp_path: Path) -> None:
    """The whole data folder on 24 MiB, filled up by somebody else."""
    data = tmp_path / "data"
    data.mkdir()
    if os.system(f"mount -t tmpfs -o size=24m tmpfs {data} 2>/dev/null") != 0:
        pytest.skip("this container may not mount a tmpfs")
    try:
        with running_network(tmp_path) as network:
            gateway = network.ready["gateway"]
            filler = data / "filler"
            with filler.open("wb") as file:
                shutil.copyfileobj(io.BytesIO(bytes(shutil.disk_usage(data).free - 200_000)), file)
            full = post(gateway, png(300, 300))
            filler.unlink()
            assert (full.status_code, full.json()["error"]["code"]) == (507, "storage_full"), full.text
            assert result_size(post(gateway, png(300, 300))) == (1200, 1200)
            assert spooled(data) == []
    finally:
        os.system(f"umount {data}")


@pytest.mark.parametrize("what", ["certificate", "key", "lock", "debris"])
def test_damaged_state_is_no_reason_not_to_start(tmp_path: Path, what: str) -> None:
    """Nothing in the data folder but results is worth keeping; what a crash or an accident left is replaced."""
    data = tmp_path / "data"
    for folder in (
        "gateway/spool/old",
        "gateway/results",
        "orchestrator/tls",
        "orchestrator/spool/old",
        "orchestrator/worker/cache/old",
    ):
        (data / folder).mkdir(parents=True)
    if what == "lock":
        for role in ("gateway", "orchestrator", "orchestrator/worker"):
            (data / role / "lock").write_bytes(os.urandom(100))
    elif what == "debris":
        (data / "gateway/spool/old/upload").write_bytes(b"x" * 1000)
        (data / "orchestrator/spool/old/upload").write_bytes(b"x" * 1000)
        (data / "orchestrator/worker/cache/old/input.raw").write_bytes(b"x" * 1000)
        (data / "gateway/results" / ("0" * 32)).mkdir()
        (data / "gateway/results/notes.txt").write_text("not a result")
    else:
        (data / "orchestrator/tls" / ("certificate.pem" if what == "certificate" else "key.pem")).write_text("nonsense")
    with running_network(tmp_path) as network:
        assert result_size(post(network.ready["gateway"], png())) == (96, 64)
        assert spooled(data) == []


def test_names_that_do_not_resolve_and_ports_where_nobody_is(tmp_path: Path) -> None:
    """A gateway with three orchestrators, of which one is there."""
    (tmp_path / "seller").mkdir()
    with running_network(tmp_path / "seller") as network:
        good = network.ready["orchestrator"]
        others = ("--orchestrator", "https://no-such-host.invalid:8935", "--orchestrator", "https://127.0.0.1:9")
        arguments = ("--data-dir", str(tmp_path / "gateway"), "--port", "0", *others, "--orchestrator", good)
        with running("gateway", *arguments) as gateway:
            began = time.monotonic()
            assert result_size(post(gateway.ready["url"], png())) == (96, 64)
            assert time.monotonic() - began < 5


def test_an_orchestrator_that_vanishes_is_told_until_it_is_back(tmp_path: Path) -> None:
    """Nobody else offers the model: unreachable at first, then not offered; either may be sent again."""
    config = str(write_config(tmp_path, "[gateway]\ncapacity_wait_s = 2\ndiscovery_interval_s = 1\n"))
    seller_folder = str(tmp_path / "seller")
    arguments = ("--config", config, "--data-dir", seller_folder)
    with running("orchestrator", *arguments, "--port", "0") as seller:
        url = seller.ready["url"]
        gateway_arguments = ("--config", config, "--data-dir", str(tmp_path / "gateway"), "--port", "0")
        with running("gateway", *gateway_arguments, "--orchestrator", url) as gateway:
            assert post(gateway.ready["url"], png()).status_code == 200
            seller.stop(signal.SIGKILL)
            reply = post(gateway.ready["url"], png())
            assert reply.json()["error"]["code"] in {"unreachable", "no_orchestrator"}
            assert reply.json()["error"]["retryable"] is True
            wait_until(lambda: post(gateway.ready["url"], png()).status_code == 503, 20)
            with running("orchestrator", *arguments, "--port", url.rpartition(":")[2]):
                wait_until(lambda: post(gateway.ready["url"], png()).status_code == 200, 30)
