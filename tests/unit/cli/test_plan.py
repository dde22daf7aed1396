"""Which picture becomes which file: pure, so no file of these tests exists."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.cli.inputs import Found
from fourfold.cli.plan import Item, Naming, Plan, format_of, plan, plan_one
from fourfold.errors import InvalidParameterError


def resolve(path: Path) -> Path:
    """No links, and "." is "/"."""
    parts: list[str] = []
    for part in PurePosixPath("/", path).parts:
        if part == "..":
            parts = parts[:-1] or ["/"]
        elif part != ".":
            parts.append(part)
    return Path(*parts)


def named(path: str) -> Found:
    return Found(Path(path), Path(path).parent, named=True)


def found(path: str, root: str) -> Found:
    return Found(Path(path), Path(root), named=False)


def pairs(*inputs: Found, resolved_by: Callable[[Path], Path] = resolve, **naming: object) -> list[tuple[str, str]]:
    done = plan(inputs, Naming(**naming), resolve=resolved_by)  # type: ignore[arg-type]
    return [(str(item.source), str(item.target)) for item in done.items]


def test_a_result_stands_beside_its_picture() -> None:
    """With the suffix and the extension of the format."""
    assert pairs(named("a/x.png"), named("a/y.tar.jpg")) == [
        ("a/x.png", "a/x-4x.png"),
        ("a/y.tar.jpg", "a/y.tar-4x.png"),
    ]
    assert pairs(named("x.png"), suffix="_big", extension=".jpg") == [("x.png", "x_big.jpg")]


def test_a_folder_keeps_the_structure_of_what_was_searched() -> None:
    """And takes named files as they are called."""
    inputs = [found("in/x.png", "in"), found("in/a/b/y.png", "in"), named("elsewhere/z.png")]

    assert pairs(*inputs, folder=Path("out")) == [
        ("in/x.png", "out/x-4x.png"),
        ("in/a/b/y.png", "out/a/b/y-4x.png"),
        ("elsewhere/z.png", "out/z-4x.png"),
    ]


def test_only_folders_for_results_are_made() -> None:
    """A picture's own folder is there."""
    assert plan([named("x.png")], Naming(folder=Path("out")), resolve=resolve).items[0].makes_folder
    assert not plan([named("x.png")], Naming(), resolve=resolve).items[0].makes_folder


def test_results_of_earlier_runs_are_left_alone() -> None:
    """Found by their names, also where the picture they came from has gone; told apart from what is to do."""
    inputs = [found(f"in/{name}", "in") for name in ("x.png", "x-4x.png", "x-4x-compare.png", "gone-4x.jpg", "4x.png")]
    done = plan(inputs, Naming(), resolve=resolve)

    assert [str(item.source) for item in done.items] == ["in/x.png", "in/4x.png"]
    assert [str(path) for path in done.left_out] == ["in/x-4x.png", "in/x-4x-compare.png", "in/gone-4x.jpg"]


def test_a_folder_for_results_inside_the_searched_one_is_left_alone() -> None:
    """Whatever the results in it are called."""
    inputs = [found("in/x.png", "in"), found("in/out/x.png", "in"), found("in/outer/y.png", "in")]

    expected = [("in/x.png", "in/out/x.png"), ("in/outer/y.png", "in/out/outer/y.png")]
    assert expected == pairs(*inputs, folder=Path("in/out"), suffix="")


def test_a_folder_for_results_around_the_searched_one_hides_nothing() -> None:
    """Only below what was searched is it left alone."""
    assert pairs(found("all/in/x.png", "all/in"), folder=Path("all")) == [("all/in/x.png", "all/x-4x.png")]
    assert pairs(found("in/x.png", "in"), folder=Path("in")) == [("in/x.png", "in/x-4x.png")]


def test_a_named_result_is_upscaled_again() -> None:
    """Somebody wants it sixteen times as large."""
    assert pairs(named("x-4x.png")) == [("x-4x.png", "x-4x-4x.png")]


def test_a_shell_that_expands_to_pictures_and_their_results_means_the_pictures() -> None:
    """`fourfold upscale *.png` can be said twice."""
    inputs = [named("x-4x-compare.png"), named("x-4x.png"), named("x.png"), named("other-4x.png")]

    assert pairs(*inputs) == [("x.png", "x-4x.png"), ("other-4x.png", "other-4x-4x.png")]


def test_what_is_found_twice_is_done_once() -> None:
    """However it is spelt."""
    assert pairs(found("in/x.png", "in"), named("./in/../in/x.png"), named("in/x.png")) == [("in/x.png", "in/x-4x.png")]


@pytest.mark.parametrize(
    ("inputs", "naming", "words"),
    [
        ([named("x.png")], {"suffix": ""}, "x.png would overwrite itself"),
        ([named("x.jpg"), named("x.png")], {"suffix": ""}, "x.jpg would overwrite x.png"),
        ([named("a/x.png"), named("x.png")], {"suffix": "", "folder": Path()}, "a/x.png would overwrite x.png"),
        ([named("x.jpg"), named("x.png")], {}, "x.jpg and x.png would both become x-4x.png"),
        ([found("a/x.png", "a"), found("b/x.png", "b")], {"folder": Path("out")}, "both become out/x-4x.png"),
    ],
)
def test_nothing_is_overwritten(inputs: list[Found], naming: dict[str, object], words: str) -> None:
    """Neither a picture nor another one's result: said before any work."""
    with pytest.raises(InvalidParameterError, match=words):
        pairs(*inputs, **naming)


def test_a_link_to_the_picture_is_the_picture() -> None:
    """The truth about a path is asked, not read from it."""
    same = {Path("link/x-4x.png"): Path("/x.png")}

    with pytest.raises(InvalidParameterError, match="itself"):
        pairs(named("x.png"), folder=Path("link"), resolved_by=lambda path: same.get(path, resolve(path)))


def test_a_named_result_may_be_called_anything_but_like_the_picture() -> None:
    """One picture, one file."""
    assert Plan((Item(Path("x.png"), Path("y")),), ()) == plan_one(Path("x.png"), Path("y"), resolve=resolve)
    with pytest.raises(InvalidParameterError, match="itself"):
        plan_one(Path("x.png"), Path("a/../x.png"), resolve=resolve)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("x.png", "png"), ("x.JPG", "jpeg"), ("x.jpeg", "jpeg"), ("x.tiff", "tiff"), ("x.tif", "tiff"), ("x", None)],
)
def test_the_name_of_a_result_says_its_format(name: str, expected: str | None) -> None:
    """Where it says anything."""
    assert expected == format_of(Path(name))


_NAMES = st.sampled_from(["x.png", "x.jpg", "y.png", "x-4x.png", "a/x.png", "a/b/x.png", "x-4x-4x.png"])


@given(names=st.lists(_NAMES, max_size=6), are_named=st.booleans(), folder=st.sampled_from([None, "out", "a", "."]))
def test_no_plan_reads_what_it_writes(names: list[str], are_named: bool, folder: str | None) -> None:
    """Whatever is asked: each target is no source and no other one's target, or there is no plan."""
    inputs = [Found(Path(name), Path(), named=are_named) for name in names]
    try:
        done = plan(inputs, Naming(folder=Path(folder) if folder else None), resolve=resolve)
    except InvalidParameterError:
        return
    targets = [resolve(item.target) for item in done.items]

    assert len(set(targets)) == len(targets)
    assert not set(targets) & {resolve(item.source) for item in done.items}
