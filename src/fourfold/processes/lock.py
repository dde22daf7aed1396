"""One process at a time in a data folder."""

import os
import sys
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Any, Final

from fourfold.errors import ConfigError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


#: An orphan ends within 3 s of its owner; a role started in its place waits a little longer.
ORPHAN_PATIENCE_S: Final = 6.0
_PAUSE_S: Final = 0.1


class FolderLock(AbstractContextManager["FolderLock"]):
    """Holds ``<folder>/lock`` while open. The system lets go of it when the process dies, however it dies."""

    def __init__(self, folder: Path, *, patience_s: float = 0.0, name: str = "data folder", advice: str = "") -> None:
        """*patience_s*: how long to wait for a holder that may be about to end, as an orphan of a killed owner is.

        *name*, *advice*: what the folder is to people, and what to do where another process has it.
        """
        self._folder = folder
        self._patience_s = patience_s
        self._name = name
        self._advice = advice or "stop it, or give this one its own --data-dir"
        self._file: IO[Any] | None = None

    def __enter__(self) -> "FolderLock":
        """Take the lock. Raises: ConfigError if another process holds it or the folder cannot be made."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # results lie below: names are no secret here
            self._file = (self._folder / "lock").open("a+")
        except OSError as exc:
            raise ConfigError(f"cannot use the {self._name} {self._folder}: {exc.strerror}") from exc
        deadline = time.monotonic() + self._patience_s
        while (refusal := _refusal(self._file)) is not None and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        if refusal is not None:
            self._file.seek(0)
            holder = self._file.read(32).strip() or "unknown"
            self._file.close()
            self._file = None
            raise ConfigError(f"{self._folder} is in use by process {holder}; {self._advice}") from refusal
        with suppress(OSError):  # a full disk: the lock is ours all the same, it only does not say so
            self._file.truncate(0)
            os.write(self._file.fileno(), f"{os.getpid()}\n".encode())
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _refusal(file: IO[Any]) -> OSError | None:
    """Take the lock on *file*; return why it cannot be had."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        return exc
    return None
