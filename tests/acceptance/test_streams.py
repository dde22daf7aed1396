"""Roles whose starter took no interest in their standard streams."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from fourfold.processes.sockets import listen
from fourfold.testing.running_network import wait_until

pytestmark = pytest.mark.slow


def is_up(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "| true"], ids=["closed", "reader-gone"])
def test_a_role_lives_on_where_nobody_reads_what_it_says(tmp_path: Path, streams: str) -> None:
    """As a service manager or `| head` leaves it; it drains as ever and its exit status is 0."""
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
    command = f"{sys.executable} -m fourfold worker --models fourfold/lanczos --data-dir {tmp_path} --port {port}"
    # The shell's child tells its process id before it becomes the command.
    script = f"(sh -c 'echo $$ > {tmp_path}/pid; exec {command}' {streams if '-' in streams else ''}; "
    script += f"echo $? > {tmp_path}/status) {'' if '-' in streams else streams}"
    shell = subprocess.Popen(["sh", "-c", script], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_up(f"http://127.0.0.1:{port}"), 60)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    finally:
        shell.wait(60)
    wait_until((tmp_path / "status").exists, 30)
    assert (tmp_path / "status").read_text() == "0\n"
