"""One photo through a real network on this machine: ``make demo``.

Starts ``fourfold up`` (which owns a gateway, an orchestrator and a worker, each a process of its own, on loopback),
posts the photo as any client would, downloads the result from the URL in the answer, writes both pictures side by side,
and stops everything. Needs nothing but this installation; the pictures are left in ``demo/``.
"""

import argparse
import contextlib
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
from PIL import Image, ImageDraw, ImageFont  # comes with the safety check's package

ROOT: Final = Path(__file__).resolve().parent.parent
MODEL: Final = "fourfold/realesrgan-x4plus"
#: The flag that moves a role's port, and the port it has by default.
PORTS: Final = {"--port": 9935, "--orchestrator-port": 8935}
READY_S: Final = 120.0
ANSWER_S: Final = 600.0
STOP_S: Final = 45.0  #: beyond the drain of every role
LABEL_PX: Final = 48


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway said about one job."""

    url: str
    seed: int
    headers: Mapping[str, str]
    seconds: float


def main() -> int:
    """Run the demo; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--image", type=Path, default=ROOT / "examples" / "photo.jpg", help="the picture to send")
    parser.add_argument("--model", default=MODEL, help="the model_id to ask for")
    parser.add_argument("--out", type=Path, default=ROOT / "demo", help="folder for the pictures and the log")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    try:
        run(options.image.resolve(), options.model, options.out.resolve())
    except DemoError as exc:
        print(f"the demo failed: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; everything is stopped", file=sys.stderr)
        return 130
    return 0


def run(photo: Path, model_id: str, out: Path) -> None:
    """Do the whole of it. Raises: DemoError."""
    out.mkdir(parents=True, exist_ok=True)
    log, result, comparison = out / "fourfold.log", out / "result.png", out / "before_after.png"
    say("starting", f"fourfold up: a gateway, an orchestrator and a worker (their log: {shown(log)})")
    with network(out, log) as (gateway, started_s), httpx2.Client(base_url=gateway, trust_env=False) as client:
        say("ready", f"{gateway} after {started_s:.1f} s")
        with Image.open(photo) as before:
            say("sending", f"{shown(photo)}, {before.width} x {before.height}, to {model_id}")
        answer = post(client, photo, model_id)
        result.write_bytes(download(client, answer.url))
        usd = price_usd(client, answer)
        stages = stage_lines(dict(gateway_stages(client)), dict(worker_stages(log)))
        say("stopping", "the worker, the orchestrator and the gateway")
    compare(photo, result, comparison, answer.headers["Fourfold-Model"])
    report(photo, result, answer, usd, stages)
    say("look at", f"{shown(comparison)} and {shown(result)}")


def say(what: str, text: str) -> None:
    """Print one line of the demo's story."""
    print(f"{what:>12}  {text}", flush=True)


def shown(path: Path) -> str:
    """Return *path* as short as it can be."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@contextlib.contextmanager
def network(out: Path, log: Path) -> Iterator[tuple[str, float]]:
    """Run ``fourfold up``; yield the gateway's URL and the seconds it took. Nothing of it is left afterwards."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="data-", dir=out) as data, log.open("wb") as log_file:
        settings = Path(data) / "fourfold.toml"
        settings.touch()  # the demo is the same whatever the user has configured
        process = subprocess.Popen(
            [
                *(Path(sys.executable).with_name("fourfold"), "up"),
                *("--config", settings, "--data-dir", data, "--log-format", "json"),
                *(argument for flag, port in PORTS.items() if not is_free(port) for argument in (flag, "0")),
            ],
            env={name: value for name, value in os.environ.items() if not name.startswith("FOURFOLD_")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log_file,
            start_new_session=True,  # Ctrl-C comes here alone, and is passed on as an orderly stop
        )
        try:
            yield wait_ready(process, log), time.monotonic() - started
        finally:
            stop(process)


def is_free(port: int) -> bool:
    """Whether the port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def wait_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the gateway's URL from the line that says that the network is ready. Raises: DemoError."""
    stdout = process.stdout
    assert stdout is not None
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in stdout:
            lines.put(line)
        lines.put(b"")  # the end

    threading.Thread(target=read, daemon=True).start()
    deadline = time.monotonic() + READY_S
    while (left_s := deadline - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left_s)
        except queue.Empty:
            break
        if not line:
            raise DemoError(f"`fourfold up` ended before it was ready; the end of its log:\n{tail(log)}")
        message = json.loads(line)
        if message.get("event") == "ready":
            return str(message["gateway"])
    raise DemoError(f"`fourfold up` was not ready within {READY_S:.0f} s; the end of its log:\n{tail(log)}")


def tail(log: Path, lines: int = 15) -> str:
    """Return the log's last lines."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def stop(process: subprocess.Popen[bytes]) -> None:
    """Have the network drain and end; kill it if it does not, or if told to hurry. Its children die with it."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()


def post(client: httpx2.Client, photo: Path, model_id: str) -> Answer:
    """Send the photo as Livepeer's clients do. Raises: DemoError."""
    started = time.monotonic()
    try:
        response = client.post(
            "/upscale",
            data={"model_id": model_id, "prompt": "a tabby cat"},
            files={"image": (photo.name, photo.read_bytes())},
            timeout=ANSWER_S,
        )
    except httpx2.HTTPError as exc:
        raise DemoError(f"no answer from the gateway: {exc!r}") from exc
    if response.status_code != 200:
        raise DemoError(f"the gateway answered {response.status_code}: {response.text}")
    image = response.json()["images"][0]
    return Answer(image["url"], image["seed"], response.headers, time.monotonic() - started)


def download(client: httpx2.Client, url: str) -> bytes:
    """Return what is under the result's URL. Raises: DemoError."""
    response = client.get(url, timeout=60.0)
    if response.status_code != 200:
        raise DemoError(f"the result's URL answered {response.status_code}: {response.text}")
    return response.content


def price_usd(client: httpx2.Client, answer: Answer) -> float:
    """Return the fee in USD, at the rate of the gateway's settings."""
    offers = {model["model_id"]: model["offers"] for model in client.get("/models").json()["models"]}
    offer = offers[answer.headers["Fourfold-Model"]][0]
    return float(offer["usd_per_input_pixel"]) * int(answer.headers["Fourfold-Input-Pixels"])


def stage_lines(gateway: Mapping[str, float], worker: Mapping[str, float]) -> Iterator[str]:
    """Yield a line for each stage in the order of a job's life; the worker's are a part of the gateway's submit."""
    for stage, seconds in gateway.items():
        yield f"{seconds:8.3f} s  {stage}"
        if stage == "submit":
            yield from (f"{seconds:8.3f} s    at the worker: {stage}" for stage, seconds in worker.items())


def worker_stages(log: Path) -> Iterator[tuple[str, float]]:
    """Yield the seconds that the worker logged for its one order."""
    for line in log.read_text(errors="replace").splitlines():
        facts: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
        if facts.get("event") == "order_done":
            for name, value in facts.items():
                if name.endswith("_s"):
                    yield name.removesuffix("_s"), float(value)


def gateway_stages(client: httpx2.Client) -> Iterator[tuple[str, float]]:
    """Yield the seconds that the gateway measured; there was one job, so a stage's sum is its time."""
    pattern = re.compile(r'^fourfold_stage_seconds_sum\{.*?stage="(\w+)".*?\} (\S+)$', re.MULTILINE)
    for stage, seconds in pattern.findall(client.get("/metrics").text):
        yield stage, float(seconds)


def compare(photo: Path, result: Path, target: Path, model_id: str) -> None:
    """Write both pictures at the same size side by side, each under its label."""
    with Image.open(photo) as before, Image.open(result) as after:
        enlarged = before.convert("RGB").resize(after.size, Image.Resampling.BICUBIC)
        labels = (
            f"before: {before.width} x {before.height}, enlarged by bicubic interpolation",
            f"after: {after.width} x {after.height}, {model_id}",
        )
        sheet = Image.new("RGB", (2 * after.width + LABEL_PX // 4, after.height + LABEL_PX), "white")
        draw = ImageDraw.Draw(sheet)
        font = ImageFont.load_default(LABEL_PX // 2)
        for picture, label, x in zip((enlarged, after), labels, (0, sheet.width - after.width), strict=True):
            draw.text((x + LABEL_PX // 4, LABEL_PX // 2), label, fill="black", font=font, anchor="lm")
            sheet.paste(picture, (x, LABEL_PX))
        sheet.save(target)


def report(photo: Path, result: Path, answer: Answer, usd: float, stages: Iterable[str]) -> None:
    """Print what came of it."""
    headers = answer.headers
    with Image.open(photo) as before, Image.open(result) as after:
        say("size", f"{before.width} x {before.height} -> {after.width} x {after.height}")
    say("model", headers["Fourfold-Model"])
    say("seed", str(answer.seed))
    say("fee", f"{int(headers['Fourfold-Fee-Wei']):,} wei = {usd:.6f} USD (counted, nothing is charged)")
    say("time", f"{answer.seconds:.2f} s, of which")
    for line in stages:
        say("", line)


if __name__ == "__main__":
    sys.exit(main())
