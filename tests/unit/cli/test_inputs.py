"""Which pictures are meant by the words on a command line."""

from pathlib import Path

import pytest

from fourfold.cli.inputs import Found, find


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pictures and other things, as the current one."""
    names = ["in/b.png", "in/a.JPG", "in/notes.txt", "in/.hidden.png", "in/sub/ü x.webp", "in/sub/.cache/x.png"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(*words: str, recursive: bool = False) -> list[str]:
    found, problems = find(words, recursive=recursive)
    assert problems == []
    return [str(one.path) for one in found]


def codes(*words: str) -> list[tuple[str, str]]:
    _, problems = find(words)
    return [(str(problem.path), problem.error.code) for problem in problems]


def test_a_named_file_is_taken_whatever_its_name(tree: Path) -> None:
    """What is no picture is told when its bytes are read."""
    found, problems = find(["in/notes.txt", "in/.hidden.png"])

    assert problems == []
    assert [
        Found(Path("in/notes.txt"), Path("in"), named=True),
        Found(Path("in/.hidden.png"), Path("in"), named=True),
    ] == found


def test_a_folder_gives_its_visible_pictures_by_name(tree: Path) -> None:
    """Without the folders in it."""
    found, _ = find(["in"])

    assert [
        Found(Path("in/a.JPG"), Path("in"), named=False),
        Found(Path("in/b.png"), Path("in"), named=False),
    ] == found


def test_recursive_takes_the_folders_in_it_too(tree: Path) -> None:
    """But no hidden ones."""
    assert paths("in", recursive=True) == ["in/a.JPG", "in/b.png", "in/sub/ü x.webp"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*", ["in/a.JPG", "in/b.png", "in/sub/ü x.webp"]),
        ("in/?.png", ["in/b.png"]),
        ("in/[ab].*", ["in/a.JPG", "in/b.png"]),
        ("in/**/*.webp", ["in/sub/ü x.webp"]),
        ("i*/*.png", ["in/b.png"]),
    ],
)
def test_a_pattern_that_no_shell_expanded_is_expanded(tree: Path, pattern: str, expected: list[str]) -> None:
    """To pictures that are not hidden; a folder that it matches gives its own."""
    assert expected == paths(pattern)


def test_an_absolute_pattern_works(tree: Path) -> None:
    """As scripts write them."""
    assert [str(tree / "in/b.png")] == paths(f"{tree}/in/*.png")


def test_the_place_of_a_pattern_is_the_part_without_wildcards(tree: Path) -> None:
    """Below it the structure is kept."""
    found, _ = find(["in/**/*.webp"])

    assert [Found(Path("in/sub/ü x.webp"), Path("in"), named=False)] == found


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tree: Path) -> None:
    """Brackets are common in names."""
    (tree / "x[1].png").touch()

    assert paths("x[1].png") == ["x[1].png"]


def test_what_is_not_there_is_a_problem_of_that_word_alone(tree: Path) -> None:
    """The others are found."""
    found, problems = find(["nope.png", "in/b.png", "in/*.gif"])

    assert [str(one.path) for one in found] == ["in/b.png"]
    assert [(str(p.path), p.error.code) for p in problems] == [("nope.png", "not_found"), ("in/*.gif", "not_found")]


def test_a_folder_of_folders_asks_for_recursive(tree: Path) -> None:
    """Instead of doing nothing in silence."""
    (tree / "outer/inner").mkdir(parents=True)
    _, problems = find(["outer"])

    assert [p.error.message for p in problems] == ["no picture in outer; add -r to look into its folders"]


def test_an_empty_folder_is_no_problem(tree: Path) -> None:
    """There is nothing to do in it."""
    (tree / "empty").mkdir()

    assert paths("empty") == []


def test_a_link_that_makes_a_loop_ends(tree: Path) -> None:
    """A linked folder is not followed inside a folder, whichever way it is found."""
    (tree / "in/sub/loop").symlink_to(tree / "in", target_is_directory=True)
    (tree / "in/self").symlink_to("self")

    assert paths("in", recursive=True) == ["in/a.JPG", "in/b.png", "in/sub/ü x.webp"]
    assert paths("in/**/*.png") == ["in/b.png"]


def test_a_linked_folder_that_was_named_is_searched(tree: Path) -> None:
    """As is a linked file."""
    (tree / "link").symlink_to("in", target_is_directory=True)

    assert paths("link") == ["link/a.JPG", "link/b.png"]


def test_a_pattern_that_cannot_be_is_told(tree: Path) -> None:
    """In our words."""
    assert codes("in/b**.png") == [("in/b**.png", "invalid_parameter")]


def test_a_word_that_is_too_long_for_a_name_is_told(tree: Path) -> None:
    """As when a shell passes a list of names as one."""
    word = "x.png " * 100

    assert codes(word) == [(word, "not_found")]
