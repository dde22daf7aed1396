"""One process at a time in a data folder."""

import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from fourfold.errors import ConfigError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


class FolderLock(AbstractContextManager["FolderLock"]):
    """Holds ``<folder>/lock`` while open. The system lets go of it when the process dies, however it dies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[Any] | None = None

    def __enter__(self) -> "FolderLock":
        """Take the lock. Raises: ConfigError if another process holds it or the folder cannot be made."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = (self._folder / "lock").open("a+")
        except OSError as exc:
            raise ConfigError(f"cannot use the data folder {self._folder}: {exc.strerror}") from exc
        try:
            if sys.platform == "win32":
                msvcrt.locking(self._file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._file.seek(0)
            holder = self._file.read(32).strip() or "unknown"
            self._file.close()
            self._file = None
            raise ConfigError(
                f"{self._folder} is in use by process {holder}; stop it, or give this one its own --data-dir"
            ) from exc
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
