"""What an engine is told about the machine that it runs on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fourfold.engine.base import Precision
from fourfold.engine.networks import Networks
from fourfold.errors import ConfigError

CPU_INFO: Final = Path("/proc/cpuinfo")
"""Where Linux lists what its processors can do."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The share of the machine that one engine may use."""

    threads: int  #: cores at once, >= 1
    precision: Precision = Precision.AUTO  #: what a job with ``AUTO`` gets: AUTO again, or always float32
    memory_budget_bytes: int | None = (
        None  #: the model and a running tile together stay below it; None = the default tile
    )
    has_bf16: bool = False  #: whether the processor multiplies bfloat16 itself; see `has_bf16`
    device: str = "cpu"  #: "cpu" or torch's name of a GPU, "cuda:0"
    batch_rows: tuple[int, ...] = (1,)  #: how many rows one network call may have, ascending; a single one is strict
    compiler: str | None = None  #: torch.compile's backend, for engines that have a use for it; None = eager kernels
    model_paths: Mapping[str, Path] = field(default_factory=dict)  #: model_id -> where its files are
    networks: Networks = field(default_factory=dict)  #: model_id -> an operator's own network

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}")
        if self.memory_budget_bytes is not None and self.memory_budget_bytes < 1:
            raise ConfigError(f"memory_budget_bytes must be positive or absent, got {self.memory_budget_bytes}")
        if not self.batch_rows or self.batch_rows[0] < 1 or list(self.batch_rows) != sorted(set(self.batch_rows)):
            raise ConfigError(f"batch_rows must be positive and ascending, got {list(self.batch_rows)}")


def has_bf16(cpu_info: Path = CPU_INFO) -> bool:
    """Say whether this processor multiplies bfloat16 in hardware: without that, bfloat16 is several times slower."""
    try:
        text = cpu_info.read_text()
    except OSError:
        return False
    flags = set(text.split())
    return bool(flags & {"avx512_bf16", "amx_bf16"})
