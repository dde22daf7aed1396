"""A stand-in for a container engine: carries out the steps of the Dockerfile, runs what it describes, no image made.

What is real: every RUN, COPY, ENV, USER, WORKDIR, HEALTHCHECK, ENTRYPOINT and CMD as it stands in the file; namespaces
for mounts, processes and network; a root that cannot be written; the unprivileged user, without capabilities.
What stands in: the base image (this machine's system folders and Python, read-only), and the packages that Fourfold
needs (those of the tests' environment, where `pip install` would fetch them). Needs root and util-linux.
"""

import fnmatch
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from dockerfile_parse import DockerfileParser

from fourfold.testing.running_network import wait_until

ROOT = Path(__file__).resolve().parents[3]
SYSTEM = [Path("/", name) for name in ("usr", "bin", "sbin", "lib", "lib64") if Path("/", name).exists()]
SITE = "/mnt/site"  #: where the tests' packages are seen
STEP_S = 120
#: Of the tests themselves: so that what is left behind is found.
MARK = {name: value for name, value in os.environ.items() if name == "PYTEST_RUN_MARK"}
#: `pip install` takes what is there, and is otherwise the one of the file.
OFFLINE = {"PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PYTHONPATH": SITE}


@dataclass
class Stage:
    """One stage of the Dockerfile, as far as it has come."""

    root: Path
    environ: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0:0"
    volumes: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)


def _mounts(root: Path, *, files: Mapping[str, Path], volume: Path | None = None) -> str:
    """Return the shell lines that make *root* a system; all of this machine that is seen in it is read-only.

    Args: *files*, path inside -> file or folder here. *volume*, what /data is: with one, nothing else can be written
        but /tmp, which is in memory.
    """
    seen = {str(path): path for path in SYSTEM} | {"/usr/local": Path(sys.base_prefix), SITE: _site(), **files}
    lines = ["set -e", "mount --make-rprivate /", f"mount --bind {root} {root}"]
    for target, source in seen.items():
        lines += [f"mount --bind {source} {root}{target}", f"mount -o remount,bind,ro {root}{target}"]
    lines += [f"mount --rbind /dev {root}/dev", f"mount -t proc proc {root}/proc"]
    if volume is not None:
        lines += [f"mount --bind {volume} {root}/data", f"mount -t tmpfs -o mode=1777,size=256m none {root}/tmp"]
        lines += [f"mount -o remount,bind,ro {root}"]
    return "\n".join(lines)


def _site() -> Path:
    return Path(sysconfig.get_path("purelib"))


def _run(root: Path, script: str, *command: str, environ: Mapping[str, str], workdir: str) -> None:
    """Run one build step as root of the stand-in."""
    inner = f'{script}\nexec chroot {root} /bin/sh -c \'cd "$0" && exec "$@"\' {workdir} "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", inner, "sh", *command],
        env={**environ, **MARK},
        capture_output=True,
        text=True,
        timeout=STEP_S,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


class Builder:
    """Carries out a Dockerfile, instruction by instruction; one that it does not know fails the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stages: dict[str, Stage] = {}
        parser = DockerfileParser(fileobj=io.BytesIO((ROOT / "Dockerfile").read_bytes()))
        self._steps = [(step["instruction"], step["value"]) for step in parser.structure]
        self.stage = Stage(folder)

    def build(self) -> Stage:
        """Return the last stage."""
        for instruction, value in self._steps:
            getattr(self, f"_do_{instruction.lower()}")(value)
        return self.stage

    def _do_comment(self, _: str) -> None: ...
    def _do_arg(self, _: str) -> None: ...
    def _do_label(self, _: str) -> None: ...
    def _do_expose(self, _: str) -> None: ...

    def _do_from(self, value: str) -> None:
        base, _, name = value.partition(" AS ")
        assert base == "python:${PYTHON}"
        root = self._folder / f"stage-{len(self._stages)}"
        for path in (*map(str, SYSTEM), "/dev", "/proc", "/opt", "/tmp", "/data", SITE):
            (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        (root / "data").rmdir()
        (root / "tmp").chmod(0o1777)
        shutil.copytree("/etc", root / "etc", symlinks=True)
        # The real image's loader knows Python's own library; here that name may be the system's, of another build.
        path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        self.stage = self._stages[name] = Stage(root, {"PATH": path, "LD_LIBRARY_PATH": "/usr/local/lib"})

    def _do_workdir(self, value: str) -> None:
        self.stage.workdir = value
        self._inside(value).mkdir(parents=True, exist_ok=True)

    def _do_env(self, value: str) -> None:
        for word in value.split():
            name, _, text = word.partition("=")
            self.stage.environ[name] = text.replace("$PATH", self.stage.environ["PATH"])

    def _do_copy(self, value: str) -> None:
        *sources, target = value.split()
        if sources[0].startswith("--from="):
            assert target == sources[1]
            shutil.copytree(
                self._stages[sources[0].removeprefix("--from=")].root / target[1:], self._inside(target), symlinks=True
            )
            return
        for source in sources:
            assert _is_sent(source), f"COPY {source}: .dockerignore keeps it from the build"
            there = self._inside(target) / (source if target == "./" else "")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, there, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / source, there)

    def _do_run(self, value: str) -> None:
        script = _mounts(self.stage.root, files={})
        environ = {**self.stage.environ, **OFFLINE}
        environ.pop(
            "PIP_BUILD_CONSTRAINT", None
        )  # without an environment of its own for the build there is no use for it
        _run(self.stage.root, script, "/bin/sh", "-c", value, environ=environ, workdir=self.stage.workdir)

    def _do_user(self, value: str) -> None:
        self.stage.user = value

    def _do_volume(self, value: str) -> None:
        self.stage.volumes.append(value)

    def _do_healthcheck(self, value: str) -> None:
        self.stage.healthcheck = json.loads(value.partition(" CMD ")[2])

    def _do_entrypoint(self, value: str) -> None:
        self.stage.entrypoint = json.loads(value)  # the exec form: no shell in between

    def _do_cmd(self, value: str) -> None:
        self.stage.cmd = json.loads(value)

    def _inside(self, path: str) -> Path:
        return self.stage.root / (path if path.startswith("/") else f"{self.stage.workdir}/{path}").strip("/")


def _is_sent(source: str) -> bool:
    """Whether .dockerignore lets *source* into the build; the last line that fits decides."""
    is_sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#") and fnmatch.fnmatch(source, line.lstrip("!")):
            is_sent = line.startswith("!")
    return is_sent


@dataclass
class Container:
    """A running stand-in of a container."""

    stage: Stage
    process: subprocess.Popen[bytes]
    environ: Mapping[str, str]
    log: Path

    @property
    def first(self) -> psutil.Process:
        """Its process number 1."""
        [child] = psutil.Process(self.process.pid).children()
        return child

    @property
    def has_begun(self) -> bool:
        """Whether the mounts are done and privileges given up, or there is nothing to wait for any more."""
        children = psutil.Process(self.process.pid).children() if self.process.poll() is None else []
        owner = self.stage.user.partition(":")[0]
        return self.process.poll() is not None or any(str(child.uids().real) == owner for child in children)

    def exec(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as the engine does: same namespaces, user and variables."""
        enter = ["nsenter", "--target", str(self.first.pid), "--mount", "--pid", "--net", "--root", "--wd"]
        environ = {**self.environ, **MARK}
        drop = _unprivileged(self.stage.user)
        return subprocess.run([*enter, *drop, *command], env=environ, capture_output=True, text=True, timeout=STEP_S)

    def wait_healthy(self, *check: str) -> None:
        """Repeat the health check until it passes, as the engine does."""
        told = ""

        def is_healthy() -> bool:
            nonlocal told
            assert self.process.poll() is None, self.log.read_text()
            done = self.exec(*check)
            told = done.stderr
            return done.returncode == 0

        try:
            wait_until(is_healthy, STEP_S)
        except TimeoutError:
            pytest.fail(f"{told}{self.log.read_text()}")

    def stop(self, grace_s: float) -> int:
        """Send SIGTERM to process number 1; return its exit status, that of a killed one if it takes too long."""
        self.first.terminate()
        try:
            return self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def kill(self) -> None:
        """End process number 1, and with it every process inside."""
        for child in psutil.Process(self.process.pid).children():
            child.kill()
        self.process.kill()


def _unprivileged(user: str) -> list[str]:
    uid, _, gid = user.partition(":")
    keep_nothing = ["--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", *keep_nothing, "--"]


@contextmanager
def running_container(
    stage: Stage,
    folder: Path,
    command: Sequence[str] = (),
    *,
    environ: Mapping[str, str] | None = None,
    files: Mapping[str, Path] | None = None,
    network_of: "Container | None" = None,
) -> Iterator[Container]:
    """Run the image's entrypoint as process number 1: root read-only, /tmp in memory, a copy of /data as its volume.

    Args: *command*, instead of CMD. *files*, path inside -> file here, read-only. *network_of*, whose network to share.
    """
    folder.mkdir()
    volume = folder / "data"
    # A new volume takes over the folder of the image, its owner and mode included.
    subprocess.run(["cp", "--archive", str(stage.root / "data"), str(volume)], check=True)
    for target in files or {}:
        inside = stage.root / target.strip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.touch()
    script = _mounts(stage.root, files=files or {}, volume=volume)
    words = [*_unprivileged(stage.user), *stage.entrypoint, *(command or stage.cmd)]
    if network_of is None:
        script += "\nip link set lo up"
        outer = ["unshare", "--net"]
    else:
        outer = ["nsenter", "--target", str(network_of.first.pid), "--net", "unshare"]
    inner = f'{script}\nexec chroot {stage.root} /bin/sh -c \'cd "$0" && exec "$@"\' {stage.workdir} "$@"'
    environ = {**stage.environ, **(environ or {})}
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*outer, "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", inner, "sh", *words],
            env={**environ, **MARK},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    container = Container(stage, process, environ, log)
    try:
        wait_until(lambda: container.has_begun)
        yield container
    finally:
        if process.poll() is None:
            container.kill()
        process.wait()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """What the Dockerfile makes; skip where this machine does not let us."""
    tools = ("unshare", "nsenter", "setpriv", "chroot", "ip")
    missing = [name for name in tools if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing) or 'no more programs'}: scripts/system.sh")
    if subprocess.run(["unshare", "--mount", "--pid", "--net", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make namespaces")
    stage = Builder(tmp_path_factory.mktemp("image")).build()
    [packages] = stage.root.glob("opt/fourfold/lib/python3*/site-packages")
    (packages / "stand-in.pth").write_text(f"{SITE}\n")
    yield stage


@pytest.fixture(scope="session")
def run_container():
    """Run a container of an image while a context lasts."""
    return running_container
