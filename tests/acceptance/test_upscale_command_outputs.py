"""What `fourfold upscale` writes, by its flags, and `fourfold compare`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FAST = ("--model", "fourfold/lanczos")


def fourfold(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fourfold", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, check=False)


def opened(path: Path) -> tuple[str | None, tuple[int, int]]:
    """Return format and size, all of it decoded."""
    with Image.open(path) as image:
        image.load()
        return image.format, image.size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two smooth pictures, photo.png with an author and a place."""
    y, x = np.mgrid[0:30, 0:40]
    image = Image.fromarray(np.dstack([x * 6, y * 8, x + y]).astype(np.uint8))
    exif = Image.Exif()
    exif[0x013B] = "the author"
    exif.get_ifd(0x8825)[1] = "N"
    image.save(tmp_path / "photo.png", exif=exif)
    image.save(tmp_path / "plain.png")
    return tmp_path


def test_format_quality_size_and_metadata_are_as_asked(folder: Path) -> None:
    """For every picture of a batch."""
    flags = ["--format", "jpeg", "--quality", "70", "--scale", "2.5", "--metadata", "copyright", "--suffix", " big"]
    done = fourfold("upscale", "photo.png", "plain.png", *flags, *FAST, cwd=folder)

    assert done.returncode == 0, done.stderr
    assert opened(folder / "photo big.jpg") == opened(folder / "plain big.jpg") == ("JPEG", (100, 75))
    with Image.open(folder / "photo big.jpg") as image:
        exif = image.getexif()
    assert (exif.get(0x013B), dict(exif.get_ifd(0x8825))) == ("the author", {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "name", "expected"),
    [
        (["-o", "x.webp"], "x.webp", ("WEBP", (160, 120))),
        (["-o", "x.tiff"], "x.tiff", ("TIFF", (160, 120))),
        (["--format", "avif"], "photo-4x.avif", ("AVIF", (160, 120))),
        (["-o", "new/"], "new/photo-4x.png", ("PNG", (160, 120))),
        (["--width", "80", "--height", "80"], "photo-4x.png", ("PNG", (80, 60))),
        (["--width", "80", "--height", "80", "--fit", "exact"], "photo-4x.png", ("PNG", (80, 80))),
        (["--tileable"], "photo-4x.png", ("PNG", (160, 120))),
    ],
)
def test_one_picture_as_asked(folder: Path, flags: list[str], name: str, expected: tuple[str, tuple[int, int]]) -> None:
    """The name says the format where no flag does."""
    done = fourfold("upscale", "photo.png", *flags, *FAST, "--json", cwd=folder)

    assert done.returncode == 0, done.stderr
    assert opened(folder / name) == expected
    facts = json.loads(done.stdout)
    assert (facts["width"], facts["height"], facts["output"]) == (*expected[1], name)
    assert facts["fidelity"]["output"]["format"] == expected[0].lower()


@pytest.mark.slow
def test_more_than_four_times_is_refused_for_that_picture(folder: Path) -> None:
    """The others may be large enough."""
    Image.new("RGB", (100, 100)).save(folder / "large.png")
    done = fourfold("upscale", "photo.png", "large.png", "--width", "400", "--json", *FAST, cwd=folder)

    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, found[0]["error"]["code"]) == (65, "invalid_parameter")
    assert opened(folder / "large-4x.png") == ("PNG", (400, 400))


@pytest.mark.slow
def test_before_and_after_stand_beside_the_result(folder: Path) -> None:
    """And are no picture to be upscaled by the next run."""
    done = fourfold("upscale", "photo.png", "--compare", *FAST, "--json", cwd=folder)
    facts = json.loads(done.stdout)
    again = fourfold("upscale", ".", "--skip-existing", "--json", *FAST, cwd=folder)

    assert facts["comparison"] == "photo-4x-compare.png"
    kind, (width, height) = opened(folder / "photo-4x-compare.png")
    assert kind == "PNG" and width >= 2 * 160 and height >= 120
    assert json.loads(again.stdout.splitlines()[-1])["summary"]["left_out"] == 2


def test_compare_tells_how_alike_two_pictures_are(folder: Path) -> None:
    """As numbers, and side by side; of two sizes the smaller one is enlarged, and that is said."""
    with Image.open(folder / "plain.png") as image:
        image.resize((160, 120), Image.Resampling.LANCZOS).save(folder / "large.png")
    people = fourfold("compare", "plain.png", "large.png", "-o", "pair.png", cwd=folder)
    programs = fourfold("compare", "photo.png", "plain.png", "--json", cwd=folder)

    assert people.returncode == 0, people.stderr
    first, numbers, name = people.stdout.splitlines()
    assert first == "A was enlarged from 40 x 30 to 160 x 120, to compare"
    assert float(numbers.split()[1]) > 30 and numbers.startswith("PSNR ") and " dB  SSIM 0.9" in numbers
    assert name == "pair.png" and opened(folder / name)[1][0] >= 2 * 160
    facts: dict[str, Any] = json.loads(programs.stdout)
    assert (facts["psnr_db"], facts["ssim"], facts["enlarged"], facts["output"]) == (99.0, 1.0, None, None)
    assert facts["a"] == {"path": "photo.png", "width": 40, "height": 30}
