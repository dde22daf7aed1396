"""Pictures: bytes to canonical form and back. The only package that talks to libvips, and only in child processes.

Canonical form is upright sRGB, 8 bits, three bands; what it takes to undo that (grey, alpha) is a :class:`Recipe`.
Importing this package loads no codec: :class:`Codec` sends the work to processes of its own, because bytes from
strangers are decoded nowhere else.
"""

from fourfold.imaging.canvas import Canvas
from fourfold.imaging.codec import Codec
from fourfold.imaging.values import Header, Prepared, Recipe

__all__ = ["Canvas", "Codec", "Header", "Prepared", "Recipe"]
