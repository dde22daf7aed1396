"""Which device a process computes on; torch is asked only where there may be a GPU, as importing it takes seconds."""

import importlib.util
import shutil
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fourfold.errors import ConfigError

CPU: Final = "cpu"
AUTO: Final = "auto"
_SLACK_BYTES: Final = 2**30
"""Of a GPU's memory, for its context, its libraries' workspaces and the allocator's gaps."""

_ENVIRONMENT: Final = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""With workspaces of one size cuBLAS adds in the same order in every stream and run."""

_DRIVER: Final = Path("/dev/nvidia0")


@dataclass(frozen=True, slots=True)
class ComputeDevice:
    """A device by torch's name."""

    name: str  #: "cpu", "cuda:0"
    memory_bytes: int | None = None  #: what models and jobs may use of a GPU's own memory; None for a CPU

    @property
    def is_gpu(self) -> bool:
        """Whether it has a memory of its own."""
        return self.name != CPU


def prepare_environment(environ: MutableMapping[str, str]) -> None:
    """Set what a GPU's libraries read when they are first used, where the operator has not."""
    for name, value in _ENVIRONMENT.items():
        environ.setdefault(name, value)


def pick_device(wanted: str, *, has_driver: bool | None = None) -> ComputeDevice:
    """Return the device that the setting *wanted* means.

    Args: *has_driver*, whether a GPU may be there; None looks for its driver.

    Raises: ConfigError if a GPU was asked for by name and torch does not see it.
    """
    if has_driver is None:
        has_driver = _DRIVER.exists() or shutil.which("nvidia-smi") is not None
    if wanted == CPU or (wanted == AUTO and not (has_driver and importlib.util.find_spec("torch"))):
        return ComputeDevice(CPU)
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(f"worker.device is {wanted!r}, which needs torch; run: pip install 'fourfold[diffusion]'")
    import torch

    index = int(wanted.partition(":")[2] or 0)
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        if wanted == AUTO:
            return ComputeDevice(CPU)
        raise ConfigError(f"worker.device is {wanted!r}, but torch sees {torch.cuda.device_count()} GPUs")
    total = torch.cuda.get_device_properties(index).total_memory
    return ComputeDevice(f"cuda:{index}", max(1, total - _SLACK_BYTES))
