"""The device's loop in this process, with a real engine: whose files vanish, and whose do not; what its engines get."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourfold.engine.base import EngineEvent, Remark
from fourfold.engine.devices import ComputeDevice
from fourfold.engine.lanczos import LanczosEngine
from fourfold.engine.registry import load_engine
from fourfold.engine.settings import EngineSettings
from fourfold.errors import ModelUnavailableError
from fourfold.imaging import Canvas
from fourfold.worker import orders
from fourfold.worker.child import DeviceLoop, compiles, engine_settings, uncompiled
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


class Remarking(LanczosEngine):
    """Says something with every step."""

    def step(self) -> list[EngineEvent]:
        return [*super().step(), Remark("kernels_ready", {"precision": "float16"})]


def loaded(
    said: list[Mapping[str, Any]],
    engine: type[LanczosEngine] = LanczosEngine,
    make_classifier: Callable[[], Any] = Harmless,
) -> DeviceLoop:
    """Return a device with one model in it, which tells *said* what it would tell its parent."""
    card = load_engine(MODEL, settings=SETTINGS).card
    device = DeviceLoop(said.append, lambda _: engine(card, settings=SETTINGS), make_classifier)
    device.obey({"op": orders.LOAD, "model_id": MODEL})
    arrival = device.inbox.get(timeout=30)
    assert isinstance(arrival, Arrival)
    device.welcome(arrival)
    return device


def test_a_job_whose_files_left_with_its_caller_fails_alone(tmp_path: Path) -> None:
    """Its cancellation is still on its way: the process, and the other jobs in it, go on."""
    said: list[Mapping[str, Any]] = []
    device = loaded(said)
    gone, stays = job(tmp_path, "gone"), job(tmp_path, "stays")
    for one in (gone, stays):
        device.obey({"op": orders.RUN, "job": one.to_json()})
    gone.target.path.unlink()

    while device.busy:
        device.step()

    ends = {event["job_id"]: event for event in said if event["event"] in (orders.DONE, orders.FAILED)}
    assert (ends["gone"]["event"], ends["gone"]["code"]) == (orders.FAILED, "engine_crashed")
    assert ends["stays"]["event"] == orders.DONE


def test_a_picture_that_cannot_be_checked_is_not_made(tmp_path: Path) -> None:
    """The model is well and not to blame: jobs that want no check go on."""

    def damaged() -> Any:
        raise ModelUnavailableError("its weights are cut off")

    said: list[Mapping[str, Any]] = []
    device = loaded(said, make_classifier=damaged)
    checked, unchecked = job(tmp_path, "checked").to_json(), job(tmp_path, "unchecked").to_json()
    device.obey({"op": orders.RUN, "job": checked})
    assert not device.busy
    assert (said[-1]["code"], said[-1]["message"][-23:]) == ("worker_failed", "its weights are cut off")

    device.obey({"op": orders.RUN, "job": {**unchecked, "safety_check": False}})
    while device.busy:
        device.step()
    assert (said[-1]["event"], said[-1]["job_id"]) == (orders.DONE, "unchecked")


def test_what_an_engine_remarks_is_told_with_its_model(tmp_path: Path) -> None:
    said: list[Mapping[str, Any]] = []
    device = loaded(said, Remarking)
    device.obey({"op": orders.RUN, "job": job(tmp_path, "a").to_json()})
    while device.busy:
        device.step()

    remarks = [event for event in said if event["event"] == orders.REMARK]
    assert remarks[0] == {
        "event": orders.REMARK,
        "name": "kernels_ready",
        "facts": {"model_id": MODEL, "precision": "float16"},
    }


@pytest.mark.parametrize(("device", "expected"), [("cpu", ["fourfold/realesrgan-x4plus", MODEL]), ("cuda:0", [MODEL])])
def test_a_model_named_for_compiling_that_cannot_be_is_told(device: str, expected: list[str]) -> None:
    """Lanczos on no device; an embedded network only on a GPU; Stable Diffusion on any."""
    named = ["fourfold/realesrgan-x4plus", "stabilityai/stable-diffusion-x4-upscaler", MODEL]

    assert uncompiled(argparse.Namespace(compile_models=named), ComputeDevice(device)) == expected
    assert uncompiled(argparse.Namespace(compile_models=None), ComputeDevice(device)) == []


GPU = ComputeDevice("cuda:0", 23 * 2**30)
CPU = ComputeDevice("cpu", None)


def told(**arguments: Any) -> argparse.Namespace:
    """Return a child's command line."""
    usual = {"threads": 2, "memory_bytes": 2**30, "float32": False, "strict": False, "compile_models": None}
    return argparse.Namespace(**{**usual, "model_paths": {}, "networks": {}, **arguments})


@pytest.mark.parametrize(
    ("compute", "strict", "rows"),
    [(GPU, False, (1, 2, 4, 8)), (GPU, True, (4,)), (CPU, False, (1,)), (CPU, True, (1,))],
)
def test_strict_is_one_batch_size(compute: ComputeDevice, strict: bool, rows: tuple[int, ...]) -> None:
    """On a GPU there are several otherwise; a CPU gains nothing by batches."""
    assert engine_settings(told(strict=strict), compute).batch_rows == rows


def test_a_gpus_memory_is_its_own_and_a_cpus_is_the_budget() -> None:
    """Of which the safety checker has its part, as it runs on the CPU wherever models do."""
    assert engine_settings(told(), GPU, safety_bytes=300).memory_budget_bytes == 23 * 2**30
    assert engine_settings(told(), CPU, safety_bytes=300).memory_budget_bytes == 2**30 - 300


@pytest.mark.parametrize(
    ("models", "compute", "expected"),
    [(None, GPU, True), (None, CPU, False), ([MODEL], CPU, True), ([], GPU, False), (["another"], GPU, False)],
)
def test_kernels_are_compiled_as_told_else_on_a_gpu(
    models: list[str] | None, compute: ComputeDevice, expected: bool
) -> None:
    assert compiles(MODEL, told(compile_models=models), compute) is expected
