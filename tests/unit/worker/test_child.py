"""The device's loop in this process, with a real engine: whose files vanish, and whose do not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fourfold.engine.registry import load_engine
from fourfold.engine.settings import EngineSettings
from fourfold.imaging import Canvas
from fourfold.worker import orders
from fourfold.worker.child import DeviceLoop
from fourfold.worker.loader import Arrival
from fourfold.worker.orders import DeviceJob

MODEL = "fourfold/lanczos"
SETTINGS = EngineSettings(threads=1)


class Harmless:
    """Finds nothing in any picture."""

    def score(self, _: Any) -> float:
        return 0.0


def job(folder: Path, job_id: str) -> DeviceJob:
    """Return an order for a small picture whose files lie in a folder of their own."""
    (folder / job_id).mkdir()
    source = Canvas(folder / job_id / "input.raw", 8, 6)
    with source.write() as writer:
        writer.put(0, 0, np.zeros((6, 8, 3), np.uint8))
    return DeviceJob(job_id, MODEL, source, Canvas(folder / job_id / "output.raw", 32, 24))


def test_a_job_whose_files_left_with_its_caller_fails_alone(tmp_path: Path) -> None:
    """Its cancellation is still on its way: the process, and the other jobs in it, go on."""
    said: list[Mapping[str, Any]] = []
    device = DeviceLoop(said.append, lambda _: load_engine(MODEL, settings=SETTINGS), Harmless)
    device.obey({"op": orders.LOAD, "model_id": MODEL})
    arrival = device.inbox.get(timeout=30)
    assert isinstance(arrival, Arrival)
    device.welcome(arrival)
    gone, stays = job(tmp_path, "gone"), job(tmp_path, "stays")
    for one in (gone, stays):
        device.obey({"op": orders.RUN, "job": one.to_json()})
    gone.target.path.unlink()

    while device.busy:
        device.step()

    ends = {event["job_id"]: event for event in said if event["event"] in (orders.DONE, orders.FAILED)}
    assert (ends["gone"]["event"], ends["gone"]["code"]) == (orders.FAILED, "engine_crashed")
    assert ends["stays"]["event"] == orders.DONE
