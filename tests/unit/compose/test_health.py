"""`fourfold health`: what counts as well, and what is said where it is not."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fourfold.cli import machine  # noqa: F401  # adds its commands
from fourfold.cli.app import app
from fourfold.compose.health import ask, base_url
from fourfold.config import Settings
from fourfold.errors import ConfigError, InvalidParameterError


@contextmanager
def answering(status: int, body: bytes) -> Iterator[tuple[str, list[str]]]:
    """Serve one answer to every question; yield the base URL and the paths asked for so far."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("role", "status", "body", "is_well", "words"),
    [
        ("gateway", 200, b'{"status": "ready", "reasons": []}', True, "ready"),
        ("gateway", 503, b'{"status": "not ready", "reasons": ["https://o:1: gone"]}', False, "https://o:1: gone"),
        ("orchestrator", 200, b'{"status": "OK", "accepting": true}', True, "accepts jobs"),
        ("orchestrator", 200, b'{"status": "OK", "accepting": false}', False, "shutting down"),
        ("worker", 200, b'{"status": "IDLE"}', True, "IDLE"),
        ("worker", 200, b'{"status": "OK"}', True, "OK"),
        ("worker", 200, b'{"status": "LOADING"}', False, "LOADING"),
        ("worker", 200, b'{"status": "ERROR"}', False, "ERROR"),
        (
            "orchestrator",
            200,
            b'{"accepting": true, "withdrawn": ["a/b"]}',
            True,
            "accepts jobs; a/b cannot be had now",
        ),
        (
            "worker",
            200,
            b'{"status": "IDLE", "models": [{"model_id": "a"}, {"model_id": "b", "failure": "no file"}]}',
            True,
            "IDLE; b cannot be had now: no file",
        ),
        ("worker", 200, b"<html>", False, "that is no worker"),
        ("gateway", 404, b"[]", False, "that is no gateway"),
        ("gateway", 200, b"", False, "that is no gateway"),
    ],
)
def test_a_role_is_well_if_it_can_take_work(role: str, status: int, body: bytes, is_well: bool, words: str) -> None:
    """By its own word."""
    with answering(status, body) as (url, asked):
        found = ask(role, url + "/", timeout_s=5)

    assert (found.is_well, len(asked)) == (is_well, 1) and words in found.text


def test_silence_is_not_well() -> None:
    """Nobody listens, or nobody answers in time."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        late = ask("worker", url, timeout_s=0.1)
    refused = ask("worker", url, timeout_s=5)

    assert not late.is_well and "ReadTimeout" in late.text
    assert not refused.is_well and f"no answer from {url}/health" in refused.text


def test_the_address_is_that_of_the_settings() -> None:
    """Reachable from this machine, whatever it listens on."""
    settings = Settings.model_validate({"gateway": {"host": "0.0.0.0", "port": 7}, "worker": {"host": "::", "port": 0}})

    assert base_url("gateway", settings) == "http://127.0.0.1:7"
    assert base_url("orchestrator", settings) == "https://127.0.0.1:8935"
    with pytest.raises(ConfigError, match="worker.port is 0.*--url"):
        base_url("worker", settings)


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:9935", "http://x:y"])
def test_an_address_that_is_none_is_the_callers_fault(url: str) -> None:
    """Not a role that is ill."""
    with pytest.raises(InvalidParameterError, match="base URL of a gateway"):
        ask("gateway", url, timeout_s=1)


def test_the_exit_status_tells(tmp_path: Path) -> None:
    """0 or 1, as a container's health check wants it; the reason on standard error."""
    with answering(200, b'{"status": "IDLE"}') as (url, _):
        well = CliRunner().invoke(app, ["health", "worker", "--url", url])
    ill = CliRunner().invoke(app, ["health", "worker", "--url", url])
    wrong = CliRunner().invoke(app, ["health", "walker"])

    assert (well.exit_code, well.stdout) == (0, "worker: IDLE\n")
    assert ill.exit_code == 1 and "no answer" in ill.stderr
    assert wrong.exit_code == 2 and "'walker'" in wrong.stderr
