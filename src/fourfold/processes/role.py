"""A role in a process of its own: started, watched, started again with backoff when it dies, drained at the end.

The owner writes the role's settings (secrets among them) as the first line of its standard input and then keeps the
pipe open; the role answers with one JSON line, ``{"event": "ready", ...}``, and ends when the pipe does. From its event
loop it also says every few seconds that it is alive; one that falls silent (stopped, or its loop blocked) is killed and
started again: whoever waits for it sees a closed connection instead of nothing.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final, Self

from fourfold.errors import ConfigError
from fourfold.processes.child import describe_exit

log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_STABLE_S: Final = 30.0  #: a role that lived this long starts again without a pause
_KILL_S: Final = 3.0  #: patience beyond the drain
_HEARTBEAT_S: Final = 2.0
_SILENCE_S: Final = 8.0  #: half of the silence after which a role is taken for hung
#: Exit status of a role that cannot run with these settings; starting it again would change nothing.
CONFIG_EXIT_STATUS: Final = 78


class RoleProcess:
    """One supervised role. Use as a context manager; leaving it drains the role and waits for its end.

    Shutdown order: no more restarts, SIGTERM, wait for the drain, close the pipe, kill.
    """

    def __init__(
        self,
        role: str,
        settings_json: str,
        *,
        drain_s: float,
        on_restart: Callable[[str], None] = lambda _role: None,
    ) -> None:
        self.role = role
        self._settings_json = settings_json
        self._drain_s = drain_s
        self._on_restart = on_restart
        self._process: asyncio.subprocess.Process | None = None
        self._ready: dict[str, Any] | None = None
        self._first_ready: asyncio.Future[dict[str, Any]] | None = None
        self._stopping = asyncio.Event()
        self.gave_up = asyncio.Event()  #: set when the process has ended for good
        self._keeper: asyncio.Task[None] | None = None

    @property
    def ready(self) -> dict[str, Any] | None:
        """What the running process said when it became ready; None while it is down or starting."""
        return self._ready

    @property
    def pid(self) -> int | None:
        """The process id, None while there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def __aenter__(self) -> Self:
        self._first_ready = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep-{self.role}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def wait_ready(self) -> dict[str, Any]:
        """Return the first ready line. Raises: ConfigError if the role gave up before it became ready."""
        assert self._first_ready is not None
        return await asyncio.shield(self._first_ready)

    async def stop(self) -> None:
        """Drain and end the process; nothing of it is left when this returns. Safe to call again."""
        self._stopping.set()
        if self._keeper is not None:
            await self._keeper
            self._keeper = None

    async def _keep(self) -> None:
        """Run the process again and again until told to stop."""
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            started = time.monotonic()
            returncode = await self._run_once()
            self._ready = None
            if self._stopping.is_set():
                break
            if returncode == CONFIG_EXIT_STATUS:
                self._give_up(f"the {self.role} refused its settings; its own message stands above")
                return
            if time.monotonic() - started > _STABLE_S:
                pause_s = _FIRST_PAUSE_S
            log.warning("role_died", extra={"died": self.role, "how": describe_exit(returncode), "pause_s": pause_s})
            self._on_restart(self.role)
            try:
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            except TimeoutError:
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        self._give_up(f"the {self.role} was stopped before it became ready")

    def _give_up(self, reason: str) -> None:
        """Wake whoever waits for the first ready line, or for the end."""
        self.gave_up.set()
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_exception(ConfigError(reason))
            self._first_ready.exception()  # whoever never asks must not be warned of it

    async def _run_once(self) -> int:
        """Run one process from its start to its end; return its exit status."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "fourfold",
            self.role,
            "--supervised",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._process = process
        assert process.stdin is not None and process.stdout is not None
        ended = asyncio.create_task(process.wait(), name=f"wait-{self.role}")
        reader = asyncio.create_task(self._read_ready(process.stdout), name=f"ready-{self.role}")
        stop = asyncio.create_task(self._stopping.wait(), name=f"stop-{self.role}")
        try:
            process.stdin.write(self._settings_json.encode() + b"\n")
            await process.stdin.drain()
            await asyncio.wait({ended, stop, reader}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done() and not (ended.done() or stop.done()):
                # Stopped, or its loop blocked: no signal but the last is sure to reach it.
                log.warning("role_hung", extra={"hung": self.role, "pid": process.pid})
                _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
                await ended
        except ConnectionError:
            pass  # it died before it read its settings; its exit status tells why
        finally:
            stop.cancel()
            await self._end(process, ended)
            reader.cancel()
            await asyncio.gather(reader, stop, return_exceptions=True)
        assert process.returncode is not None
        return process.returncode

    async def _end(self, process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
        """Drain *process*, then close its pipe, then kill it."""
        assert process.stdin is not None
        if process.returncode is None:
            _signal(process, getattr(signal, "SIGTERM", signal.SIGINT))
            await asyncio.wait({ended}, timeout=self._drain_s + _KILL_S)
        process.stdin.close()
        if not ended.done():
            await asyncio.wait({ended}, timeout=_KILL_S)
        if not ended.done():
            log.warning("role_killed", extra={"killed": self.role, "pid": process.pid})
            _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
        await ended

    async def _read_ready(self, stdout: asyncio.StreamReader) -> None:
        """Take the ready line and the signs of life; return when they have ceased and the process should be dead."""
        silences = 0
        has_lived = False
        while silences < 2:  # not one: where all of us were suspended, its lines are read just after the timeout
            try:
                async with asyncio.timeout(_SILENCE_S if has_lived else None):
                    line = await stdout.readline()
            except TimeoutError:
                silences += 1
                continue
            if not line:
                await asyncio.sleep(_KILL_S)  # it is ending; one that closed its pipe and lives on is no use either
                return
            silences, has_lived = 0, True
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict) and message.get("event") == "ready":
                self._ready = message
                log.debug("role_ready", extra={"ready": self.role, "pid": message.get("pid")})
                if self._first_ready is not None and not self._first_ready.done():
                    self._first_ready.set_result(message)


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    """Send a signal to a process that may be gone."""
    try:
        process.send_signal(number)
    except ProcessLookupError:
        log.debug("role_already_gone", extra={"pid": process.pid})


async def tell_alive() -> None:
    """Say again and again, to the owner that reads our standard output, that this event loop turns; until cancelled."""
    with contextlib.suppress(OSError):  # the owner is gone; standard input tells that as well
        while True:
            print(json.dumps({"event": "alive"}), flush=True)
            await asyncio.sleep(_HEARTBEAT_S)


def announce_ready(facts: dict[str, Any]) -> None:
    """Write this process's ready line to standard output."""
    print(json.dumps({"event": "ready", "pid": os.getpid(), **facts}), flush=True)
