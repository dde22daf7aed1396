"""What a process loads before it can serve: most of a start is imports, and a network starts eight processes."""

import subprocess
import sys

import pytest

#: What each process runs -> what it must do without.
LEAN = {
    "fourfold.imaging.server": ("asyncio", "pydantic", "fourfold.config"),
    "fourfold.worker.child": ("asyncio", "pydantic", "openvino", "torch"),
    "fourfold.compose.network": ("numpy", "hypercorn", "starlette", "grpc", "cryptography"),
    "fourfold.compose.gateway": ("numpy", "fastapi", "openvino", "pyvips"),
    "fourfold.compose.orchestrator": ("numpy", "starlette", "hypercorn", "grpc", "cryptography", "openvino", "pyvips"),
    "fourfold.compose.worker": ("numpy", "fastapi", "hypercorn", "openvino", "pyvips"),
    "fourfold.cli.supervised": ("typer", "rich", "numpy"),
}


@pytest.mark.parametrize("module", LEAN)
def test_a_process_starts_without_what_it_does_not_need_yet(module: str) -> None:
    """A heavy library that comes back by one careless import would cost every start of a network."""
    script = f"import sys, {module}; print(sorted(set({LEAN[module]!r}) & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.strip() == "[]"
