"""`fourfold models` as a real command, against a hub on loopback; then a worker that never goes online."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="needs the [diffusion] extra")

from fourfold.testing.hub import Hub, Repository, serving_hub
from fourfold.testing.processes import running
from fourfold.testing.sd_x4 import write_pipe

pytestmark = pytest.mark.slow

MODEL = "stabilityai/stable-diffusion-x4-upscaler"
COMMAND_S = 120


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    tiny = write_pipe(tmp_path_factory.mktemp("tiny"), half=True)
    with serving_hub(**{MODEL.replace("/", "__"): Repository(tiny)}) as served:
        yield served


@pytest.fixture
def environ(served: Hub, tmp_path: Path) -> Mapping[str, str]:
    """A user who is online, with a cache and a data folder of their own."""
    ours = {"HF_ENDPOINT": served.endpoint + "/", "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "cache")}
    return {**os.environ, **ours, "FOURFOLD_DATA_DIR": str(tmp_path / "data")}


def models(environ: Mapping[str, str], *arguments: str, stdin: int = subprocess.DEVNULL) -> tuple[int, str, str]:
    """Return the exit status and what was printed."""
    done = subprocess.run(
        [sys.executable, "-m", "fourfold", "models", *arguments],
        stdin=stdin,
        capture_output=True,
        text=True,
        env=environ,
        timeout=COMMAND_S,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_pulled_model_is_offered_offline_and_mended_and_removed(
    environ: Mapping[str, str], served: Hub, tmp_path: Path
) -> None:
    """From a machine without the model to one that serves it, without further settings."""
    status, _, refusal = models(environ, "pull", MODEL)
    assert status == 65
    assert "licence of" in refusal and "openrail++" in refusal and "--accept-license" in refusal
    status, out, _ = models(environ, "pull", MODEL, "--accept-license", "--json")
    pulled = json.loads(out)
    assert (status, pulled["commit"], pulled["licence"]) == (0, "0" * 40, "openrail++")

    offline = {**environ, "HF_HUB_OFFLINE": "1"}
    fields = {"FOURFOLD_WORKER__WARM": "[]", "FOURFOLD_WORKER__THREADS": "1"}
    with running("worker", "--port", "0", environ={**offline, **fields}) as worker:
        assert MODEL in worker.ready["models"]

    weights = next(Path(pulled["folder"]).glob("vae/*.safetensors")).resolve()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(content)
    status, out, _ = models(offline, "verify")
    assert status == 1
    assert f"{MODEL}: vae/diffusion_pytorch_model.fp16.safetensors is damaged" in out
    assert models(environ, "pull", MODEL)[0] == 0  # its licence was accepted before
    count = len(pulled["files"])
    assert models(offline, "verify", MODEL)[1] == f"{count} of {count} files are as they were pulled\n"

    (listed,) = [row for row in json.loads(models(offline, "list", "--json")[1]) if row["model_id"] == MODEL]
    assert (listed["installed"], listed["source"], listed["commit"]) == (True, "hub", "0" * 40)
    assert listed["size_bytes"] == pulled["size_bytes"]
    assert models(offline, "remove", MODEL)[0] == 0
    (listed,) = [row for row in json.loads(models(offline, "--json")[1]) if row["model_id"] == MODEL]
    assert (listed["installed"], listed["size_bytes"]) == (False, None)
    assert models(offline, "verify", MODEL)[0] == 65


@pytest.mark.parametrize(("answer", "status"), [("n", 1), ("y", 0)])
def test_the_licence_is_asked_for_at_a_terminal(environ: Mapping[str, str], answer: str, status: int) -> None:
    """No is no, and nothing is fetched."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        done, _, asked = models(environ, "pull", MODEL, stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)

    assert done == status
    assert "Accept it and fetch" in asked
    assert Path(environ["HF_HUB_CACHE"]).exists() == (answer == "y")


def test_a_pull_that_is_interrupted_goes_on_where_it_was(
    environ: Mapping[str, str], served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a file: at once, without a traceback, and nothing counts as pulled."""
    unet = "unet/diffusion_pytorch_model.fp16.safetensors"
    monkeypatch.setitem(served.repositories[MODEL].held, unet, 2**20)
    before = len(served.asked)
    command = [sys.executable, "-m", "fourfold", "models", "pull", MODEL, "--yes"]
    pulling = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ)
    try:
        ended_s = time.monotonic() + COMMAND_S
        while not any(path.startswith("/store/") for _, path, _ in served.asked[before:]):
            assert time.monotonic() < ended_s
            time.sleep(0.02)
        pulling.send_signal(signal.SIGINT)
        told = pulling.communicate(timeout=COMMAND_S)[1]
    finally:
        pulling.kill()
        pulling.wait()
    assert pulling.returncode == 130 and "Traceback" not in told, told
    assert not list(tmp_path.glob("cache/models--*/fourfold.json"))

    monkeypatch.delitem(served.repositories[MODEL].held, unet)
    assert models(environ, "pull", MODEL)[0] == 0
    assert list(tmp_path.glob("cache/models--*/fourfold.json"))
