"""What a container says of cores and memory goes before what the machine has."""

from pathlib import Path

import psutil
import pytest

from fourfold.compose.limits import usable_cores, usable_memory_bytes

TOTAL = psutil.virtual_memory().total


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text + "\n")
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, TOTAL),
        ({"memory.max": "max"}, TOTAL),
        ({"memory.max": "536870912"}, 536870912),
        ({"memory.max": str(2**62)}, TOTAL),
        ({"memory/memory.limit_in_bytes": "536870912"}, 536870912),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, TOTAL),
        ({"memory.max": "garbage"}, TOTAL),
    ],
)
def test_memory_is_the_containers_where_it_has_a_limit(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    """Half of the host's would be killed at once."""
    assert usable_memory_bytes(write(tmp_path, files)) == expected


@pytest.mark.parametrize(
    "files",
    [
        {"cpu.max": "50000 100000"},
        {"cpu.max": "100000 100000"},
        {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"},
    ],
)
def test_cores_are_the_containers_where_it_has_a_quota(tmp_path: Path, files: dict[str, str]) -> None:
    """Threads beyond it are stopped in mid-work, all of them."""
    assert usable_cores(write(tmp_path, files)) == 1


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cpu.max": "max 100000"},
        {"cpu.max": "99900000 100000"},
        {"cpu.max": ""},
        {"cpu.max": "1 0"},
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
    ],
)
def test_without_a_quota_the_cores_are_the_machines(tmp_path: Path, files: dict[str, str]) -> None:
    """As on a machine of one's own."""
    assert usable_cores(write(tmp_path, files)) == usable_cores(tmp_path / "nowhere")
