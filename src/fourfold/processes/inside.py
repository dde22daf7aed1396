"""The child's side: JSON lines on the pipes that its parent holds, and death with the parent."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

try:
    import resource
except ImportError:  # Windows has no such limits; the parent's watch is all there is
    resource = None  # type: ignore[assignment]


#: More than our limits to connections and jobs can need; far more would slow what walks all of them.
_DESCRIPTORS = 16_384


class Pipe:
    """Lines to and from the parent. Takes standard output over, so that a library's print cannot break a line."""

    def __init__(self) -> None:
        self._out: BinaryIO = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        self._lock = threading.Lock()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the top process answers to Ctrl-C

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one line; any thread may. Ends the process where the parent is gone."""
        line = json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                self._out.write(line)
        except OSError:
            os._exit(0)

    @staticmethod
    def leave(status: int = 0) -> NoReturn:
        """End this process now, whatever its other threads are doing."""
        os._exit(status)

    def receive(self) -> Iterator[dict[str, Any]]:
        """Yield the parent's messages until it closes the pipe or dies."""
        for line in sys.stdin.buffer:
            yield json.loads(line)


def limit_memory(max_bytes: int | None) -> None:
    """Make allocations beyond *max_bytes* fail in this process, where the system can; None sets no limit."""
    if resource is not None and max_bytes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = max_bytes if hard == resource.RLIM_INFINITY else min(max_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def raise_descriptor_limit() -> None:
    """Let this process open as many files and sockets as the system grants without asking."""
    if resource is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = hard if hard != resource.RLIM_INFINITY else _DESCRIPTORS
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, _DESCRIPTORS), hard))
