"""What an engine is told about its machine."""

from pathlib import Path

import pytest

from fourfold.engine.base import Precision
from fourfold.engine.settings import EngineSettings, has_bf16
from fourfold.errors import ConfigError


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 avx512f avx512_bf16 sse4a", True),
        ("fpu amx_bf16 amx_tile", True),
        ("fpu avx2 avx512f", False),
        ("fpu xavx512_bf16x", False),
    ],
)
def test_the_processor_is_asked_for_bfloat16(tmp_path: Path, flags: str, expected: bool) -> None:
    """Only instructions that multiply it count: emulated, it is several times slower than float32."""
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(f"processor\t: 0\nmodel name\t: Any\nflags\t\t: {flags}\n")

    assert expected is has_bf16(cpu_info)


def test_a_system_that_does_not_say_counts_as_without(tmp_path: Path) -> None:
    """Right results, slower, rather than a guess."""
    assert not has_bf16(tmp_path / "cpuinfo")


def test_defaults() -> None:
    """Without a word about the machine, nothing of it is assumed."""
    assert EngineSettings(2, Precision.AUTO, None, False) == EngineSettings(threads=2)


@pytest.mark.parametrize(("threads", "budget"), [(0, None), (-1, None), (1, 0), (1, -5)])
def test_impossible_shares_are_refused(threads: int, budget: int | None) -> None:
    """An engine has at least one core and one byte."""
    with pytest.raises(ConfigError, match="must be"):
        EngineSettings(threads=threads, memory_budget_bytes=budget)
