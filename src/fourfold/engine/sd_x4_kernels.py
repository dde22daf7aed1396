"""The network's kernels: eager at once; compiled for each shape beside the jobs; on a GPU recorded as a CUDA graph.

A shape is asked for by the first call that has it; that call and those after it are eager until the compiled kernels
are there.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import torch

from fourfold.engine.base import Remark
from fourfold.engine.compiling import Compiler, NotCompiledError, nobody_compiles
from fourfold.engine.full_memory import is_out_of_memory
from fourfold.engine.sd_x4_text import KeysValues
from fourfold.engine.sd_x4_unet import predict

MOST_SHAPES: Final = 32
"""Shapes that are compiled; each has its kernels and, on a GPU, its graph. Further ones stay eager."""

MOST_PIXELS: Final = 1024 * 1024
"""Latent pixels of all rows of a compiled shape."""

MOST_RECORDED_PIXELS: Final = 512 * 512
"""The same of a recorded one: beyond, launching kernels one by one costs nothing, and graphs hold memory."""

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

    def facts(self) -> Mapping[str, Any]:
        """Return plain values that tell it in the log."""
        return {"shape": list(self)}

    def label(self) -> str:
        """Return what tells it from others in a name."""
        return "_".join(map(str, self))


class Answers(NamedTuple):
    """What a call of the network gave."""

    answers: torch.Tensor
    is_compiled: bool  #: by which kernels


class _RecordingError(Exception):
    """The kernels cannot be a graph."""


class Kernels:
    """Calls of one network. One thread uses it."""

    def __init__(self, unet: Any, *, backend: str | None) -> None:
        """*backend*, torch.compile's; None: everything is eager."""
        self._unet = unet
        self._is_gpu = unet.device.type == "cuda"
        self._compiler: Compiler[Shape] = Compiler(self._predict, backend=backend, is_gpu=self._is_gpu)
        self._recorded: dict[Shape, Recorded] = {}
        self._graph_pool: Any = None

    def is_compiled(self, shape: Shape) -> bool:
        """Whether *shape* has its compiled kernels now."""
        return self._compiler.ready(shape) is not None

    def run(
        self,
        shape: Shape,
        sample: torch.Tensor,
        embedding: torch.Tensor,
        text: KeysValues,
        *,
        compiled: bool,
        room_pixels: int = MOST_PIXELS,
    ) -> Answers:
        """Return the network's answers.

        Args:
            compiled: by the compiled kernels, if they are there.
            room_pixels: latent pixels that memory has room for beside this call. A shape is compiled and recorded by
                a call of its own.
        """
        kernels = self._compiler.ready(shape) if compiled else None
        if kernels is None:
            if shape.pixels <= room_pixels:
                self._ask_for(shape, sample, embedding, text)
            return Answers(self.eager(shape.ways, sample, embedding, text), is_compiled=False)
        try:
            if self._is_gpu and shape.pixels <= min(room_pixels, MOST_RECORDED_PIXELS) and shape not in self._recorded:
                self._record(shape, kernels, sample, embedding, text)
            recorded = self._recorded.get(shape)
            answers = (recorded or kernels)(sample, embedding, text)
        except NotCompiledError:
            self._compiler.missed(shape, lambda: (sample, embedding, text))
        except _RecordingError as exc:
            self._compiler.drop(shape)  # for good
            self._compiler.tell("compile_failed", why=f"recording {list(shape)}: {exc}"[:500])
        else:
            return Answers(answers, is_compiled=True)
        return Answers(self.eager(shape.ways, sample, embedding, text), is_compiled=False)

    def release(self) -> bool:
        """Free what recorded graphs hold, but not the compiled kernels; return whether there were any graphs."""
        held = bool(self._recorded)
        self._recorded.clear()
        self._graph_pool = None
        return held

    def eager(self, ways: int, sample: torch.Tensor, embedding: torch.Tensor, text: KeysValues) -> torch.Tensor:
        """Return the network's answers by eager kernels, and ask for no others."""
        return predict(self._unet, sample, embedding, text, ways=ways)

    def remarks(self) -> list[Remark]:
        """Return what happened since the last call: a shape's kernels are there, or will never be."""
        return self._compiler.remarks()

    def settle(self) -> None:
        """Wait until all that was asked for is compiled, or has failed; for tests and benchmarks."""
        self._compiler.settle()

    def close(self) -> None:
        """Compile nothing more and forget what was compiled; what is being compiled ends by itself."""
        self._compiler.close()
        self.release()

    def _record(self, shape: Shape, kernels: Predict, *inputs: Any) -> None:
        """Make a graph of *kernels*, unless something is being compiled: then a later call will."""
        with nobody_compiles() as is_free:
            if not is_free:
                return
            try:
                self._recorded[shape] = Recorded(kernels, *inputs, pool=self._graph_pool)
            except RuntimeError as exc:
                if is_out_of_memory(exc):
                    raise  # the step is tried again in less, and unrecorded
                raise _RecordingError(str(exc)) from exc
        self._graph_pool = self._recorded[shape].pool

    def _ask_for(self, shape: Shape, *example: Any) -> None:
        """Have *shape* compiled, if it is one to be compiled; *example*, the inputs of a call."""
        if shape.pixels <= MOST_PIXELS and self._compiler.asked < MOST_SHAPES:
            self._compiler.ask_for(shape, lambda: example)

    def _predict(self, shape: Shape) -> Predict:
        """Return the call that *shape* has."""
        unet, ways = self._unet, shape.ways

        def call(sample: torch.Tensor, embedding: torch.Tensor, text: KeysValues) -> torch.Tensor:
            return predict(unet, sample, embedding, text, ways=ways)

        return call


class Recorded:
    """A call of the network as a CUDA graph: one launch for all its kernels, with inputs at fixed addresses.

    Inputs that come later must be laid out as those at the recording. No thread may wait for the whole device while a
    graph is recorded (``torch.cuda.synchronize``): CUDA then refuses both.
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
