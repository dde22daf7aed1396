"""What holds for every test: an environment with nothing of the user's in it, and nothing left behind.

The environment is set up at import, before any test module is read, so that children of tests inherit it. At the end
of the run a process that outlived its test, a file left in the folder for temporary files or, in CI, a skipped test
that CI is meant to run each fail the run.
"""

import contextlib
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest

#: Set in the environment of everything that the tests start, so that even an orphan is found.
_MARK = "PYTEST_RUN_MARK"
_RUN_ID = uuid.uuid4().hex
#: An ended process may need a moment to be gone.
_GRACE_S = 5.0
_FOLDER = Path(tempfile.mkdtemp(prefix="fourfold-tests-"))
_KEPT_S = 24 * 3600  #: how long the folder of a failed run is kept
_PROBLEMS = pytest.StashKey[list[str]]()


def _scrub(environ: "os._Environ[str]") -> None:
    """Take away what changes Fourfold's behaviour; give temporary files and the user's folders a place of our own."""
    proxies = {f"{scheme}_proxy" for scheme in ("http", "https", "all", "no")}
    runner_variables = {"AUTH_TOKEN", "PIPELINE", "MODEL_ID", "HOST", "PORT"}
    for name in list(environ):
        if name.startswith("FOURFOLD_") or name in runner_variables or name.lower() in proxies:
            del environ[name]
    for name, folder in {
        "TMPDIR": "tmp",
        "XDG_CONFIG_HOME": "config",
        "XDG_DATA_HOME": "data",
        "XDG_CACHE_HOME": "cache",
    }.items():
        (_FOLDER / folder).mkdir()
        environ[name] = str(_FOLDER / folder)
    tempfile.tempdir = None
    # Two cores run several processes of ours at once; libraries that start a thread per core only get in their way.
    environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1"}
    environ |= {_MARK: _RUN_ID, "NO_COLOR": "1"}
    # torch would keep a cache in the folder for temporary files, and no test may ask the hub for anything.
    environ |= {"TORCHINDUCTOR_CACHE_DIR": str(_FOLDER / "cache" / "torch"), "HF_HOME": str(_FOLDER / "cache" / "hub")}
    environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


_scrub(os.environ)
# Who starts us in the background may have Ctrl-C ignored, which every child would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("fourfold", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("fourfold")


def pytest_configure() -> None:
    """Remove what failed or killed runs of earlier days left."""
    for folder in _FOLDER.parent.glob("fourfold-tests-*"):
        with contextlib.suppress(FileNotFoundError):  # another run may be ending
            if time.time() - folder.stat().st_mtime > _KEPT_S:
                shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if shutil.which("nvidia-smi") is None:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device; nvidia-smi is not here"))


@pytest.hookimpl(trylast=True)  # after the last fixture was torn down
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run for what was left behind and for what CI must not skip."""
    problems = [*_left_processes(), *_left_files(), *_forbidden_skips(session.config)]
    session.config.stash[_PROBLEMS] = problems
    if problems and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say why the run fails though its tests passed."""
    if problems := config.stash.get(_PROBLEMS, []):
        terminalreporter.section("the run fails", red=True)
        for problem in problems:
            terminalreporter.line(problem, red=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove our folder; pytest's own part of it stays where a test failed."""
    failed = terminal.stats.get("failed") if (terminal := config.pluginmanager.get_plugin("terminalreporter")) else None
    if not failed:
        shutil.rmtree(_FOLDER, ignore_errors=True)


def _left_processes() -> Iterator[str]:
    """Name each living process that a test started; end it."""
    deadline = time.monotonic() + _GRACE_S
    while (left := list(_ours())) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in left:
        try:
            what = " ".join(process.cmdline())
            process.kill()
        except psutil.Error:
            continue
        yield f"a process was left behind: {process.pid} {what}"


def _ours() -> Iterator[psutil.Process]:
    """Yield the living processes with our mark in their environment, this one left out."""
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(_MARK) == _RUN_ID:
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                yield process
        except (psutil.Error, OSError):
            continue  # not ours to look at, or just gone


def _left_files() -> Iterator[str]:
    """Name what stands in the folder for temporary files and is not pytest's."""
    for path in sorted((_FOLDER / "tmp").iterdir()):
        if not path.name.startswith("pytest-of-") and path.name != ".ses":  # onnxruntime writes that when imported
            yield f"a file was left behind: {path.name}"


def _forbidden_skips(config: pytest.Config) -> Iterator[str]:
    """Name what was skipped in CI though CI is meant to have what it takes; only a GPU is beyond it."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if "CI" not in os.environ or terminal is None:
        return
    for report in terminal.stats.get("skipped", []):
        if "gpu" not in report.keywords:
            yield f"skipped in CI: {report.nodeid}: {report.longrepr[2] if report.longrepr else 'no reason'}"
