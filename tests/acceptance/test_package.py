"""What is built from this tree: nothing missing, and the command works from the wheel, away from the sources."""

import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from fourfold import __version__
from fourfold.testing.pictures import png, png_size

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
INFO = f"fourfold-{__version__}.dist-info"
COMMAND_S = 120


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without a trace of this environment; return what it prints."""
    done = subprocess.run(
        command, cwd=cwd, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=COMMAND_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an sdist from this tree, and a wheel from that alone."""
    folder = tmp_path_factory.mktemp("package")
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder, cwd=ROOT)
    with tarfile.open(folder / f"fourfold-{__version__}.tar.gz") as sdist:
        sdist.extractall(folder, filter="data")
    unpacked = folder / f"fourfold-{__version__}"
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder, cwd=unpacked)
    return folder / f"fourfold-{__version__}-py3-none-any.whl"


def test_the_wheel_holds_the_sources_and_the_notices(wheel: Path) -> None:
    """All of them and nothing else, although it was built from the sdist."""
    sources = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = HeaderParser().parsestr(archive.read(f"{INFO}/METADATA").decode())
        readme = metadata.get_payload()

    assert {name for name in names if not name.startswith(INFO)} == sources
    assert {"fourfold/py.typed", "fourfold/protocol/livepeer.proto", "fourfold/protocol/livepeer_pb2.pyi"} <= sources
    notices = {f"{INFO}/licenses/{name}" for name in ("LICENSE", "THIRD_PARTY_NOTICES.md")}
    assert {name for name in names if "/licenses/" in name} == notices
    assert (metadata["Version"], metadata["License-Expression"]) == (__version__, "Apache-2.0")
    assert readme == (ROOT / "README.md").read_text()
    assert not any("torch" in needed for needed in metadata.get_all("Requires-Dist", []) if "extra ==" not in needed)


def test_the_command_works_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, that borrows the dependencies and nothing of ours."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    binaries = tmp_path / "venv/bin"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        binaries / "python",
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
    ]
    run(*pip, wheel, cwd=tmp_path)
    [packages] = (tmp_path / "venv/lib").glob("python3*/site-packages")
    # The paths that this file names are searched; the files in them that name further paths, as an editable install's,
    # are not.
    (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (tmp_path / "in.png").write_bytes(png(24, 16))

    where = run(binaries / "python", "-c", "import fourfold; print(fourfold.__file__)", cwd=tmp_path)
    version = run(binaries / "fourfold", "--version", cwd=tmp_path)
    run(binaries / "fourfold", "upscale", "in.png", "--model", "fourfold/lanczos", cwd=tmp_path)

    assert Path(where.strip()).parent == packages / "fourfold"
    assert version == f"fourfold {__version__}\n"
    assert png_size((tmp_path / "in-4x.png").read_bytes()) == (96, 64)
