"""Decoded pixels in a plain file, so that a picture of any size passes through processes of bounded memory.

Roles only name canvases to their children, so numpy is loaded where samples are read: most of a start is imports.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from fourfold.errors import StorageFullError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Canvas:
    """A file of ``[height, width, bands]`` samples, row by row, in the machine's byte order."""

    path: Path
    width: int
    height: int
    bits: int = 8  #: of one sample: 8 or 16
    bands: int = 3

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * self.bands * self.bits // 8

    @property
    def dtype(self) -> np.dtype[Any]:
        """The samples' type: uint8 or uint16."""
        import numpy as np

        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    def read(self) -> NDArray[Any]:
        """Return the pixels as a read-only memory map ``[height, width, bands]``."""
        import numpy as np

        return np.memmap(self.path, self.dtype, "r", shape=(self.height, self.width, self.bands))

    def rows(self, top: int, bottom: int) -> NDArray[Any]:
        """Return rows *top* .. *bottom*, read into an array of its own: a map would grow with the file."""
        import numpy as np

        with self.path.open("rb") as file:
            file.seek(top * self.row_bytes)
            samples = np.fromfile(file, self.dtype, (bottom - top) * self.width * self.bands)
        return samples.reshape(bottom - top, self.width, self.bands)

    def write(self) -> CanvasWriter:
        """Make the file at its full size and return a writer for its regions. Raises: StorageFullError."""
        return CanvasWriter(self)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a pipe."""
        sizes = {"width": self.width, "height": self.height, "bits": self.bits, "bands": self.bands}
        return {"path": str(self.path), **sizes}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Rebuild what :meth:`to_json` gave."""
        return cls(Path(values["path"]), values["width"], values["height"], values["bits"], values["bands"])


class CanvasWriter:
    """Writes regions straight to the file: a memory map would count every page of a gigapixel as ours."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self._row_bytes = canvas.row_bytes
        try:
            self._file: BinaryIO = canvas.path.open("w+b", buffering=0)
            try:
                _reserve(self._file, self._row_bytes * canvas.height)
            except BaseException:
                self._file.close()
                raise
        except OSError as exc:
            raise _full(exc) from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def put(self, x: int, y: int, pixels: NDArray[Any]) -> None:
        """Write ``[h, w, bands]`` *pixels* with their upper left corner at *x*, *y*.

        Raises:
            ValueError: the region's type or place does not fit the canvas.
            StorageFullError: the file cannot be written.
        """
        height, width, bands = pixels.shape
        fits = 0 <= x <= self._canvas.width - width and 0 <= y <= self._canvas.height - height
        if pixels.dtype != self._canvas.dtype or bands != self._canvas.bands or not fits:
            place = f"inside {self._canvas.width} x {self._canvas.height}"
            raise ValueError(
                f"expected {self._canvas.dtype} [h, w, {self._canvas.bands}] {place}, "
                f"got {pixels.dtype} {pixels.shape} at {x}, {y}"
            )
        data = memoryview(pixels.tobytes())
        sample_bytes = bands * pixels.dtype.itemsize
        row = width * sample_bytes
        try:
            if width == self._canvas.width:
                self._write(y * self._row_bytes, data)
                return
            for line in range(height):
                self._write((y + line) * self._row_bytes + x * sample_bytes, data[line * row : (line + 1) * row])
        except OSError as exc:
            raise _full(exc) from exc

    def close(self) -> None:
        """Close the file; what was written stays."""
        self._file.close()

    def _write(self, offset: int, data: memoryview) -> None:
        self._file.seek(offset)
        while data:
            data = data[self._file.write(data) :]


def _reserve(file: BinaryIO, size: int) -> None:
    """Give *file* its *size*, with the disk's blocks where those can be had: a full disk is told before the work."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except (AttributeError, OSError) as exc:  # macOS has none, and some file systems cannot
        if isinstance(exc, OSError) and exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        file.truncate(size)


def _full(exc: OSError) -> StorageFullError:
    return StorageFullError(f"the working folder cannot take the picture: {exc.strerror}; try again later")
