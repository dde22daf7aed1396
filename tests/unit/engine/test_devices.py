"""Which device a worker's child takes."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [diffusion] extra")

import torch

from fourfold.engine import devices
from fourfold.engine.devices import ComputeDevice, pick_device, prepare_environment
from fourfold.errors import ConfigError

GIB = 2**30


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are two of 24 GiB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=24 * GIB))


@pytest.mark.parametrize(("wanted", "name"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")])
def test_a_gpu_is_taken_with_some_of_its_memory_left_free(two_gpus: None, wanted: str, name: str) -> None:
    assert pick_device(wanted, has_driver=True) == ComputeDevice(name, 23 * GIB)


def test_a_cpu_that_is_asked_for_is_taken(two_gpus: None) -> None:
    assert not pick_device("cpu", has_driver=True).is_gpu


def test_without_a_driver_torch_is_not_even_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked"))

    assert pick_device("auto", has_driver=False) == ComputeDevice("cpu")


def test_a_driver_without_a_gpu_means_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert pick_device("auto", has_driver=True) == ComputeDevice("cpu")


@pytest.mark.parametrize("has_torch", [True, False])
def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch, has_torch: bool) -> None:
    """Never silently the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if not has_torch:
        hidden: Any = lambda name: None  # noqa: E731
        monkeypatch.setattr(devices.importlib.util, "find_spec", hidden)
    with pytest.raises(ConfigError, match="cuda:3"):
        pick_device("cuda:3", has_driver=True)


def test_what_cublas_adds_in_which_order_is_fixed_unless_the_operator_says_otherwise() -> None:
    untouched: dict[str, str] = {}
    told = {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    for environ in (untouched, told):
        prepare_environment(environ)

    assert untouched == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    assert told == {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
