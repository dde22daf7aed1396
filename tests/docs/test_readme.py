"""What README.md tells a stranger to type works."""

import importlib
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import typer
from PIL import Image

import fourfold.cli
from fourfold.cli.app import app
from fourfold.orchestrator.models import parse_models
from fourfold.testing.processes import running

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BASE_URL = "http://127.0.0.1:9935"
COMMAND_S = 120.0


def command_lines() -> list[str]:
    """Return every line of the README's shell blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [
        line for block in blocks for line in (line.partition("#")[0].strip() for line in block.splitlines()) if line
    ]


def command_lines_of(program: str) -> list[str]:
    """Return those of one program."""
    return [line for line in command_lines() if line.split()[0] == program]


@pytest.mark.parametrize("line", command_lines_of("fourfold"))
def test_the_command_line_accepts(line: str) -> None:
    """The command and its flags exist and take these values; nothing is run."""
    for module in pkgutil.iter_modules(fourfold.cli.__path__, "fourfold.cli."):
        importlib.import_module(module.name)  # each adds its commands to `app`
    root = typer.main.get_command(app)
    name, *arguments = shlex.split(line)[1:]
    with root.make_context("fourfold", [name, *arguments]) as context:
        _, command, rest = root.resolve_command(context, [name, *arguments])  # type: ignore[attr-defined]
        with command.make_context(name, rest, parent=context) as parsed:
            assert parsed.command is command


@pytest.mark.parametrize("line", command_lines_of("make"))
def test_the_make_target_exists(line: str) -> None:
    """``make -n`` knows it."""
    subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, check=True, capture_output=True, timeout=COMMAND_S)


def test_the_files_it_names_exist() -> None:
    """Each relative link, and each file under examples/, leads somewhere."""
    named = {*re.findall(r"\]\(([^)#:]+)\)", README), *re.findall(r"\bexamples/[\w.]+\w", README)}

    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_example_of_ai_models_json_is_accepted() -> None:
    """An orchestrator starts with it."""
    models = parse_models((ROOT / "examples" / "aiModels.json").read_text())

    assert models[0].model_id == "fourfold/realesrgan-x4plus"


def run(line: str, base_url: str, folder: Path) -> str:
    """Type *line* at a shell in *folder*, with this installation's command on the path; return what it prints."""
    if not (folder / "examples").exists():
        shutil.copytree(ROOT / "examples", folder / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line.replace(BASE_URL, base_url)],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("line", command_lines_of("curl"))
def test_curl_gets_a_picture(line: str, base_url: str, tmp_path: Path) -> None:
    """The answer's URL holds the example photo at four times its size."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed: scripts/system.sh, which `make test` runs")

    answer = json.loads(run(line, base_url, tmp_path))

    urllib.request.urlretrieve(answer["images"][0]["url"], tmp_path / "result.png")
    with Image.open(tmp_path / "result.png") as result:
        assert result.size == (1024, 768)


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in command_lines_of("fourfold") if line.split()[1] == "upscale"])
def test_the_upscale_command_writes_a_picture(line: str, base_url: str, tmp_path: Path) -> None:
    """Here, and through a gateway."""
    run(line, base_url, tmp_path)

    [result] = [*tmp_path.glob("*.png"), *(tmp_path / "examples").glob("*.png")]
    with Image.open(result) as picture:
        assert picture.size == (1024, 768)


@pytest.mark.slow
def test_the_models_command_lists_the_models(tmp_path: Path) -> None:
    """Those of the README's table."""
    [line] = [line for line in command_lines_of("fourfold") if line == "fourfold models"]

    listed = run(line, "", tmp_path)

    assert all(model_id in listed for model_id in re.findall(r"^\| `(fourfold/[\w-]+)`", README, re.MULTILINE))


@pytest.mark.slow
def test_the_roles_make_a_network_one_by_one(tmp_path: Path) -> None:
    """A worker, an orchestrator that sells its work by the example file, and a gateway; on free ports here."""
    worker_line, orchestrator_line, gateway_line = (
        shlex.split(next(line for line in command_lines_of("fourfold") if line.split()[1] == role))[1:]
        for role in ("worker", "orchestrator", "gateway")
    )
    port = worker_line.index("8000")
    models = tmp_path / "aiModels.json"
    data = ["--data-dir", str(tmp_path / "data")]
    result = tmp_path / "large.png"
    with running(*worker_line[:port], "0", *data) as worker:
        example = (ROOT / orchestrator_line[-1]).read_text()
        models.write_text(example.replace("http://127.0.0.1:8000", worker.ready["url"]))
        with (
            running(*orchestrator_line[:-1], str(models), "--port", "0", *data) as orchestrator,
            running(*gateway_line[:-1], orchestrator.ready["url"], "--port", "0", *data) as gateway,
        ):
            run(f"fourfold upscale examples/photo.jpg -o {result} --gateway {gateway.ready['url']}", "", tmp_path)
        assert any("order_done" in line for line in worker.log)

    with Image.open(result) as picture:
        assert picture.size == (1024, 768)
