"""`fourfold upscale` with many pictures, as a user has them: folders, patterns, bad files, Ctrl-C, a terminal."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from fourfold.testing.pictures import png
from fourfold.testing.processes import running

FAST = ("--model", "fourfold/lanczos")
COMMAND = (sys.executable, "-m", "fourfold", "upscale")


def upscale(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments, *FAST]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, check=False)


def fill(folder: Path, *names: str) -> None:
    """Make small pictures."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())


def large(path: Path, side_px: int = 3000) -> None:
    """Make a picture that takes seconds."""
    Image.fromarray(np.zeros((side_px, side_px, 3), np.uint8)).save(path)


def tree(folder: Path) -> list[str]:
    """Every file and folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def lines(done: subprocess.CompletedProcess[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the pictures' lines, and the summary."""
    *pictures, last = [json.loads(line) for line in done.stdout.splitlines()]
    return pictures, last["summary"]


@contextmanager
def begun(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Yield the command once its first picture is done."""
    with subprocess.Popen(
        [*COMMAND, *arguments, *FAST], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_folder_with_everything_in_it(tmp_path: Path) -> None:
    """Structure kept, hidden and other files and results passed by, loops of links left, and nothing done twice."""
    fill(tmp_path / "in", "a.png", "sub/ü 写真.png", "sub/x[1].png", ".hidden.png", ".cache/b.png", "old-4x.png")
    (tmp_path / "in/notes.txt").write_text("no picture")
    (tmp_path / "in/sub/loop").symlink_to(tmp_path / "in", target_is_directory=True)
    before = tree(tmp_path / "in")

    first = upscale("in", "-r", "-o", "in/out", cwd=tmp_path)
    second = upscale("in", "-r", "-o", "in/out", "--skip-existing", "--json", cwd=tmp_path)

    results = ["out/a-4x.png", "out/sub/x[1]-4x.png", "out/sub/ü 写真-4x.png"]
    assert first.returncode == 0, first.stderr
    assert tree(tmp_path / "in") == sorted([*before, *results])
    assert {size(tmp_path / "in" / result) for result in results} == {(48, 36)}
    assert sorted(line.split("  ")[0] for line in first.stdout.splitlines()) == [f"in/{result}" for result in results]
    pictures, summary = lines(second)
    assert {picture["status"] for picture in pictures} == {"skipped"}
    assert (summary["skipped"], summary["left_out"], summary["exit_status"]) == (3, 4, 0)


def test_one_bad_file_never_stops_the_batch(tmp_path: Path) -> None:
    """It is told what failed and why; the status says that the inputs are at fault."""
    fill(tmp_path, "a.png", "b.png", "z.png")
    (tmp_path / "m.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (tmp_path / "n.txt").write_text("text")

    done = upscale("a.png", "m.jpg", "n.txt", "gone.png", "[bz].png", "--jobs", "2", "--json", cwd=tmp_path)

    pictures, summary = lines(done)
    failed = {line["input"]: line["error"]["code"] for line in pictures if line["status"] == "failed"}
    assert failed == {"m.jpg": "invalid_image", "n.txt": "unsupported_format", "gone.png": "not_found"}
    assert (done.returncode, summary["exit_status"], summary["done"], summary["failed"]) == (65, 65, 3, 3)
    assert [name for name in tree(tmp_path) if "4x" in name] == ["a-4x.png", "b-4x.png", "z-4x.png"]
    assert done.stderr == ""


@pytest.mark.slow
def test_people_get_a_table_of_what_failed(tmp_path: Path) -> None:
    """A folder that cannot be written is not the input's fault: the status is 1."""
    fill(tmp_path, "a.png", "in/b.png", "in/sub/c.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").write_text("a file in the folder's place")
    (tmp_path / "in/d.png").write_text("text")

    done = upscale("in", "-r", "-o", "out", "--quiet", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert "failed: in/d.png (unsupported_format)" in done.stderr
    assert "What failed" in done.stderr and "storage_full" in done.stderr and "cannot write" in done.stderr
    assert "1 upscaled, 2 failed" in done.stderr
    assert tree(tmp_path / "out") == ["b-4x.png", "sub"]


def test_ctrl_c_in_the_middle_and_then_on(tmp_path: Path) -> None:
    """What is whole stays, nothing half does, no process either; --skip-existing does the rest."""
    fill(tmp_path, "a.png", "z.png")
    large(tmp_path / "m.png")
    with begun(str(tmp_path)) as process:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)

    assert (process.returncode, "1 upscaled, 2 not done" in err) == (130, True), err
    assert tree(tmp_path) == ["a-4x.png", "a.png", "m.png", "z.png"]
    assert len(family) >= 2 and psutil.wait_procs(family, timeout=5)[1] == []

    large(tmp_path / "m.png", 50)
    done = upscale(str(tmp_path), "--skip-existing", "--json", cwd=tmp_path)
    _, summary = lines(done)
    assert (done.returncode, summary["done"], summary["skipped"]) == (0, 2, 1)
    assert tree(tmp_path) == ["a-4x.png", "a.png", "m-4x.png", "m.png", "z-4x.png", "z.png"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "status"), [((signal.SIGINT, signal.SIGINT), 130), ((signal.SIGTERM,), 143)], ids=["twice", "terminate"]
)
def test_other_ways_to_stop_leave_nothing_either(tmp_path: Path, signals: tuple[int, ...], status: int) -> None:
    """A second Ctrl-C, for those who cannot wait; and what other programs send."""
    fill(tmp_path, "a.png")
    large(tmp_path / "m.png")
    with begun(str(tmp_path)) as process:
        assert process.stderr is not None
        family = psutil.Process(process.pid).children(recursive=True)
        for number in signals:
            process.send_signal(number)
            process.stderr.readline()  # "stopping": the signal has been taken
        process.communicate(timeout=20)

    assert process.returncode == status
    assert tree(tmp_path) == ["a-4x.png", "a.png", "m.png"]
    assert psutil.wait_procs(family, timeout=5)[1] == []


def test_a_terminal_shows_bars_and_a_pipe_does_not(tmp_path: Path) -> None:
    """With a count and the time that is left; what is printed on a pipe meanwhile stays plain."""
    fill(tmp_path, "a.png", "b.png")
    on_pipe, shown, status = in_terminal(str(tmp_path), *FAST)

    assert status == 0
    assert "0 of 2" in shown and "2 of 2" in shown and "-:--:--" in shown and "\x1b[" in shown
    assert "2 upscaled" in shown
    names = [re.fullmatch(r"(.*)  48 x 36  fourfold/lanczos  [\d.]+ s", line) for line in on_pipe.splitlines()]
    assert [name and name[1] for name in names] == [str(tmp_path / "a-4x.png"), str(tmp_path / "b-4x.png")]


def in_terminal(*arguments: str) -> tuple[str, str, int]:
    """Run the command with a terminal as its standard error; return standard output, what was shown, the status."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm-256color"}
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=theirs, env=environ)
    os.close(theirs)
    shown = bytearray()
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # Linux says so at the end of a terminal
    finally:
        os.close(ours)
    out, _ = process.communicate(timeout=60)
    return out.decode(), shown.decode(), process.returncode


@pytest.mark.slow
def test_one_worker_does_the_whole_batch(tmp_path: Path) -> None:
    """Its model is loaded once: the same process does every picture."""
    fill(tmp_path, *(f"{number}.png" for number in range(12)))
    with begun(str(tmp_path)) as process:
        assert process.stdout is not None
        first = devices_of(process)
        for _ in range(5):
            process.stdout.readline()
        later = devices_of(process)
        out, _ = process.communicate(timeout=60)

    assert (process.returncode, len(out.splitlines())) == (0, 6)
    assert len(first) == 1 and first == later


def devices_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that hold models."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if any("fourfold.worker.child" in word for word in child.cmdline())]


@pytest.mark.slow
def test_several_at_once_through_a_gateway(tmp_path: Path) -> None:
    """The same batch with the same flags, somebody else's machine."""
    fill(tmp_path / "in", *(f"{number}.png" for number in range(6)))
    (tmp_path / "in/bad.png").write_text("text")
    arguments = ("--data-dir", str(tmp_path / "d"), "--port", "0", "--orchestrator-port", "0")
    with running("up", *arguments) as network:
        flags = ("--gateway", network.ready["gateway"], "--jobs", "3", "--format", "webp", "--scale", "2", "--compare")
        done = upscale("in", "-o", "out", *flags, "--json", cwd=tmp_path)

    pictures, summary = lines(done)
    assert (done.returncode, summary["done"], summary["failed"]) == (65, 6, 1), done.stderr
    assert {size(tmp_path / "out" / f"{number}-4x.webp") for number in range(6)} == {(24, 18)}
    assert all((tmp_path / "out" / f"{number}-4x-compare.png").is_file() for number in range(6))
    assert len({line["url"] for line in pictures if line["status"] == "done"}) == 6


@pytest.mark.slow
def test_ctrl_c_through_a_gateway_leaves_nothing(tmp_path: Path) -> None:
    """Neither of the upload nor of the download."""
    fill(tmp_path / "in", "a.png")
    large(tmp_path / "in/m.png")
    arguments = ("--data-dir", str(tmp_path / "d"), "--port", "0", "--orchestrator-port", "0")
    with running("up", *arguments) as network, begun(str(tmp_path / "in"), "--gateway", network.ready["gateway"]) as it:
        it.send_signal(signal.SIGINT)
        it.communicate(timeout=20)

    assert it.returncode == 130
    assert tree(tmp_path / "in") == ["a-4x.png", "a.png", "m.png"]
