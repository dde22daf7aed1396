"""Results in a folder, ``<root>/<group>/<name>.<format>``: gone after their time, the oldest first if room is short."""

import asyncio
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fourfold.errors import StorageFullError
from fourfold.results.base import StoredResult

log = logging.getLogger(__name__)

_GROUP: Final = re.compile(r"[0-9a-f]{32}\Z")
_NAME: Final = re.compile(r"[0-9a-f]{32}\.[a-z0-9]{1,8}\Z")
_RANDOM_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class _Entry:
    stored_at: float  #: seconds since the epoch; also the file's modification time
    bytes: int


class FilesystemStore:
    """A bounded folder of results. What an earlier process left there is still served until its time is up.

    Only one process may write to *root*. *wall_clock* gives seconds since the epoch.
    """

    def __init__(
        self, root: Path, *, ttl_s: float, max_bytes: int, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._root = root
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._clock = wall_clock
        self._lock = asyncio.Lock()
        root.mkdir(parents=True, exist_ok=True)
        self._entries = self._scan()  # by key, the oldest first
        self._used = sum(entry.bytes for entry in self._entries.values())

    async def put(self, source: Path, *, suffix: str = ".png") -> str:
        """Move *source* in; see :class:`~fourfold.results.base.ResultStore`."""
        async with self._lock:
            return await asyncio.to_thread(self._put, source, suffix)

    def find(self, group: str, name: str) -> StoredResult | None:
        """Return a live result; any name that is not of our shape is simply not there."""
        entry = self._entries.get(f"{group}/{name}")
        if entry is None or self._left_s(entry) <= 0:
            return None
        # A clock that was set back must not make a result live longer than its time.
        return StoredResult(self._root / group / name, entry.bytes, min(self._left_s(entry), self._ttl_s))

    async def sweep(self) -> int:
        """Remove expired results; return how many."""
        async with self._lock:
            return await asyncio.to_thread(self._sweep)

    def _put(self, source: Path, suffix: str) -> str:
        size = source.stat().st_size
        if size > self._max_bytes:
            raise StorageFullError(f"the store keeps {self._max_bytes} bytes, the result has {size}; send less")
        self._sweep()
        self._make_room(size)
        group, name = secrets.token_hex(_RANDOM_BYTES), secrets.token_hex(_RANDOM_BYTES) + suffix
        folder, now = self._root / group, self._clock()
        try:
            folder.mkdir(parents=True)  # somebody may have tidied up the data folder
            shutil.move(source, folder / name)
            os.utime(folder / name, (now, now))
        except OSError as exc:
            shutil.rmtree(folder, ignore_errors=True)
            raise StorageFullError(f"the result cannot be kept: {exc.strerror}; try again later") from exc
        self._entries[f"{group}/{name}"] = _Entry(now, size)
        self._used += size
        return f"{group}/{name}"

    def _left_s(self, entry: _Entry) -> float:
        return entry.stored_at + self._ttl_s - self._clock()

    def _sweep(self) -> int:
        gone = [key for key, entry in self._entries.items() if self._left_s(entry) <= 0]
        for key in gone:
            self._remove(key)
        if gone:
            log.info("results_expired", extra={"count": len(gone)})
        return len(gone)

    def _make_room(self, wanted: int) -> None:
        """Let the oldest results go until *wanted* bytes fit."""
        while self._entries and self._used + wanted > self._max_bytes:
            oldest = next(iter(self._entries))
            log.warning("result_evicted", extra={"limit_bytes": self._max_bytes})
            self._remove(oldest)

    def _remove(self, key: str) -> None:
        self._used -= self._entries.pop(key).bytes
        shutil.rmtree((self._root / key).parent, ignore_errors=True)

    def _scan(self) -> dict[str, _Entry]:
        """Read what is there; a folder without a result is debris of a crash and is removed."""
        found: dict[str, _Entry] = {}
        for group in os.scandir(self._root):
            if not _GROUP.match(group.name) or not group.is_dir(follow_symlinks=False):
                continue
            files = [file for file in os.scandir(group.path) if _NAME.match(file.name)]
            for file in files:
                stat = file.stat(follow_symlinks=False)
                found[f"{group.name}/{file.name}"] = _Entry(stat.st_mtime, stat.st_size)
            if not files:
                shutil.rmtree(group.path, ignore_errors=True)
        return dict(sorted(found.items(), key=lambda item: item[1].stored_at))
