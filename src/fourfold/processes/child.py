"""The parent's side of one child process that takes and gives JSON lines."""

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

log = logging.getLogger(__name__)

_LINE_BYTES: Final = 4 * 2**20  #: longest line a child may send
_STOP_S: Final = 2.0  #: from closing its pipe to killing it


class ChildDiedError(Exception):
    """The child's pipe reached its end; *reason* says how the process ended, in words."""

    def __init__(self, reason: str, returncode: int | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.returncode = returncode


class Child:
    """A running child. Start one with :meth:`start`; :meth:`close` ends it and waits for it."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self.name = name

    @classmethod
    async def start(cls, module: str, arguments: Sequence[str] = (), *, name: str) -> Self:
        """Start ``python -m module arguments`` with pipes for JSON lines; its standard error is ours."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
            start_new_session=True,  # a terminal's Ctrl-C goes to the top process alone, which then drains
        )
        log.debug("child_started", extra={"child": name, "pid": process.pid})
        return cls(process, name)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not been seen to end."""
        return self._process.returncode is None

    async def send(self, message: Mapping[str, Any]) -> None:
        """Write one line. Raises: ChildDiedError if nobody reads it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            await self._process.stdin.drain()
        except (ConnectionError, RuntimeError):
            raise await self._death() from None

    async def receive(self) -> dict[str, Any]:
        """Return the next line. Raises: ChildDiedError at the end of the pipe or on a line that is no JSON object."""
        assert self._process.stdout is not None
        try:
            line = await self._process.stdout.readline()
            message = json.loads(line) if line else None
        except ValueError:
            self.kill()
            message = None
        if not isinstance(message, dict):
            raise await self._death()
        return message

    def kill(self) -> None:
        """End the process at once; safe at any moment and more than once."""
        if self._process.returncode is None:
            try:
                self._process.kill()
            except ProcessLookupError:
                log.debug("child_already_gone", extra={"child": self.name})

    async def close(self, *, patience_s: float = _STOP_S) -> None:
        """End the process: close its pipe, wait for *patience_s*, then kill it; return when it is gone."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), patience_s)
        except TimeoutError:
            self.kill()
            await self._process.wait()

    async def _death(self) -> ChildDiedError:
        """Wait for the end of a process whose pipe is closed, and put it into words."""
        try:
            code = await asyncio.wait_for(self._process.wait(), _STOP_S)
        except TimeoutError:
            self.kill()
            code = await self._process.wait()
        return ChildDiedError(describe_exit(code), code)


def describe_exit(returncode: int) -> str:
    """Return how a process ended, in words: a signal by its name, else the exit status."""
    if returncode >= 0:
        return f"exited with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    hint = " (the system may have run out of memory)" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"
