"""`fourfold upscale` and `fourfold models` at a prompt."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourfold.testing.processes import running

pytestmark = pytest.mark.slow

FAST = "fourfold/lanczos"


def fourfold(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fourfold", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, check=False)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A small picture."""
    pixels = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_a_picture_becomes_four_times_larger_beside_itself(photo: Path) -> None:
    """Without a network, with the real default model."""
    done = fourfold("upscale", str(photo))

    assert (done.returncode, size(photo.with_name("photo-4x.png"))) == (0, (160, 120))
    assert "fourfold/realesrgan-x4plus" in done.stdout
    assert sorted(path.name for path in photo.parent.iterdir()) == ["photo-4x.png", "photo.png"]


def test_the_facts_come_as_json(photo: Path, tmp_path: Path) -> None:
    """And nothing else on standard output."""
    target = tmp_path / "big.png"

    done = fourfold("upscale", str(photo), "-o", str(target), "--model", FAST, "--seed", "0", "--json")

    facts = json.loads(done.stdout)
    assert (facts["model_id"], facts["seed"], facts["output"]) == (FAST, 0, str(target))
    assert (facts["width"], facts["height"]) == size(target) == (160, 120)


@pytest.mark.parametrize("alias", ["photo", "compact", "anime"])
def test_short_names_stand_for_models(photo: Path, alias: str) -> None:
    """As `fourfold models` lists them."""
    done = fourfold("upscale", str(photo), "--model", alias, "--json")

    rows = json.loads(fourfold("models", "--json").stdout)
    expected = next(row["model_id"] for row in rows if alias in row["aliases"])
    assert json.loads(done.stdout)["model_id"] == expected


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["upscale", "nowhere.png"], 65, "no picture at nowhere.png"),
        (["upscale", "text.txt"], 65, "PNG, JPEG, WebP"),
        (["upscale", "photo.png", "--model", "no/such"], 65, "no/such"),
        (["upscale", "photo.png", "--seed", "-1"], 2, "seed"),
        (["upscale", "photo.png", "-o", "nowhere/x.png", "--model", FAST], 1, "nowhere"),
        (["upscale", "photo.png", "--gateway", "http://127.0.0.1:9"], 1, "gateway cannot be reached"),
        (["upscale", "photo.png", "--config", "nowhere.toml"], 78, "nowhere.toml"),
        (["upscale", "photo.png", "--modle", "x"], 2, "--model"),
        (["gateway"], 78, "--orchestrator"),
        (["gateway", "--orchestrator", "ftp://x"], 78, "ftp://x"),
    ],
)
def test_a_mistake_is_one_clear_line_and_a_stable_status(
    photo: Path, arguments: list[str], status: int, words: str
) -> None:
    """No traceback, and nothing half-written."""
    (photo.parent / "text.txt").write_text("text")
    (photo.parent / "folder").mkdir()

    done = fourfold(*arguments, cwd=photo.parent)

    assert (done.returncode, words in done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in photo.parent.rglob("*") if "part" in path.name or "4x" in path.name]


def test_ctrl_c_leaves_no_file_and_no_process(tmp_path: Path) -> None:
    """The picture in hand is cleaned up."""
    Image.fromarray(np.zeros((2000, 2000, 3), np.uint8)).save(tmp_path / "large.png")
    command = [sys.executable, "-m", "fourfold", "upscale", str(tmp_path / "large.png")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(4)  # into the work; there is nothing to wait on from outside
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)

    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["large.png"]


def test_through_a_gateway(photo: Path, tmp_path: Path) -> None:
    """The same command, somebody else's machine."""
    arguments = ("--data-dir", str(tmp_path / "d"), "--port", "0", "--orchestrator-port", "0")
    with running("up", *arguments) as network:
        done = fourfold("upscale", str(photo), "--gateway", network.ready["gateway"], "--model", FAST, "--json")
        other = fourfold("upscale", str(photo), "--gateway", network.ready["gateway"], "--model", "no/such")

    facts = json.loads(done.stdout)
    assert size(photo.with_name("photo-4x.png")) == (160, 120)
    assert (facts["model_id"], facts["fee_wei"]) == (FAST, 40 * 30 * 6357828)
    assert (other.returncode, "no/such" in other.stderr) == (65, True)


def test_the_models_are_listed() -> None:
    """For people and for programs."""
    table = fourfold("models")
    rows = json.loads(fourfold("models", "--json").stdout)

    assert table.returncode == 0 and all(row["model_id"].split("/")[1][:8] in table.stdout for row in rows)
    assert {row["model_id"] for row in rows if row["installed"]} >= {FAST, "fourfold/realesrgan-x4plus"}


def test_the_version_is_told() -> None:
    """For bug reports."""
    assert fourfold("--version").stdout.startswith("fourfold ")
