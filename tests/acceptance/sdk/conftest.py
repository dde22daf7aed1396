"""A real network for other people's SDKs to talk to: the installed command, real processes, loopback."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import pytest
from PIL import Image

from fourfold.testing.processes import Running, running

ROOT = Path(__file__).resolve().parents[3]
VENVS = ROOT / ".venvs"
HERE = Path(__file__).parent
NODE_MAJOR: Final = 18
SD_X4: Final = "stabilityai/stable-diffusion-x4-upscaler"
LANCZOS: Final = "fourfold/lanczos"
#: Small enough to be exceeded cheaply.
MAX_PIXELS = 65_536
MAX_UPLOAD_BYTES = 1_000_000

SETTINGS = f"""
[gateway.limits]
input_pixels = {MAX_PIXELS}
upload_bytes = {MAX_UPLOAD_BYTES}
"""
#: Of a second gateway at the same orchestrator.
OTHER_SETTINGS = f"""
[gateway]
max_jobs = 1
[gateway.model_aliases]
"{SD_X4}" = "{LANCZOS}"
"""


@dataclass(frozen=True, slots=True)
class Sdk:
    """What is particular about one of Livepeer's SDKs."""

    name: str  #: as its registry has it
    default_model: str  #: the model_id that it sends where the application names none
    uploads: tuple[str, ...]  #: forms in which it takes an image; the applications' words
    has_async: bool = False
    refusal: str = "HTTPError"  #: what it raises for a 400
    validation: str = "HTTPValidationError"  #: what it raises for a 422


SDKS: Final[Mapping[str, Sdk]] = {
    "pypi-livepeer-ai": Sdk("livepeer-ai", "", ("bytes", "file"), has_async=True),
    "pypi-livepeer": Sdk(
        "livepeer",
        SD_X4,
        ("bytes", "file"),
        has_async=True,
        refusal="GenUpscaleResponseBody",
        validation="GenUpscaleGenerateResponseResponseBody",
    ),
    "npm-livepeer-ai": Sdk("@livepeer/ai", "", ("bytes", "blob", "stream")),
    "npm-livepeer": Sdk("livepeer", SD_X4, ("bytes", "blob", "stream")),
}


class Application:
    """A program written with one SDK; it makes the calls that it is told to, and says what it sees."""

    def __init__(self, sdk: Sdk, process: "subprocess.Popen[str]", server_url: str, errors: IO[str]) -> None:
        self.sdk = sdk
        self._process = process
        self._server_url = server_url
        self._errors = errors

    def __call__(self, image: Path, **order: Any) -> dict[str, Any]:
        """Make one call; return what comes of it: a result, or what the SDK raises."""
        self.start(image, **order)
        return self.finish()

    def start(
        self,
        image: Path,
        *,
        server_url: str | None = None,
        file_name: str | None = None,
        upload: str = "bytes",
        unchecked: dict[str, Any] | None = None,
        retries: dict[str, Any] | None = None,
        is_async: bool = False,
        **fields: Any,
    ) -> None:
        """Have one call made; `finish` waits for its end."""
        order = {
            "server_url": server_url or self._server_url,
            "image": str(image),
            "file_name": file_name or image.name,
            "upload": upload,
            "fields": {"prompt": "", **fields},
            "unchecked": unchecked or {},
            "retries": retries,
            "is_async": is_async,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def finish(self) -> dict[str, Any]:
        """Return what came of the call; the SDK itself ends one that takes too long."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise AssertionError(f"the application has ended: {self._errors.read()}")
        seen: dict[str, Any] = json.loads(line)
        return seen


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Run ``fourfold up``."""
    folder = tmp_path_factory.mktemp("network")
    settings = folder / "fourfold.toml"
    settings.write_text(SETTINGS)
    flags = ["--config", str(settings), "--data-dir", str(folder / "data"), "--port", "0", "--orchestrator-port", "0"]
    with running("up", *flags) as command:
        yield command


@pytest.fixture(scope="session")
def gateway(network: Running) -> str:
    """The base URL of the network's gateway."""
    url: str = network.ready["gateway"]
    return url


@pytest.fixture(scope="session")
def other_gateway(network: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a second gateway: it maps Livepeer's upscaler to a model on offer and takes one job at a time."""
    folder = tmp_path_factory.mktemp("gateway")
    settings = folder / "fourfold.toml"
    settings.write_text(OTHER_SETTINGS)
    flags = ["--config", str(settings), "--data-dir", str(folder / "data"), "--port", "0"]
    with running("gateway", "--orchestrator", network.ready["orchestrator"], *flags) as command:
        yield command.ready["url"]


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 x 48 pixels of a real photo, as JPEG."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    with Image.open(ROOT / "examples" / "photo.jpg") as whole:
        whole.resize((64, 48), Image.Resampling.LANCZOS).save(path, quality=95)
    return path


@pytest.fixture(scope="session", params=SDKS)
def application(request: pytest.FixtureRequest, gateway: str) -> Iterator[Application]:
    """Run an application of each SDK, in turn; its calls go to the network."""
    sdk = SDKS[request.param]
    command = python_command(sdk) if request.param.startswith("pypi-") else node_command(request.param, sdk)
    with ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile("w+"))
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        )
        stack.callback(process.kill)
        yield Application(sdk, process, gateway, errors)


@pytest.fixture(scope="session")
def livepeer_ai_python() -> Path:
    """The interpreter of PyPI livepeer-ai's own environment."""
    return python_of(SDKS["pypi-livepeer-ai"])


def python_of(sdk: Sdk) -> Path:
    """Return the interpreter of a Python SDK's own environment."""
    python = VENVS / sdk.name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"the SDK {sdk.name} is not installed: scripts/sdk_python.sh, which `make test` runs")
    return python


def python_command(sdk: Sdk) -> list[Path | str]:
    """Return the command that runs an application of a Python SDK."""
    return [python_of(sdk), HERE / "python_application.py", sdk.name.replace("-", "_")]


def node_command(folder: str, sdk: Sdk) -> list[Path | str]:
    """Return the command that runs an application of a JavaScript SDK."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not here: scripts/system.sh, which `make test` runs, installs it where it can")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < NODE_MAJOR:
        pytest.skip(f"Node {version} is too old for Livepeer's SDKs, {NODE_MAJOR} is the least; install a newer one")
    if not (VENVS / folder / "installed").exists():
        pytest.skip(f"the SDK {sdk.name} is not installed: scripts/node_sdks.sh, which `make test` runs")
    return [node, HERE / "node_application.js", VENVS / folder, sdk.name]
