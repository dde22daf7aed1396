"""The Dockerfile: linted, its steps carried out, and what it describes run as an engine would; see conftest.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from fourfold import __version__
from fourfold.testing.pictures import png, png_size

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
GRACE_S = 60


def test_the_linter_finds_nothing() -> None:
    """With hadolint's own rules, none switched off."""
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_a_network_that_drains(image, run_container, tmp_path: Path) -> None:
    """As it stands: `docker run --read-only --tmpfs /tmp`. Healthy, makes a picture, ends with 0 on SIGTERM."""
    assert image.user == "10001:10001" and image.volumes == ["/data"]
    with run_container(image, tmp_path / "up", environ={"FOURFOLD_WORKER__THREADS": "1"}) as container:
        container.wait_healthy(*image.healthcheck)
        first = container.first
        assert {first.uids().real, first.uids().effective, first.gids().effective} == {10001}
        privileges = dict(
            line.split(":\t") for line in Path(f"/proc/{first.pid}/status").read_text().splitlines() if ":\t" in line
        )
        assert {privileges[f"Cap{kind}"].strip("0") for kind in ("Prm", "Eff", "Bnd", "Amb")} == {""}
        assert privileges["NoNewPrivs"] == "1"
        root = next(
            line for line in Path(f"/proc/{first.pid}/mountinfo").read_text().splitlines() if line.split()[4] == "/"
        )
        assert root.split()[5].split(",")[0] == "ro"
        writable = container.exec("find", "/", "-xdev", "-type", "d", "-writable").stdout.split()
        assert {path.split("/")[1] for path in writable} == {"data", "tmp"}
        assert container.exec("fourfold", "--version").stdout == f"fourfold {__version__}\n"

        (tmp_path / "up/data/in.png").write_bytes(png(24, 16))
        through = ["--gateway", "http://127.0.0.1:9935", "--model", "fourfold/lanczos"]
        made = container.exec("fourfold", "upscale", "/data/in.png", "-o", "/data/out.png", *through)
        assert made.returncode == 0, made.stderr
        assert png_size((tmp_path / "up/data/out.png").read_bytes()) == (96, 64)

        status = container.stop(GRACE_S)

    assert status == 0, container.log.read_text()
    assert "role_killed" not in container.log.read_text()


def test_a_volume_of_somebody_else_is_refused_by_name(image, run_container, tmp_path: Path) -> None:
    """A bind mount that root made: the message says what cannot be used, and the status that it is a setting."""
    with run_container(
        image,
        tmp_path / "foreign",
        ["gateway", "--orchestrator", "https://127.0.0.1:1"],
        environ={"FOURFOLD_DATA_DIR": "/opt"},
    ) as container:
        status = container.process.wait(GRACE_S)

    assert status == 78 and "cannot use the data folder /opt/gateway: " in container.log.read_text()
