"""Compile functions in a thread of its own, one after another; until a function is there, its caller runs eagerly.

A compilation that fails leaves everything eager, for good, and is told once. Compiled kernels are kept on disk by torch
itself (``TORCHINDUCTOR_CACHE_DIR``), so that a later process need not make again what an earlier one did.

torch compiles anew where a call is not what kernels were made for: another size than it assumed, or another state of
the process, such as the default number type while another thread loads a model. By itself it would do so in the calling
thread, minutes in the middle of a job, and wait for what is being compiled elsewhere first. A compiled function is
therefore only ever called as ``torch._dynamo.run`` calls it, which looks for kernels and makes none, and whose state is
the thread's own; stances of ``torch.compiler.set_stance`` hold for all threads, and ``error_on_recompile`` is read
behind the lock of who compiles.
"""

import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

import torch

from fourfold.engine.base import Remark
from fourfold.engine.full_memory import is_out_of_memory

Call: TypeAlias = Callable[..., Any]
"""What is compiled: tensors in, tensors out."""

Example: TypeAlias = Callable[[], Sequence[Any]]
"""Returns the inputs of a call; asked in the compiling thread."""


_SWITCH_S: Final = 0.0005
"""How long the compiling thread keeps another one waiting for Python."""


class NotCompiledError(Exception):
    """A compiled function has no kernels for this call; nothing was computed."""


_WORKING = threading.Lock()
"""Held by who compiles. Any engine's: torch compiles one function at a time anyway."""


@contextmanager
def nobody_compiles() -> Iterator[bool]:
    """Yield whether no engine compiles, and let none begin meanwhile.

    A compiler's measurements wait for the whole device; while a CUDA graph is recorded that fails, and the recording
    with it.
    """
    is_free = _WORKING.acquire(blocking=False)
    try:
        yield is_free
    finally:
        if is_free:
            _WORKING.release()


class CompiledFor(Hashable, Protocol):
    """What a function is compiled for, a value."""

    def facts(self) -> Mapping[str, Any]:
        """Return plain values that tell it in the log."""

    def label(self) -> str:
        """Return what tells it from others in a name."""


Key = TypeVar("Key", bound=CompiledFor)


class Compiler(Generic[Key]):
    """Compiled functions by what they are for. One thread uses it; another one, its own, compiles."""

    def __init__(self, function: Callable[[Key], Call], *, backend: str | None, is_gpu: bool) -> None:
        """Compile nothing yet.

        Args:
            function: returns what is to be compiled for a key.
            backend: torch.compile's; None: everything is eager.
            is_gpu: where it runs.
        """
        self._function = function
        self._backend = backend
        self._is_gpu = is_gpu
        self._lock = threading.Lock()
        self._functions: dict[Key, Call] = {}  #: as torch compiles them when they are called
        self._ready: dict[Key, Call] = {}  #: the same, as they are called where nothing is to be compiled
        self._asked: set[Key] = set()
        self._told: set[Key] = set()
        self._is_over = False  #: a compilation has failed, or this is closed
        self._wanted: queue.Queue[tuple[Key, Example] | None] = queue.Queue()
        self._remarks: list[Remark] = []
        self._thread: threading.Thread | None = None

    @property
    def asked(self) -> int:
        """How many keys were ever asked for."""
        return len(self._asked)

    def ready(self, key: Key) -> Call | None:
        """Return the compiled function for *key*, None where it is not there.

        It raises NotCompiledError where it has no kernels for a call; `missed` should then be told.
        """
        return self._ready.get(key)

    def missed(self, key: Key, example: Example) -> None:
        """Have kernels made for *example*, too, for which there were none; the function is not there until then."""
        if self._ready.pop(key, None) is not None:
            self._asked.discard(key)
            self.ask_for(key, example)

    def drop(self, key: Key) -> None:
        """Forget what was compiled for *key*, for good."""
        self._ready.pop(key, None)

    def ask_for(self, key: Key, example: Example) -> None:
        """Have the function for *key* compiled by a call with *example*, unless somebody has asked before."""
        if self._backend is None or self._is_over or key in self._asked:
            return
        # Another thread traces: torch tells by a variable of all threads, and would raise in this one.
        torch._dynamo.config.error_on_nested_fx_trace = False
        self._asked.add(key)
        self._wanted.put((key, example))
        if self._thread is None:
            self._thread = threading.Thread(target=self._compile_wanted, name="kernels", daemon=True)
            self._thread.start()

    def tell(self, name: str, **facts: Any) -> None:
        """Keep a remark for the log."""
        with self._lock:
            self._remarks.append(Remark(name, facts))

    def remarks(self) -> list[Remark]:
        """Return what happened since the last call: a function is compiled, or will never be."""
        if not self._remarks:
            return []
        with self._lock:
            told, self._remarks = self._remarks, []
        return told

    def settle(self) -> None:
        """Wait until all that was asked for is compiled, or has failed; for tests and benchmarks."""
        self._wanted.join()

    def close(self) -> None:
        """Compile nothing more and forget what was compiled; what is being compiled ends by itself."""
        self._is_over = True
        if self._thread is not None:
            self._wanted.put(None)
        self._forget()

    def _compile_wanted(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            self._compile_one(*wanted)
            del wanted  # the example may hold memory of a device
            self._wanted.task_done()
        self._forget()  # what was being compiled when this was closed
        self._wanted.task_done()

    def _compile_one(self, key: Key, example: Example) -> None:
        started = time.monotonic()
        try:
            if not self._is_over:
                self._ready[key] = self._compile(key, example)
                if key not in self._told:
                    self._told.add(key)
                    self.tell("kernels_ready", **key.facts(), seconds=round(time.monotonic() - started, 3))
        except Exception as exc:  # noqa: BLE001  # a compiler fails in many ways; eager kernels do not need it
            if is_out_of_memory(exc):
                self._asked.discard(key)  # whoever comes next may ask again
                return
            traceback.print_exc()
            self._is_over = True
            self.tell("compile_failed", why=f"{type(exc).__name__}: {exc}"[:500])

    def _forget(self) -> None:
        self._ready.clear()
        self._functions.clear()

    def _compile(self, key: Key, example: Example) -> Call:
        """Compile for *key*, by one call; return the function as it is to be called."""
        if key not in self._functions:
            self._functions[key] = self._compiled(key)
        compiled = self._functions[key]
        with _WORKING, _others_first(), torch.inference_mode():
            compiled(*example())
        only_run: Call = torch._dynamo.run(compiled)
        return only_run

    def _compiled(self, key: Key) -> Call:
        """Return the function for *key*, to be compiled when it is called."""
        function = self._function(key)

        def call(*inputs: Any) -> Any:
            if not torch.compiler.is_dynamo_compiling():  # True in what is compiled, and only there
                raise NotCompiledError
            return function(*inputs)

        # torch keeps what it compiled by code object: each key gets its own, so that it finds its kernels at once.
        own = FunctionType(
            call.__code__.replace(co_name=f"call_{key.label()}"), call.__globals__, closure=call.__closure__
        )
        # On a CPU in this thread alone: torch would start a process for each core otherwise.
        options = {"compile_threads": 1} if self._backend == "inductor" and not self._is_gpu else None
        compiled: Call = torch.compile(own, backend=self._backend, fullgraph=True, dynamic=False, options=options)
        return compiled


@contextmanager
def _others_first() -> Iterator[None]:
    """Have this thread give way ten times as soon: it is minutes of Python, and torch lets go at every operation.

    By Python's own 5 ms an eager step beside a busy thread took four to five times as long on a CPU.
    """
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(min(usual_s, _SWITCH_S))
    try:
        yield
    finally:
        sys.setswitchinterval(usual_s)


def note_kernels(notes: dict[str, Any], *, is_compiled: bool) -> None:
    """Have a job's *notes* say which kernels computed it: "eager", "compiled", or both."""
    name = "compiled" if is_compiled else "eager"
    before = notes.setdefault("kernels", name)
    if name not in before:
        notes["kernels"] = f"{before}, {name}"
