"""Which pictures are meant by the words on a command line: files, folders and patterns. Reads the disk, opens nothing.

A link to a folder is not followed inside a folder, so that loops of links end; hidden files and folders are passed by.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fourfold.errors import FourfoldError, InvalidParameterError, NotFoundError

#: What is taken for a picture where nobody named the file itself. Its bytes decide later what it is.
PICTURE_SUFFIXES: Final = frozenset(
    {
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".webp",
        ".gif",
        ".tif",
        ".tiff",
        ".avif",
        ".bmp",
        ".heic",
        ".heif",
        ".jxl",
    }
    | {".heic", ".heif", ".jxl"}
)
_MAGIC: Final = "*?["


@dataclass(frozen=True, slots=True)
class Found:
    """A file that is meant."""

    path: Path
    root: Path  #: the folder below which its place is kept
    named: bool  #: somebody wrote its name, instead of a folder or a pattern that it was found by


@dataclass(frozen=True, slots=True)
class Problem:
    """A word that stands for no file, or a folder that cannot be read."""

    path: Path
    error: FourfoldError


def find(words: Sequence[str], *, recursive: bool = False) -> tuple[list[Found], list[Problem]]:
    """Return the files that *words* mean, in their order, and what is wrong with the other words.

    Args: *words*, files, folders (with *recursive*, all below them) and patterns in case the shell expanded none.
    """
    found: list[Found] = []
    problems: list[Problem] = []
    for word in words:
        path = Path(word)
        if os.path.isdir(word):  # Path.is_dir raises for a name that is too long, as a long list of names may be
            pictures = list(_in_folder(path, path, problems, recursive=recursive))
            if not pictures and not recursive and any(_visible_folders(path)):
                problems.append(Problem(path, NotFoundError(f"no picture in {path}; add -r to look into its folders")))
            found += pictures
        elif os.path.isfile(word):
            found.append(Found(path, path.parent, named=True))
        elif any(char in word for char in _MAGIC):
            found += _by_pattern(path, problems, recursive=recursive)
        else:
            problems.append(Problem(path, NotFoundError(f"no picture at {path}; expected the path of an image file")))
    return found, problems


def is_picture(path: Path) -> bool:
    """Whether the name of *path* is that of a picture which is not hidden."""
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")


def true_path(path: Path) -> Path:
    """Return where *path* leads, links followed; the file may not exist, and a loop of links leads to itself."""
    return Path(os.path.realpath(path))


def _in_folder(folder: Path, root: Path, problems: list[Problem], *, recursive: bool) -> Iterator[Found]:
    """Yield the pictures in *folder* by name, then, if *recursive*, those of each folder in it."""

    def report(exc: OSError) -> None:
        path = Path(exc.filename or folder)
        problems.append(Problem(path, InvalidParameterError(f"cannot read the folder {path}: {exc.strerror}")))

    for parent, folders, files in os.walk(folder, onerror=report, followlinks=False):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        paths = (Path(parent, name) for name in sorted(files))
        yield from (Found(path, root, named=False) for path in paths if is_picture(path) and path.is_file())


def _visible_folders(folder: Path) -> Iterable[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []  # told already


def _by_pattern(pattern: Path, problems: list[Problem], *, recursive: bool) -> list[Found]:
    """Return the pictures that *pattern* matches; its place is kept below the part without wildcards."""
    parts = pattern.parts
    plain = next(number for number, part in enumerate(parts) if any(char in part for char in _MAGIC))
    base = Path(*parts[:plain])
    found: list[Found] = []
    try:
        matches = sorted(base.glob(str(Path(*parts[plain:]))))
    except (ValueError, OSError) as exc:
        problems.append(Problem(pattern, InvalidParameterError(f"cannot use the pattern {pattern}: {exc}")))
        return []
    for match in matches:
        if any(part.startswith(".") for part in match.relative_to(base).parts):
            continue
        if match.is_dir():
            found += _in_folder(match, base, problems, recursive=recursive)
        elif is_picture(match) and match.is_file():
            found.append(Found(match, base, named=False))
    if not found:
        problems.append(Problem(pattern, NotFoundError(f"no picture matches {pattern}")))
    return found
