"""Children that answer JSON lines, and how their end is told."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from fourfold.processes.child import Child, ChildDiedError, describe_exit

ECHO = """
import sys, time
from fourfold.processes.inside import Pipe
pipe = Pipe()
print("a library prints this")
pipe.send({"event": "ready"})
for message in pipe.receive():
    if message.get("op") == "hang":
        time.sleep(60)
    if message.get("op") == "garbage":
        pipe._out.write(b"no json\\n")
    pipe.send({"echo": message})
"""


@pytest.fixture
async def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A child that echoes."""
    (tmp_path / "echo_child.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = await Child.start("echo_child", name="echo")
    assert await child.receive() == {"event": "ready"}
    yield child
    child.kill()
    await child.close()


async def test_lines_go_both_ways_and_prints_do_not_break_them(child: Child) -> None:
    """Standard output belongs to the protocol alone."""
    await child.send({"n": 1})

    assert await child.receive() == {"echo": {"n": 1}}


async def test_a_killed_child_is_an_error_that_says_how(child: Child) -> None:
    """The signal's name, and what it often means."""
    os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(ChildDiedError, match="SIGKILL.*memory"):
        await child.receive()
    with pytest.raises(ChildDiedError):
        for _ in range(3):
            await child.send({"n": 1})
            await asyncio.sleep(0)


async def test_a_line_that_is_no_json_ends_the_child(child: Child) -> None:
    """A child that breaks the protocol cannot be trusted with the next job."""
    await child.send({"op": "garbage"})

    with pytest.raises(ChildDiedError):
        await child.receive()
    assert not child.alive


async def test_closing_the_pipe_ends_an_idle_child(child: Child) -> None:
    """Nobody has to kill it."""
    await child.close()

    assert not child.alive


async def test_a_hanging_child_is_killed_when_closed(child: Child) -> None:
    """Patience has an end."""
    await child.send({"op": "hang"})
    await child.close(patience_s=0.1)

    assert not child.alive


async def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """Even where the parent is killed without a chance to tidy up."""
    (tmp_path / "echo_child.py").write_text(ECHO)
    (tmp_path / "parent.py").write_text(
        "import asyncio, sys\n"
        "from fourfold.processes.child import Child\n"
        "async def main():\n"
        "    child = await Child.start('echo_child', name='echo')\n"
        "    await child.receive()\n"
        "    print(child.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        str(tmp_path / "parent.py"),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()

    async with asyncio.timeout(10):
        while _exists(pid):
            await asyncio.sleep(0.02)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().split()[2] != "Z"


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exited with status 0"), (77, "status 77"), (-11, "SIGSEGV"), (-250, "signal 250")]
)
def test_an_exit_is_put_into_words(code: int, words: str) -> None:
    """Numbers are for programs."""
    assert words in describe_exit(code)
