"""A batch: each picture whole or not at all, and what fails fails alone."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from fourfold.cli.batch import Outcome, Status, run_batch, split_existing, whole_or_nothing
from fourfold.cli.plan import Item
from fourfold.cli.progress import Board, OnProgress
from fourfold.errors import InvalidImageError, InvalidParameterError, StorageFullError, UnreachableError


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Three pictures and where they go."""
    for name in "abc":
        (tmp_path / name).write_text(name)
    return [Item(tmp_path / name, tmp_path / f"{name}-4x", makes_folder=False) for name in "abc"]


async def upscale(source: Path, target: Path, on_progress: OnProgress) -> dict[str, Any]:
    """Write the picture's text four times."""
    if source.name == "b":
        raise InvalidImageError("b is damaged")
    target.write_text(source.read_text() * 4)
    return {"model_id": "fake"}


async def run(items: list[Item], **changes: Any) -> list[Outcome]:
    outcomes: list[Outcome] = []
    arguments = {"upscale": upscale, "jobs": 1, "board": Board(None, len(items)), "on_outcome": outcomes.append}
    await run_batch(items, **(arguments | changes))
    return outcomes


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("jobs", [1, 2, 9])
async def test_one_that_fails_stops_no_other(items: list[Item], tmp_path: Path, jobs: int) -> None:
    """And leaves nothing behind."""
    outcomes = await run(items, jobs=jobs)

    assert {o.source.name: o.status for o in outcomes} == {"a": Status.DONE, "b": Status.FAILED, "c": Status.DONE}
    assert names(tmp_path) == ["a", "a-4x", "b", "c", "c-4x"]
    assert (tmp_path / "c-4x").read_text() == "cccc"


async def test_an_accident_stops_no_other_either(items: list[Item]) -> None:
    """Even one that nobody thought of."""

    async def broken(source: Path, target: Path, on_progress: OnProgress) -> dict[str, Any]:
        raise ZeroDivisionError("by zero")

    assert [o.error.code for o in await run(items, upscale=broken) if o.error] == ["internal"] * 3


async def test_a_gateway_that_does_not_answer_is_not_asked_for_ever(items: list[Item]) -> None:
    """Three times in a row it has gone; one that answers in between has not."""

    async def silent(source: Path, target: Path, on_progress: OnProgress) -> dict[str, Any]:
        raise UnreachableError("nobody there")

    async def shaky(source: Path, target: Path, on_progress: OnProgress) -> dict[str, Any]:
        if source.name != "c":
            raise UnreachableError("nobody there")
        return {}

    assert len(await run(items * 5, upscale=silent)) == 3
    assert len(await run(items * 5, upscale=shaky)) == 15


async def test_several_are_done_at_once_and_no_more(items: list[Item]) -> None:
    """As many as jobs."""
    running, most = 0, 0

    async def counted(source: Path, target: Path, on_progress: OnProgress) -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return {}

    await run(items, upscale=counted, jobs=2)

    assert most == 2


async def test_cancelled_work_leaves_what_is_whole(items: list[Item], tmp_path: Path) -> None:
    """And no trace of the rest; what was told of stays told."""
    outcomes: list[Outcome] = []
    begun = asyncio.Event()

    async def endless(source: Path, target: Path, on_progress: OnProgress) -> dict[str, Any]:
        target.write_text("half")
        if source.name == "c":
            begun.set()
            await asyncio.Event().wait()
        return {}

    task = asyncio.create_task(run(items, upscale=endless, on_outcome=outcomes.append))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [outcome.source.name for outcome in outcomes] == ["a", "b"]
    assert names(tmp_path) == ["a", "a-4x", "b", "b-4x", "c"]


async def test_what_cannot_be_told_ends_the_batch_with_that_one_error(items: list[Item]) -> None:
    """As when the reader of our output has gone."""

    def gone(_: Outcome) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await run(items, on_outcome=gone)


async def test_a_comparison_is_written_with_the_result(items: list[Item], tmp_path: Path) -> None:
    """Before and after under their own names, as these are the labels."""
    labels: list[tuple[str, str]] = []

    async def compare(before: Path, after: Path, target: Path) -> None:
        labels.append((before.name, after.name))
        target.write_text("pair")

    outcomes = await run(items[:1], compare=compare)

    assert labels == [("a", "a-4x")]
    assert names(tmp_path) == ["a", "a-4x", "a-4x-compare.png", "b", "c"]
    assert outcomes[0].facts["comparison"] == str(tmp_path / "a-4x-compare.png")


async def test_a_comparison_that_cannot_be_costs_no_result(items: list[Item], tmp_path: Path) -> None:
    """The picture is what was wanted."""

    async def compare(before: Path, after: Path, target: Path) -> None:
        raise InvalidImageError("too large to compare")

    outcomes = await run(items[:1], compare=compare)

    assert (outcomes[0].status, outcomes[0].facts["comparison"]) == (Status.DONE, None)
    assert outcomes[0].facts["comparison_error"] == {"code": "invalid_image", "message": "too large to compare"}
    assert names(tmp_path) == ["a", "a-4x", "b", "c"]


async def test_what_cannot_be_written_is_told_before_the_work(items: list[Item], tmp_path: Path) -> None:
    """A name that is too long, a folder that is a file, a folder in the target's place."""
    (tmp_path / "folder").mkdir()
    targets = [tmp_path / ("x" * 300), tmp_path / "a/x", tmp_path / "folder"]

    async def never(source: Path, target: Path, on_progress: OnProgress) -> dict[str, Any]:
        raise AssertionError("the work was begun")

    outcomes = await run([Item(items[0].source, target) for target in targets], upscale=never)

    assert [o.error.code for o in outcomes if o.error] == ["storage_full", "storage_full", "invalid_parameter"]
    assert names(tmp_path) == ["a", "b", "c", "folder"]


async def test_folders_for_results_are_made(items: list[Item], tmp_path: Path) -> None:
    """But only where they are for results."""
    target = tmp_path / "new/er/a-4x"
    allowed = await run([Item(items[0].source, target, makes_folder=True)])
    refused = await run([Item(items[0].source, tmp_path / "typo/a-4x")])

    assert (allowed[0].status, target.read_text()) == (Status.DONE, "aaaa")
    assert (refused[0].status, (tmp_path / "typo").exists()) == (Status.FAILED, False)


async def test_a_picture_that_went_away_is_told(items: list[Item]) -> None:
    """Between the search and the work."""
    items[0].source.unlink()
    outcomes = await run(items[:1])

    assert isinstance(outcomes[0].error, InvalidParameterError)


def test_what_is_there_already_is_told_apart(items: list[Item]) -> None:
    """Only a file counts."""
    items[0].target.touch()
    items[1].target.mkdir()
    items.append(Item(items[0].source, items[0].target.with_name("x" * 300)))
    todo, there = split_existing(items)

    assert [item.source.name for item in todo] == ["b", "c", "a"]
    assert [(items[0].source, Status.SKIPPED)] == [(outcome.source, outcome.status) for outcome in there]


def test_an_old_result_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    """And longer, if that never comes."""
    target = tmp_path / "x.png"
    target.write_text("old")
    with pytest.raises(StorageFullError), whole_or_nothing(target) as unfinished:
        unfinished.write_text("half")
        raise StorageFullError("no room")

    assert (target.read_text(), names(tmp_path)) == ("old", ["x.png"])
    with whole_or_nothing(target) as unfinished:
        unfinished.write_text("new")
    assert (target.read_text(), names(tmp_path)) == ("new", ["x.png"])


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    """Nor a device: ``-o /dev/null``, as root, would end that for everybody."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(InvalidParameterError, match="a device or a pipe"), whole_or_nothing(tmp_path / "pipe"):
        pytest.fail("work began")


def test_a_link_stays_one(tmp_path: Path) -> None:
    """The file that it leads to is replaced."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "there" / "a.png")

    with whole_or_nothing(tmp_path / "link.png") as unfinished:
        unfinished.write_text("new")

    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "there" / "a.png").read_text() == "new"
