"""Pixels in a file."""

from pathlib import Path

import numpy as np
import pytest

from fourfold.errors import StorageFullError
from fourfold.imaging import Canvas


@pytest.mark.parametrize("bits", [8, 16])
def test_regions_come_back_where_they_were_put(tmp_path: Path, bits: int) -> None:
    """In any order, full rows and parts of rows alike."""
    canvas = Canvas(tmp_path / "c.raw", 7, 5, bits)
    pixels = np.random.default_rng(1).integers(0, 2**bits, (5, 7, 3)).astype(canvas.dtype)

    with canvas.write() as writer:
        writer.put(3, 2, pixels[2:, 3:])
        writer.put(0, 0, pixels[:2])
        writer.put(0, 2, pixels[2:, :3])

    assert np.array_equal(canvas.read(), pixels)


@pytest.mark.parametrize(
    ("x", "y", "shape", "dtype"),
    [(5, 0, (1, 3, 3), np.uint8), (0, 5, (1, 1, 3), np.uint8), (0, 0, (1, 1, 4), np.uint8), (0, 0, (1, 1, 3), float)],
)
def test_a_region_that_does_not_fit_is_refused(tmp_path: Path, x: int, y: int, shape, dtype) -> None:
    """A wrong region would end up in somebody's picture."""
    with Canvas(tmp_path / "c.raw", 7, 5).write() as writer, pytest.raises(ValueError, match="expected uint8"):
        writer.put(x, y, np.zeros(shape, dtype))


def test_a_folder_that_cannot_be_written_has_its_own_error(tmp_path: Path) -> None:
    """The disk's fault, not the picture's."""
    with pytest.raises(StorageFullError):
        Canvas(tmp_path / "gone" / "c.raw", 7, 5).write()


def test_the_disk_is_reserved_before_the_work(tmp_path: Path) -> None:
    """A model that ran for minutes must not find the disk full afterwards."""
    canvas = Canvas(tmp_path / "c.raw", 300, 200)
    with canvas.write():
        assert canvas.path.stat().st_blocks * 512 >= canvas.path.stat().st_size == 300 * 200 * 3


def test_a_canvas_crosses_a_pipe(tmp_path: Path) -> None:
    """Its JSON says all of it."""
    canvas = Canvas(tmp_path / "c.raw", 7, 5, 16)

    assert Canvas.from_json(canvas.to_json()) == canvas
