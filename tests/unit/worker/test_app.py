"""The worker's HTTP without its device: what becomes of an order's place."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fourfold.config import WorkerSettings
from fourfold.worker.app import create_app
from fourfold.worker.orders import Upscaled, WorkOrder

MODEL = "somebody/some-model"
BODY = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nbytes\r\n--b--\r\n'
HEADERS = [(b"content-type", b"multipart/form-data; boundary=b")]


class Worker:
    """Does an order at once; *done* is set in the same breath."""

    def __init__(self, folder: Path) -> None:
        self.cards = {MODEL: None}
        self.open = 0
        self.done = asyncio.Event()
        self._folder = folder

    @contextmanager
    def admit(self, job_id: str) -> Iterator[Path]:
        self.open += 1
        try:
            yield self._folder
        finally:
            self.open -= 1

    async def upscale(self, order: WorkOrder, folder: Path, _: Any) -> Upscaled:
        result = folder / "result.png"
        result.write_bytes(b"picture")
        self.done.set()
        return Upscaled(result, MODEL, 4, 4, 1, order.seed, None, {})


@pytest.mark.parametrize("headers", [HEADERS, [*HEADERS, (b"fourfold-protocol", b"1")]], ids=["livepeer", "ours"])
async def test_a_caller_that_leaves_just_before_its_answer_frees_its_place(tmp_path: Path, headers: Any) -> None:
    """Then nobody asks for the answer's first byte: a place that waited for that would be lost for good."""
    worker = Worker(tmp_path)
    app = create_app(worker, WorkerSettings())  # type: ignore[arg-type]
    events = [{"type": "http.request", "body": BODY, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if events:
            return events.pop()
        await worker.done.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        await asyncio.sleep(0)

    scope = {"type": "http", "method": "POST", "path": "/upscale", "headers": headers, "query_string": b""}
    await app({**scope, "asgi": {"spec_version": "2.3"}}, receive, send)

    assert worker.done.is_set()
    assert worker.open == 0
