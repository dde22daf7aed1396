"""Known traps are refused in less than a second and 200 MB, each by a codec process that goes on afterwards."""

import asyncio
import time
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from PIL import Image

from fourfold.config import LimitSettings
from fourfold.errors import ImageTooLargeError, InvalidImageError, UnsupportedFormatError
from fourfold.imaging import Codec


@pytest.fixture(scope="module")
def bombs() -> ModuleType:
    """The files."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("imaging_bombs", Path(__file__).with_name("bombs.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_fifty_bombs_are_refused_at_once_and_in_little_memory(bombs: ModuleType, tmp_path: Path) -> None:
    """By one process, started once: it neither dies nor grows."""
    named = list(bombs.all_bombs())
    assert len(named) >= 50
    slow: list[tuple[str, float]] = []
    async with Codec(memory_bytes=2**30) as codec:
        (pid,) = (child.pid for child in psutil.Process().children() if "fourfold.imaging.server" in child.cmdline())
        for name, data in named:
            path = tmp_path / name
            path.write_bytes(data)
            started = time.process_time() + sum(psutil.Process(pid).cpu_times()[:2])
            with pytest.raises((InvalidImageError, ImageTooLargeError, UnsupportedFormatError)):
                await codec.prepare(path, tmp_path, LimitSettings())
                pytest.fail(f"{name} was taken")
            seconds = time.process_time() + sum(psutil.Process(pid).cpu_times()[:2]) - started
            if seconds > 1:
                slow.append((name, seconds))
            path.unlink()
        assert psutil.pid_exists(pid)
        with open(f"/proc/{pid}/status") as file:
            peak_kb = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    assert slow == []
    assert peak_kb < 200_000


async def test_a_caller_who_leaves_while_a_process_starts_leaves_none(tmp_path: Path) -> None:
    """A process that is killed with its caller is replaced for the next one; that one may leave, too."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    async with Codec() as codec:
        (first,) = codec._children
        first.kill()
        asked = asyncio.create_task(codec.prepare(tmp_path / "a.png", tmp_path, LimitSettings()))
        while not codec._children - {first}:
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait([asked])
        await codec.prepare(tmp_path / "a.png", tmp_path, LimitSettings())

        assert len(codec._children) == 1
