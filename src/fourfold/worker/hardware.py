"""What this machine has, in the runner API's words. GPUs come with the engines that use them; here there are none."""

import platform
from collections.abc import Mapping
from typing import Any

import psutil


def compute_info() -> dict[str, Mapping[str, Any]]:
    """Return the machine's compute devices by index; the CPU stands in where there is no GPU.

    Livepeer's ``GPUComputeInfo``: id, name, memory in bytes, compute capability (0.0 for a CPU).
    """
    memory = psutil.virtual_memory()
    name = platform.processor() or platform.machine()
    return {
        "0": {
            "id": f"cpu-{platform.node()}",
            "name": f"CPU {name} x{psutil.cpu_count() or 1}",
            "memory_total": memory.total,
            "memory_free": memory.available,
            "major": 0,
            "minor": 0,
        }
    }


def utilisation() -> dict[str, Mapping[str, Any]]:
    """Return how busy they are, in per cent, by the same index."""
    memory = psutil.virtual_memory()
    info = compute_info()["0"]
    return {
        "0": {
            "id": info["id"],
            "name": info["name"],
            "memory_total": memory.total,
            "memory_free": memory.available,
            "utilization_compute": round(psutil.cpu_percent(interval=None)),
            "utilization_memory": round(memory.percent),
        }
    }
