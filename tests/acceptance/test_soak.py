"""bench/soak.py, shortened: it runs, every request is answered, and nothing grows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_short_soak() -> None:
    """A hundred requests; five thousand are for an operator's patience."""
    command = [sys.executable, str(ROOT / "bench" / "soak.py"), "--requests", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert sum(report["outcomes"].values()) == 100
    assert report["is_flat"]
