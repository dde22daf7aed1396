"""``make demo``'s script does what it promises a stranger, and leaves nothing but its pictures and its log."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, str(ROOT / "scripts" / "demo.py")]
DEFAULT_PORTS = (9935, 8935)
DEMO_S = 240.0


@pytest.fixture
def taken_ports() -> Iterator[None]:
    """Listen on the default ports, unless somebody else does already."""
    with ExitStack() as held:
        for port in DEFAULT_PORTS:
            sock = held.enter_context(socket.socket())
            try:
                sock.bind(("127.0.0.1", port))
                sock.listen()
            except OSError:
                continue
        yield


def test_the_demo_upscales_the_photo_though_the_default_ports_are_taken(tmp_path: Path, taken_ports: None) -> None:
    """It ends with status 0, tells what it did, and leaves the result, the pictures side by side and the log."""
    done = subprocess.run([*DEMO, "--out", tmp_path], capture_output=True, text=True, timeout=DEMO_S)

    assert done.returncode == 0, done.stderr
    for said in ("256 x 192 -> 1024 x 768", "fourfold/realesrgan-x4plus", "seed", " wei = ", "at the worker: run"):
        assert said in done.stdout
    assert sorted(os.listdir(tmp_path)) == ["before_after.png", "fourfold.log", "result.png"]
    with Image.open(tmp_path / "result.png") as result, Image.open(tmp_path / "before_after.png") as sheet:
        assert result.size == (1024, 768)
        assert sheet.width > 2 * 1024 and sheet.height > 768
        # The lower right of the sheet is the result itself; its upper edge has black letters on white.
        assert np.array_equal(np.asarray(sheet)[-768:, -1024:], np.asarray(result))
        label = np.asarray(sheet.convert("L"))[: sheet.height - 768]
        assert (label.min(), label.max()) == (0, 255)


def test_an_interrupted_demo_stops_what_it_started(tmp_path: Path) -> None:
    """Ctrl-C while the network starts or works ends every process; the status is 130."""
    with subprocess.Popen([*DEMO, "--out", tmp_path], stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "sending" in line:
                break
        started = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(signal.SIGINT)
        status = demo.wait(DEMO_S)

    assert status == 130
    assert len(started) >= 4, "up, gateway, orchestrator and worker"
    assert all_gone(started)
    assert os.listdir(tmp_path) == ["fourfold.log"]


def all_gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them have ended; the last may take a moment."""
    deadline = time.monotonic() + 10.0
    while any(process.is_running() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(process.is_running() for process in processes)
