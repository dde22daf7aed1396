"""The bars of a batch."""

import io

from rich.console import Console
from rich.progress import Progress

from fourfold.cli.progress import Board, board


def bars() -> Progress:
    return Progress(console=Console(file=io.StringIO(), force_terminal=True), auto_refresh=False)


def shown(progress: Progress) -> list[tuple[str, float, float | None]]:
    return [(task.description, task.completed, task.total) for task in progress.tasks]


def test_a_batch_counts_pictures_and_the_steps_of_those_in_hand() -> None:
    """A picture whose steps are done is not yet written, and the bar does not say that all is done."""
    progress = bars()
    both = Board(progress, 2)

    with both.follow("a [1].png") as of_a, both.follow("b.png") as of_b:
        of_a(1, 4)
        of_b(4, 4)
        assert shown(progress) == [("0 of 2", 0.225 + 0.9, 2), (r"a [1].png", 1, 4), ("b.png, writing", 4, 4)]
    assert shown(progress) == [("2 of 2", 2, 2)]


def test_one_picture_has_one_bar() -> None:
    """Nothing to count."""
    progress = bars()
    with Board(progress, 1).follow("a.png") as on_progress:
        assert shown(progress) == [("a.png", 0, None)]
        on_progress(1, 2)
        assert shown(progress) == [("a.png", 1, 2)]
    assert shown(progress) == []


def test_a_name_is_no_markup() -> None:
    """Square brackets are common in names."""
    progress = bars()
    with Board(progress, 1).follow("[bold]x"):
        assert shown(progress) == [(r"\[bold]x", 0, None)]


def test_nothing_is_shown_where_nobody_looks() -> None:
    """In a test, standard error is no terminal."""
    with board(3) as silent, silent.follow("a.png") as on_progress:
        on_progress(1, 2)
