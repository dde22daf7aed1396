"""What a command refuses before any work, and with which status. No process is started."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fourfold.cli.app import run
from fourfold.testing.pictures import png

Fourfold = Callable[..., int]


@pytest.fixture
def fourfold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fourfold]:
    """Run the command in this process, in the folder of the test; return its status."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fourfold", *arguments])
        with pytest.raises(SystemExit) as ended:
            run()
        return int(ended.value.code or 0)

    yield command
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("fourfold").setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["a.png", "a.jpg"], 65, "a.png and a.jpg would both become a-4x.png"),
        (["a.png", "b.png", "--suffix", ""], 65, "a.png would overwrite itself"),
        (["a.png", "-o", "./a.png"], 65, "overwrite itself"),
        (["a.png", "-o", "link.png"], 65, "overwrite itself"),
        (["a.png", "b.png", "-o", "a.jpg"], 65, "need a folder"),
        (["a.png", "b.png", "-o", "new.png"], 65, "need a folder"),
        (["x" * 300 + ".png"], 65, "no picture at xxx"),
        (["empty"], 65, "no picture there"),
        (["*.gif"], 65, "no picture matches *.gif"),
        (["a.png", "b.png", "--model", "no/such"], 65, "no/such"),
        (["a.png", "b.png", "--suffix", "x/y"], 2, "suffix"),
        (["a.png", "-o", "x.gif"], 2, "cannot write .gif"),
        (["a.png", "-o", "-"], 2, "results are files"),
        (["a.png", "--prompt", "gr\udcfcn"], 2, "expected UTF-8 text"),
        (["a.png", "--guidance-scale", "101"], 2, "guidance-scale"),
        (["a.png", "-o", "x.png", "--format", "jpeg"], 2, "x.png is the name of a png file"),
        (["a.png", "--jobs", "0"], 2, "jobs"),
        (["a.png", "--scale", "5"], 2, "scale"),
        (["a.png", "--quality", "80"], 65, "png is lossless"),
        (["a.png", "b.png", "--config", "nowhere.toml"], 78, "nowhere.toml"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_work(
    fourfold: Fourfold,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    """One clear message, and no file is touched."""
    for name in ("a.png", "a.jpg", "b.png"):
        (tmp_path / name).write_bytes(png())
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "b-4x.png").symlink_to("b-4x.png")  # leads nowhere
    (tmp_path / "empty").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    assert fourfold("upscale", *arguments) == status
    assert words in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["a.png", "gone.png"], 65, "no picture at gone.png"),
        (["a.png", "b.png", "-o", "b.png"], 65, "would overwrite b.png"),
        (["a.png"], 2, "B"),
    ],
)
def test_a_comparison_needs_two_pictures_and_overwrites_none(
    fourfold: Fourfold,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    """Said before they are read."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png())

    assert fourfold("compare", *arguments) == status
    assert words in capsys.readouterr().err


def test_a_result_that_is_there_can_be_left(
    fourfold: Fourfold, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then nothing is started at all."""
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a-4x.png").touch()

    assert fourfold("upscale", "a.png", "--skip-existing") == 0
    assert fourfold("upscale", "a.png", "--skip-existing", "--json") == 0
    assert capsys.readouterr().out == 'a-4x.png is there already\n{"output": "a-4x.png", "status": "skipped"}\n'


def test_a_folder_of_nothing_but_results_is_done(
    fourfold: Fourfold, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No error, and it is said why nothing happens."""
    (tmp_path / "a-4x.png").touch()

    assert fourfold("upscale", ".") == 0
    assert "0 upscaled, 1 left alone as results of an earlier run" in capsys.readouterr().err
