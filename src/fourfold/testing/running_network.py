"""A whole network as real processes, and a client of it: for tests and benchmarks of the installed command."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import httpx2

from fourfold.testing.pictures import png_size
from fourfold.testing.processes import Running, running

#: Interpolates: milliseconds.
FAST_MODEL: Final = "fourfold/lanczos"
#: A small network: some seconds for a megapixel.
SLOW_MODEL: Final = "fourfold/realesr-animevideov3"

_POLL_S: Final = 0.02


def write_config(folder: Path, extra: str = "", *, models: Sequence[str] = (FAST_MODEL, SLOW_MODEL)) -> Path:
    """Write settings for small networks, one thread and *models*, the last one warm; *extra* is more TOML."""
    entries = [{"pipeline": "upscale", "model_id": model, "warm": model == models[-1]} for model in models]
    (folder / "aiModels.json").write_text(json.dumps(entries))
    config = folder / "fourfold.toml"
    config.write_text(f"[worker]\nthreads = 1\n[orchestrator]\nmodels = '{folder / 'aiModels.json'}'\n{extra}")
    return config


def running_network(
    folder: Path, extra: str = "", *, models: Sequence[str] = (FAST_MODEL, SLOW_MODEL)
) -> AbstractContextManager[Running]:
    """Run ``fourfold up`` at free ports, with its state in *folder*."""
    config = str(write_config(folder, extra, models=models))
    data = str(folder / "data")
    return running("up", "--config", config, "--data-dir", data, "--port", "0", "--orchestrator-port", "0")


def post(gateway: str, image: bytes, *, timeout_s: float = 120.0, **form: str) -> httpx2.Response:
    """Ask *gateway* for an upscale, by the fast model unless *form* says otherwise."""
    data = {"prompt": "", "safety_check": "false", "model_id": FAST_MODEL, **form}
    files = {"image": ("photo.png", image)}
    return httpx2.post(f"{gateway}/upscale", data=data, files=files, timeout=timeout_s)


def result_size(reply: httpx2.Response) -> tuple[int, int]:
    """Fetch the picture that a successful *reply* names; return its size."""
    assert reply.status_code == 200, reply.text
    picture = httpx2.get(reply.json()["images"][0]["url"])
    assert picture.status_code == 200, picture.text
    return png_size(picture.content)


class BackgroundPost(threading.Thread):
    """A request in the background; :meth:`reply` waits for its answer."""

    def __init__(self, gateway: str, image: bytes, *, timeout_s: float = 120.0, **form: str) -> None:
        super().__init__(name="post")
        self._gateway, self._image, self._form, self._timeout_s = gateway, image, form, timeout_s
        self._reply: httpx2.Response | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Send the request."""
        try:
            self._reply = post(self._gateway, self._image, timeout_s=self._timeout_s, **self._form)
        except httpx2.TransportError as exc:
            self.error = exc

    def reply(self) -> httpx2.Response:
        """Wait for the answer. Raises: the transport's error if there was none."""
        self.join()
        if self._reply is None:
            raise self.error or RuntimeError("the request was never sent")
        return self._reply


def wait_until(claim: Callable[[], bool], seconds: float = 30.0) -> None:
    """Return once *claim* is true. Raises: TimeoutError if that takes longer than *seconds*."""
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not become true within {seconds:g} s")
        time.sleep(_POLL_S)  # real processes on the other side: there is nothing to wait on
