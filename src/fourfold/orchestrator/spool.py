"""A folder for each request while it is in hand. What a killed process left behind goes when the next one starts."""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fourfold.errors import StorageFullError


@dataclass(frozen=True, slots=True)
class JobFiles:
    """The files of one request; they are gone when its context ends."""

    upload: Path
    result: Path


class Spool:
    """Makes and removes the folders of requests below *root*, which belongs to this process alone."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for debris in root.iterdir():
            shutil.rmtree(debris, ignore_errors=True)

    @contextlib.contextmanager
    def files(self) -> Iterator[JobFiles]:
        """Give a request its files while the context lasts. Raises: StorageFullError if there is no room for them."""
        folder = self._root / secrets.token_hex(8)
        try:
            folder.mkdir(mode=0o700, parents=True)  # parents: somebody may have tidied up the data folder
        except OSError as exc:
            raise StorageFullError(f"no folder for the request can be made: {exc.strerror}; try again later") from exc
        try:
            yield JobFiles(folder / "upload", folder / "result.png")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
