"""What is said of a batch."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fourfold.cli.batch import Outcome, Status
from fourfold.cli.report import Report
from fourfold.cli.status import status_of
from fourfold.cli.text import printable
from fourfold.errors import ConfigError, FourfoldError, InvalidImageError, NotFoundError, UnreachableError

_FACTS = {"output": "a-4x.png", "model_id": "fake", "width": 8, "height": 4, "seconds": 1.25}
_DONE = Outcome(Path("a.png"), Path("a-4x.png"), Status.DONE, _FACTS)
_SKIPPED = Outcome(Path("b.png"), Path("b-4x.png"), Status.SKIPPED)
_FAILED = Outcome(Path("c.png"), Path("c-4x.png"), Status.FAILED, error=InvalidImageError("c is damaged"))


def told(*outcomes: Outcome, as_json: bool = False, quiet: bool = False, signal_number: int | None = None) -> int:
    ticks = iter([10.0, 12.5])
    report = Report(as_json=as_json, quiet=quiet, clock=lambda: next(ticks))
    for outcome in outcomes:
        report.take(outcome)
    return report.close(left_out=["x"], planned=5, signal_number=signal_number)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([], 0),
        ([NotFoundError()], 65),
        ([NotFoundError(), InvalidImageError()], 65),
        ([NotFoundError(), UnreachableError()], 1),
        ([FourfoldError()], 1),
        ([ConfigError(), NotFoundError()], 78),
    ],
)
def test_the_status_says_whose_fault_it_is(errors: list[FourfoldError], expected: int) -> None:
    """The input's only where all of it is."""
    assert status_of(errors) == expected


def test_people_get_a_line_for_each_result_and_a_table_of_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    """Results on standard output, the rest beside it."""
    facts = {**_FACTS, "fidelity": {"warnings": ["the last 5 tokens were not used"]}}
    status = told(replace(_DONE, facts=facts), _SKIPPED, _FAILED)
    out, err = capsys.readouterr()

    assert (status, out) == (65, "a-4x.png  8 x 4  fake  1.2 s\n")
    assert err.startswith("a-4x.png: the last 5 tokens were not used\nfailed: c.png (invalid_image)\n")
    assert "c is damaged" in err
    assert err.endswith(
        "1 upscaled, 1 failed, 1 there already, 2 not done, 1 left alone as results of an earlier run; 2.5 s\n"
    )


def test_quiet_says_nothing_where_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    """And everything that failed."""
    assert (told(_DONE, _SKIPPED, quiet=True), capsys.readouterr()) == (0, ("", ""))
    told(_DONE, _FAILED, quiet=True)
    out, err = capsys.readouterr()
    assert (out, "c is damaged" in err) == ("", True)


def test_programs_get_a_line_for_each_picture_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing else, on either stream."""
    told(_DONE, _SKIPPED, _FAILED, as_json=True)
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]

    assert err == ""
    assert lines == [
        {"input": "a.png", "status": "done", **_FACTS},
        {"input": "b.png", "status": "skipped", "output": "b-4x.png"},
        {
            "input": "c.png",
            "status": "failed",
            "output": "c-4x.png",
            "error": {"code": "invalid_image", "message": "c is damaged"},
        },
        {
            "summary": {
                "done": 1,
                "skipped": 1,
                "failed": 1,
                "not_started": 2,
                "left_out": 1,
                "seconds": 2.5,
                "interrupted": False,
                "exit_status": 65,
            }
        },
    ]


def test_an_interrupted_batch_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    """Also to those who want quiet."""
    assert told(_DONE, quiet=True, signal_number=2) == 130
    assert "1 upscaled, 4 not done" in capsys.readouterr().err


def test_names_cannot_give_orders_to_a_terminal() -> None:
    """Escapes, line breaks and bytes that are no text are replaced; everything readable stays."""
    assert printable("ü 写真\x1b[2J\n\udcff.png") == "ü 写真\ufffd[2J\ufffd\ufffd.png"
