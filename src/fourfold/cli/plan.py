"""Which picture becomes which file. Pure: where names lead on the disk is told by an argument.

A result is known by its name, ``NAME-4x.png``: one that is found in a folder is never upscaled again, whatever run made
it. That a target exists is no matter here; to overwrite a picture that is to be read would be.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fourfold.cli.inputs import Found
from fourfold.errors import InvalidParameterError
from fourfold.imaging import FORMATS

_SUFFIX_TO_FORMAT: Final = {
    **{known.suffix: name for name, known in FORMATS.items()},
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".jfif": "jpeg",
    ".tiff": "tiff",
}
_COMPARISON: Final = "-compare"

Resolve = Callable[[Path], Path]
"""Returns the one true path of a file that may not exist yet."""


@dataclass(frozen=True, slots=True)
class Item:
    """One picture and the file that it becomes."""

    source: Path
    target: Path
    makes_folder: bool = False  #: the target's folder is ours to make

    @property
    def comparison(self) -> Path:
        """Where the two stand side by side."""
        return self.target.with_name(f"{self.target.stem}{_COMPARISON}.png")


@dataclass(frozen=True, slots=True)
class Naming:
    """How results are called, and where they go."""

    suffix: str = "-4x"  #: after the name of the picture
    extension: str = ".png"
    folder: Path | None = None  #: for every result, in the structure of the inputs; None: each beside its picture

    def target(self, found: Found) -> Path:
        """Return the file that *found* becomes."""
        name = f"{found.path.stem}{self.suffix}{self.extension}"
        if self.folder is None:
            return found.path.with_name(name)
        return self.folder / found.path.parent.relative_to(found.root) / name

    def is_result(self, path: Path) -> bool:
        """Whether a run with this suffix would call a result, or a comparison, like *path*."""
        stem = path.stem
        if not self.suffix:
            return stem.endswith(_COMPARISON)
        return stem.endswith((self.suffix, self.suffix + _COMPARISON))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done."""

    items: Sequence[Item]
    left_out: Sequence[Path]  #: found, but results of an earlier run


def format_of(path: Path) -> str | None:
    """Return the format that the name of a result asks for, None where it says nothing."""
    return _SUFFIX_TO_FORMAT.get(path.suffix.lower())


def plan_one(source: Path, target: Path, *, resolve: Resolve) -> Plan:
    """Return the plan for one picture whose result was named. Raises: InvalidParameterError if it is the picture."""
    return _checked(Plan((Item(source, target),), ()), resolve)


def plan(found: Iterable[Found], naming: Naming, *, resolve: Resolve) -> Plan:
    """Return which of *found* become which files; one that was found twice is done once.

    Raises: InvalidParameterError if two pictures would become one file, or a result overwrite one of the pictures.
    """
    everything: dict[tuple[Path, Path], Found] = {}
    for one in found:
        key = resolve(one.path), resolve(naming.target(one))
        if key not in everything or one.named:
            everything[key] = one
    items = {one: Item(one.path, naming.target(one), naming.folder is not None) for one in everything.values()}
    results = {resolve(path) for item in items.values() for path in (item.target, item.comparison)}
    wanted: list[Item] = []
    left_out: list[Path] = []
    for one, item in items.items():
        made_here = naming.is_result(one.path) and resolve(one.path) in results
        if made_here or (not one.named and _is_old_result(one, naming, resolve)):
            left_out.append(one.path)
        else:
            wanted.append(item)
    return _checked(Plan(tuple(wanted), tuple(left_out)), resolve)


def _is_old_result(found: Found, naming: Naming, resolve: Resolve) -> bool:
    """Whether *found* is called like a result or lies in the folder of the results, below the one that was searched."""
    if naming.is_result(found.path):
        return True
    if naming.folder is None:
        return False
    folder, root = resolve(naming.folder), resolve(found.root)
    return root in folder.parents and folder in resolve(found.path).parents


def _checked(plan: Plan, resolve: Resolve) -> Plan:
    """Return *plan*. Raises: InvalidParameterError if a file in it would be overwritten by another."""
    sources = {resolve(item.source): item for item in plan.items}
    targets: dict[Path, Item] = {}
    for item in plan.items:
        target = resolve(item.target)
        if target in sources:
            whose = "itself" if sources[target] == item else str(sources[target].source)
            raise InvalidParameterError(
                f"the result of {item.source} would overwrite {whose}; choose another -o or --suffix"
            )
        other = targets.setdefault(target, item)
        if other is not item:
            raise InvalidParameterError(
                f"{other.source} and {item.source} would both become {item.target}; rename one, or do them apart"
            )
    return plan
