"""What is said about pictures between a codec process and its parent. No codec here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fourfold.imaging.canvas import Canvas
from fourfold.imaging.fidelity import Fidelity, Measures, Written
from fourfold.imaging.options import OutputOptions
from fourfold.imaging.recipe import Intake, Recipe

__all__ = [
    "Canvas",
    "Compared",
    "Fidelity",
    "Header",
    "Intake",
    "Limits",
    "Measures",
    "Opened",
    "OutputOptions",
    "Prepared",
    "Recipe",
    "Written",
]


class Limits(Protocol):
    """How large a picture may be. The settings say it; a codec process starts faster without the settings' library."""

    @property
    def input_pixels(self) -> int:
        """Width times height."""

    @property
    def side_px(self) -> int:
        """The longer side."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file's header says, before any pixel is decoded."""

    format: str  #: "png" | "jpeg" | "webp" | "gif" | "tiff" | "avif" | "bmp" | "heic" | "jxl"
    width: int  #: upright, pixels
    height: int  #: upright, pixels
    bands: int
    bits: int  #: of one sample
    frames: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture in canonical form, still encoded."""

    path: Path  #: the source itself where it was canonical already
    width: int  #: of the canonical picture, which is the source's unless it was padded for tiling
    height: int
    recipe: Recipe
    bits: int = 8  #: of one sample
    canvas: Canvas | None = None  #: its pixels as well, where the picture is small and they were at hand


@dataclass(frozen=True, slots=True)
class Opened:
    """A picture in canonical form, decoded to a canvas."""

    canvas: Canvas
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Compared:
    """How alike two pictures are, at the larger one's size."""

    width: int
    height: int
    psnr_db: float  #: over all samples, 8 bits; 99 where they are equal
    ssim: float  #: mean over 7 x 7 windows of the luma, -1 .. 1
