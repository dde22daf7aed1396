"""The network's kernels: eager at once; compiled for each shape in the background; on a GPU recorded as a CUDA graph.

A shape is asked for by the first call that has it; that call and those after it are eager until the compiled kernels
are there. A compilation that fails leaves everything eager, for good, and is told once. Compiled kernels are kept on
disk by torch itself (``TORCHINDUCTOR_CACHE_DIR``), so that a later process compiles in seconds what an earlier one did.
"""

import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Final, NamedTuple, TypeAlias

import torch

from fourfold.engine.base import Remark
from fourfold.engine.sd_x4_text import KeysValues
from fourfold.engine.sd_x4_unet import predict

MOST_SHAPES: Final = 32
"""Shapes that are compiled; each has its kernels and, on a GPU, its graph. Further ones stay eager."""

MOST_PIXELS: Final = 512 * 512
"""Latent pixels of all rows of a compiled shape: beyond, launching kernels one by one costs nothing that matters."""

Predict: TypeAlias = Callable[[torch.Tensor, torch.Tensor, KeysValues], torch.Tensor]
"""`predict` for one network and one number of ways."""


class Shape(NamedTuple):
    """What kernels are compiled for."""

    rows: int
    ways: int
    height: int  #: latent pixels
    width: int

    @property
    def pixels(self) -> int:
        """Latent pixels of all rows."""
        return self.rows * self.height * self.width


class Kernels:
    """Calls of one network. One thread uses it; another one, its own, compiles."""

    def __init__(self, unet: Any, *, backend: str | None) -> None:
        """*backend*, torch.compile's; None: everything is eager."""
        self._unet = unet
        self._backend = backend
        self._is_gpu = unet.device.type == "cuda"
        self._lock = threading.Lock()
        self._ready: dict[Shape, Predict] = {}
        self._asked: set[Shape] = set()
        self._has_failed = False
        self._wanted: queue.Queue[tuple[Shape, Sequence[Any]] | None] = queue.Queue()
        self._remarks: list[Remark] = []
        self._graph_pool: Any = None
        self._thread: threading.Thread | None = None

    def is_compiled(self, shape: Shape) -> bool:
        """Whether *shape* has its compiled kernels now."""
        return shape in self._ready

    def run(
        self, shape: Shape, sample: torch.Tensor, embedding: torch.Tensor, text: KeysValues, *, compiled: bool
    ) -> torch.Tensor:
        """Return the network's answers; *compiled*: by the compiled kernels, if they are there."""
        kernels = self._ready.get(shape) if compiled else None
        if kernels is None:
            self._ask_for(shape, sample, embedding, text)
            return self.eager(shape.ways, sample, embedding, text)
        if self._is_gpu and not isinstance(kernels, Recorded):
            del self._ready[shape]  # for good, if recording fails
            try:
                kernels = self._ready[shape] = Recorded(kernels, sample, embedding, text, pool=self._graph_pool)
            except torch.OutOfMemoryError:
                raise  # the step is tried again in less
            except RuntimeError as exc:
                self._tell("compile_failed", why=f"recording {list(shape)}: {exc}"[:500])
                return self.eager(shape.ways, sample, embedding, text)
            self._graph_pool = kernels.pool
        return kernels(sample, embedding, text)

    def eager(self, ways: int, sample: torch.Tensor, embedding: torch.Tensor, text: KeysValues) -> torch.Tensor:
        """Return the network's answers by eager kernels, and ask for no others."""
        return predict(self._unet, sample, embedding, text, ways=ways)

    def remarks(self) -> list[Remark]:
        """Return what happened since the last call: a shape's kernels are there, or will never be."""
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
        if self._thread is not None:
            self._wanted.put(None)
        self._ready.clear()
        self._graph_pool = None

    def _ask_for(self, shape: Shape, *example: Any) -> None:
        """Have *shape* compiled, if it is one to be compiled and nobody has asked; *example*, the inputs of a call."""
        if self._backend is None or self._has_failed or shape in self._asked:
            return
        if shape.pixels > MOST_PIXELS or len(self._asked) >= MOST_SHAPES:
            return
        self._asked.add(shape)
        self._wanted.put((shape, example))
        if self._thread is None:
            self._thread = threading.Thread(target=self._compile_wanted, name="kernels", daemon=True)
            self._thread.start()

    def _compile_wanted(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            shape, example = wanted
            started = time.monotonic()
            try:
                if not self._has_failed:
                    self._ready[shape] = self._compile(shape, example)
                    self._tell("kernels_ready", shape=list(shape), seconds=round(time.monotonic() - started, 3))
            except Exception as exc:  # noqa: BLE001  # a compiler fails in many ways; eager kernels do not need it
                traceback.print_exc()
                self._has_failed = True
                self._tell("compile_failed", why=f"{type(exc).__name__}: {exc}"[:500])
            finally:
                self._wanted.task_done()

    def _compile(self, shape: Shape, example: Sequence[Any]) -> Predict:
        """Compile for *shape*, by one call."""
        unet, ways = self._unet, shape.ways

        def call(sample: torch.Tensor, embedding: torch.Tensor, text: KeysValues) -> torch.Tensor:
            return predict(unet, sample, embedding, text, ways=ways)

        # torch keeps what it compiled by code object: each shape gets its own, so that it finds its kernels at once.
        own = FunctionType(
            call.__code__.replace(co_name="call_" + "_".join(map(str, shape))),
            call.__globals__,
            closure=call.__closure__,
        )
        # On a CPU in this thread alone: torch would start a process for each core otherwise.
        options = {"compile_threads": 1} if self._backend == "inductor" and not self._is_gpu else None
        compiled: Predict = torch.compile(own, backend=self._backend, fullgraph=True, dynamic=False, options=options)
        with torch.inference_mode():
            compiled(*example)
        return compiled

    def _tell(self, name: str, **facts: Any) -> None:
        with self._lock:
            self._remarks.append(Remark(name, facts))


class Recorded:
    """A call of the network as a CUDA graph: one launch for all its kernels, with inputs at fixed addresses.

    Inputs that come later must be laid out as those at the recording. No thread may wait for the whole device while a
    graph is recorded (``torch.cuda.synchronize``, which a compiler's measurements call): CUDA then refuses both.
    """

    def __init__(
        self, kernels: Predict, sample: torch.Tensor, embedding: torch.Tensor, text: KeysValues, *, pool: Any
    ) -> None:
        """Record *kernels*. *pool*, of another graph that never runs at the same time; None: one of its own."""
        self._sample, self._embedding = sample.clone(), embedding.clone()
        self._text = {name: (keys.clone(), values.clone()) for name, (keys, values) in text.items()}
        self._text_told: KeysValues = text
        self._graph = torch.cuda.CUDAGraph()
        # Streams belong to the current device, which is the first one whatever device the tensors are on; and memory
        # belongs to the stream that it was used on, so that graphs of one pool share that, too.
        with torch.cuda.device(sample.device):
            self._stream, handle = pool or (torch.cuda.Stream(), None)
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):  # what libraries allocate at their first call must not be recorded
                kernels(self._sample, self._embedding, self._text)
            torch.cuda.current_stream().wait_stream(self._stream)
            # Other threads may load meanwhile: only what this thread does is recorded.
            with torch.cuda.graph(self._graph, pool=handle, stream=self._stream, capture_error_mode="thread_local"):
                self._answer = kernels(self._sample, self._embedding, self._text)

    @property
    def pool(self) -> Any:
        """The graph's memory, which other graphs may share: its stream and torch's name for it."""
        return self._stream, self._graph.pool()

    def __call__(self, sample: torch.Tensor, embedding: torch.Tensor, text: KeysValues) -> torch.Tensor:
        """Replay the graph for these inputs."""
        self._sample.copy_(sample)
        self._embedding.copy_(embedding)
        if text is not self._text_told:  # a batch keeps its prompts for many steps
            torch._foreach_copy_(_flat(self._text), _flat(text))
            self._text_told = text
        self._graph.replay()
        return self._answer.clone()


def _flat(text: KeysValues) -> list[torch.Tensor]:
    return [tensor for pair in text.values() for tensor in pair]
