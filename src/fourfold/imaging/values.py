"""What is said about pictures between a codec process and its parent. No codec here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fourfold.imaging.canvas import Canvas


@dataclass(frozen=True, slots=True)
class Header:
    """What a file's header says, before any pixel is decoded."""

    format: str  #: "png" | "jpeg" | "webp" | "gif"
    width: int  #: upright, pixels
    height: int  #: upright, pixels
    bands: int
    bits: int  #: of one sample
    frames: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """What :func:`prepare` took away and :func:`finish` puts back."""

    grey: bool = False  #: the picture has one colour band; it comes back with one
    alpha: Path | None = None  #: its transparency, a one-band file of the input's size

    @property
    def is_identity(self) -> bool:
        """Whether there is nothing to put back: the worker's own bytes are the result."""
        return self == Recipe()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a pipe."""
        return {"grey": self.grey, "alpha": str(self.alpha) if self.alpha else None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Rebuild what :meth:`to_json` gave."""
        return cls(grey=values["grey"], alpha=Path(values["alpha"]) if values["alpha"] else None)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture in canonical form, still encoded."""

    path: Path  #: the source itself where it was canonical already
    width: int
    height: int
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Opened:
    """A picture in canonical form, decoded to a canvas."""

    canvas: Canvas
    recipe: Recipe
