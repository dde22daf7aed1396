"""The first moment of the command, before there is anything that could handle a signal."""

import os
import signal
import subprocess
import sys
from pathlib import Path


def test_ctrl_c_while_it_is_imported_ends_it_without_a_traceback(tmp_path: Path) -> None:
    """As a shell expects it: by the signal."""
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}

    ended = subprocess.run([sys.executable, "-m", "fourfold", "models"], env=environ, capture_output=True, timeout=60)

    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, b"", b"")
