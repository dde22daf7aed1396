"""Run the installed command as a real process, for tests: wait until it is ready, stop it, see that nothing is left."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import psutil

_READY_S: Final = 60.0
_STOP_S: Final = 45.0
#: Words of a command line, and what runs there.
_KINDS: Final = {
    "fourfold.worker.child": "device",
    "fourfold.imaging.server": "codec",
    "gateway": "gateway",
    "orchestrator": "orchestrator",
    "worker": "worker",
    "up": "up",
}


@dataclass(slots=True)
class Running:
    """A running ``fourfold`` command."""

    process: subprocess.Popen[bytes]
    ready: Mapping[str, Any]  #: the facts of its ready line
    log: list[str] = field(default_factory=list)  #: lines of its standard error so far

    def descendants(self, *words: str) -> list[psutil.Process]:
        """Return its live child processes, at any depth, whose command line has all of *words*."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                line = child.cmdline()
            except psutil.Error:
                continue
            if all(any(word in part for part in line) for word in words):
                found.append(child)
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end and return the exit status; kills the command if it does not end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def kind_of(process: psutil.Process) -> str:
    """Return what a process of a network is: "up", a role, "device" or "codec"; "other" for anything else."""
    words = process.cmdline()
    return next((kind for word, kind in _KINDS.items() if word in words), "other")


@contextmanager
def running(*arguments: str, environ: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Yield ``fourfold *arguments*`` once it is ready; stop it afterwards and leave no process behind.

    Args: *environ*, variables on top of this process's own.
    Raises: RuntimeError, with what it logged, if it ends or stays silent instead of becoming ready.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "fourfold", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environ or {})},
        start_new_session=True,
    )
    log: list[str] = []
    lines: list[bytes] = []
    told = threading.Event()
    threads = [
        threading.Thread(target=_collect, args=(process.stderr, log), name="stderr"),
        threading.Thread(target=_await_ready, args=(process.stdout, lines, told), name="stdout"),
    ]
    for thread in threads:
        thread.start()
    family: Sequence[psutil.Process] = ()
    try:
        told.wait(_READY_S)
        if not lines:
            raise RuntimeError(f"fourfold {' '.join(arguments)} did not become ready:\n" + "\n".join(log))
        command = Running(process, json.loads(lines[0]), log)
        yield command
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            command.stop()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        _, left = psutil.wait_procs(family, timeout=10)
        for orphan in left:
            orphan.kill()
        for thread in threads:
            thread.join()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    if left:
        raise RuntimeError(f"fourfold {' '.join(arguments)} left processes behind: {left}")


def _collect(stream: Any, lines: list[str]) -> None:
    for line in stream:
        lines.append(line.decode("utf-8", "replace").rstrip())


def _await_ready(stream: Any, lines: list[bytes], told: threading.Event) -> None:
    """Keep the ready line; read on, so that the command never blocks on a full pipe."""
    for line in stream:
        if b'"ready"' in line and not lines:
            lines.append(line)
            told.set()
    told.set()
