"""What an engine is told about the machine that it runs on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fourfold.engine.base import Precision
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

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}")
        if self.memory_budget_bytes is not None and self.memory_budget_bytes < 1:
            raise ConfigError(f"memory_budget_bytes must be positive or absent, got {self.memory_budget_bytes}")


def has_bf16(cpu_info: Path = CPU_INFO) -> bool:
    """Say whether this processor multiplies bfloat16 in hardware: without that, bfloat16 is several times slower."""
    try:
        text = cpu_info.read_text()
    except OSError:
        return False
    flags = set(text.split())
    return bool(flags & {"avx512_bf16", "amx_bf16"})
