"""A real network for other people's SDKs to talk to: the installed command, real processes, loopback."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fourfold.testing.processes import running

ROOT = Path(__file__).resolve().parents[3]
CALL_S = 120.0
#: Small enough to be exceeded cheaply.
MAX_PIXELS = 65_536
MAX_UPLOAD_BYTES = 1_000_000

SETTINGS = f"""
[gateway.limits]
input_pixels = {MAX_PIXELS}
upload_bytes = {MAX_UPLOAD_BYTES}
"""


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run ``fourfold up``; the base URL of its gateway."""
    folder = tmp_path_factory.mktemp("network")
    settings = folder / "fourfold.toml"
    settings.write_text(SETTINGS)
    flags = ["--config", str(settings), "--data-dir", str(folder / "data"), "--port", "0", "--orchestrator-port", "0"]
    with running("up", *flags) as command:
        yield command.ready["gateway"]


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 x 48 pixels of a real photo, as JPEG."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    with Image.open(ROOT / "examples" / "photo.jpg") as whole:
        whole.resize((64, 48), Image.Resampling.LANCZOS).save(path, quality=95)
    return path


@pytest.fixture(scope="session")
def livepeer_ai_python() -> Path:
    """The interpreter of the SDK's own environment."""
    python = ROOT / ".venvs" / "livepeer-ai" / "bin" / "python"
    if not python.exists():
        pytest.skip("the SDK livepeer-ai is not installed: scripts/sdk_livepeer_ai.sh, which `make test` runs")
    return python


@pytest.fixture(scope="session")
def livepeer_ai(gateway: str, livepeer_ai_python: Path) -> Callable[..., dict[str, Any]]:
    """Return the function that makes one call with the SDK and returns what the application sees."""

    def call(
        image: Path,
        *,
        file_name: str | None = None,
        unchecked: dict[str, Any] | None = None,
        is_async: bool = False,
        **fields: Any,
    ) -> dict[str, Any]:
        order = {
            "server_url": gateway,
            "image": str(image),
            "file_name": file_name or image.name,
            "fields": {"prompt": "", **fields},
            "unchecked": unchecked or {},
            "is_async": is_async,
        }
        done = subprocess.run(
            [livepeer_ai_python, Path(__file__).with_name("livepeer_ai_client.py")],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=CALL_S,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call
