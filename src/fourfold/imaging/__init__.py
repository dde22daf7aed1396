"""Pictures: bytes to canonical form and back. The only package that talks to libvips, and only in child processes.

Canonical form is upright sRGB, three bands of 8 or 16 bits; what it takes to undo that (grey, alpha, profile, metadata)
is a :class:`Recipe`, and what the client wants to get instead of a PNG four times as large are :class:`OutputOptions`.
Importing this package loads no codec: :class:`Codec` sends the work to processes of its own, because bytes from
strangers are decoded nowhere else.
"""

from typing import TYPE_CHECKING, Any

from fourfold.imaging.canvas import Canvas
from fourfold.imaging.fidelity import Fidelity, Measures, Written, describe
from fourfold.imaging.options import FORMATS, METADATA_CHOICES, OutputFormat, OutputOptions
from fourfold.imaging.recipe import Intake, Recipe
from fourfold.imaging.values import Compared, Header, Opened, Prepared

if TYPE_CHECKING:
    from fourfold.imaging.codec import Codec

__all__ = [
    "FORMATS",
    "METADATA_CHOICES",
    "Canvas",
    "Codec",
    "Compared",
    "Fidelity",
    "Header",
    "Intake",
    "Measures",
    "Opened",
    "OutputFormat",
    "OutputOptions",
    "Prepared",
    "Recipe",
    "Written",
    "describe",
]


def __getattr__(name: str) -> Any:
    """Load the parent's side only for parents: its event loop and settings are half of a child's start."""
    if name == "Codec":
        from fourfold.imaging.codec import Codec

        return Codec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
