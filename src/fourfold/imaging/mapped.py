"""A canvas as an image that libvips reads from its file, without the file's pages counting as this process's memory."""

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pyvips

from fourfold.imaging.canvas import Canvas

#: How often the pages that were read are let go; libvips reads some 100 MB meanwhile.
_LET_GO_S: Final = 0.1
_INTERPRETATIONS: Final = {(8, 1): "b-w", (16, 1): "grey16", (8, 3): "srgb", (16, 3): "rgb16"}


@contextmanager
def mapped(canvas: Canvas) -> Iterator[Any]:
    """Yield *canvas* as an image, good inside the block only.

    Pages that were read stay in the system's cache, which is nobody's memory, but leave this process: a gigapixel would
    else be 3 GB of it, though each row is read once.
    """
    sample = "ushort" if canvas.bits == 16 else "uchar"
    with canvas.path.open("rb") as file:
        # Never closed by hand: an error on its way up still holds images that point into it.
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    done = threading.Event()
    sweeper = threading.Thread(target=_let_go, args=(pages, done), name="let-go", daemon=True)
    sweeper.start()
    try:
        image = pyvips.Image.new_from_memory(pages, canvas.width, canvas.height, canvas.bands, sample)
        yield image.copy(interpretation=_INTERPRETATIONS[canvas.bits, canvas.bands])
    finally:
        done.set()
        sweeper.join()


def _let_go(pages: mmap.mmap, done: threading.Event) -> None:
    """Drop the pages from this process again and again; where the system cannot, they stay."""
    while hasattr(pages, "madvise") and not done.wait(_LET_GO_S):
        pages.madvise(mmap.MADV_DONTNEED)
