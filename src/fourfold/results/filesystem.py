"""Results in a local folder: ``<root>/<group>/<name>.png``, gone after their time, the oldest first when room is short."""

import asyncio
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fourfold.errors import StorageFullError
from fourfold.results.base import StoredResult

log = logging.getLogger(__name__)

_GROUP: Final = re.compile(r"[0-9a-f]{32}\Z")
_NAME: Final = re.compile(r"[0-9a-f]{32}\.png\Z")
_RANDOM_BYTES: Final = 16


class FilesystemStore:
    """A bounded folder of results. What an earlier process left there is still served until its time is up.

    A file's modification time is the moment it was stored; ages come from *wall_clock*, seconds since the epoch.
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

    async def put(self, source: Path) -> str:
        """Move *source* in; see :class:`~fourfold.results.base.ResultStore`."""
        async with self._lock:
            return await asyncio.to_thread(self._put, source)

    def find(self, group: str, name: str) -> StoredResult | None:
        """Return a live result; any name that is not of our shape is simply not there."""
        if not _GROUP.match(group) or not _NAME.match(name):
            return None
        path = self._root / group / name
        try:
            stat = path.stat()
        except OSError:
            return None
        left_s = stat.st_mtime + self._ttl_s - self._clock()
        if left_s <= 0:
            return None
        # A clock that was set back must not make a result live longer than its time.
        return StoredResult(path, stat.st_size, min(left_s, self._ttl_s))

    async def sweep(self) -> int:
        """Remove expired results."""
        async with self._lock:
            return await asyncio.to_thread(self._sweep)

    def _put(self, source: Path) -> str:
        size = source.stat().st_size
        if size > self._max_bytes:
            raise StorageFullError(
                f"the store keeps {self._max_bytes} bytes, the result has {size}; ask for a smaller one"
            )
        self._sweep()
        self._make_room(size)
        group, name = secrets.token_hex(_RANDOM_BYTES), secrets.token_hex(_RANDOM_BYTES) + ".png"
        folder = self._root / group
        try:
            folder.mkdir()
            shutil.move(source, folder / name)
            now = self._clock()
            os.utime(folder / name, (now, now))
        except OSError as exc:
            shutil.rmtree(folder, ignore_errors=True)
            raise StorageFullError(f"the result cannot be kept: {exc.strerror}; try again later") from exc
        return f"{group}/{name}"

    def _sweep(self) -> int:
        now = self._clock()
        gone = [path for path, mtime, _ in self._entries() if mtime + self._ttl_s <= now]
        for path in gone:
            shutil.rmtree(path.parent, ignore_errors=True)
        if gone:
            log.info("results_expired", extra={"count": len(gone)})
        return len(gone)

    def _make_room(self, wanted: int) -> None:
        """Let the oldest results go until *wanted* bytes fit."""
        entries = sorted(self._entries(), key=lambda entry: entry[1])
        used = sum(size for _, _, size in entries)
        for path, _, size in entries:
            if used + wanted <= self._max_bytes:
                return
            shutil.rmtree(path.parent, ignore_errors=True)
            log.warning("result_evicted", extra={"bytes": size, "limit_bytes": self._max_bytes})
            used -= size

    def _entries(self) -> list[tuple[Path, float, int]]:
        """Return (path, modification time, bytes) of each result; a folder without one is debris and is removed."""
        entries = []
        for group in os.scandir(self._root):
            if not _GROUP.match(group.name):
                continue
            found = False
            for file in os.scandir(group.path):
                if _NAME.match(file.name):
                    stat = file.stat()
                    entries.append((Path(file.path), stat.st_mtime, stat.st_size))
                    found = True
            if not found:
                shutil.rmtree(group.path, ignore_errors=True)
        return entries
