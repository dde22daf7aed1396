"""What is done with a recorded graph, where no GPU is: CUDA's own part is stood in for by calls of the kernels."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from fourfold.engine.sd_x4_kernels import Recorded


class Cuda:
    """Stands in for a GPU's streams and graphs; a replay calls the kernels again, from and to where they did."""

    def __init__(self) -> None:
        self.used: list[str] = []  #: streams, in the order in which work was given to them
        self.captures: list[dict[str, Any]] = []
        self.last: tuple[tuple[Any, ...], torch.Tensor] | None = None
        self.kernels: Callable[..., torch.Tensor] = lambda sample, embedding, text: (
            sample * 2 + embedding.sum() + sum(keys.sum() - values.sum() for keys, values in text.values())
        )

    def __call__(self, *inputs: Any) -> torch.Tensor:
        """Compute, and remember where."""
        answer = self.kernels(*inputs)
        self.last = inputs, answer
        return answer


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    signature = inspect.signature(torch.cuda.graph.__init__)

    class Stream:
        def wait_stream(self, other: Any) -> None:
            made.used.append("waits")

    class Graph:
        def __init__(self) -> None:
            self.recorded: Any = None

        def pool(self) -> str:
            return "pool"

        def replay(self) -> None:
            inputs, answer = self.recorded
            answer.copy_(made.kernels(*inputs))

    @contextmanager
    def graph(*arguments: Any, **named: Any) -> Iterator[None]:
        bound = signature.bind(None, *arguments, **named).arguments
        made.captures.append(bound)
        yield
        bound["cuda_graph"].recorded = made.last

    current = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return made


def inputs(seed: int) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn((2, 7, 8, 8), generator=generator).contiguous(memory_format=torch.channels_last)
    text = {"a": (torch.randn((4, 2, 5, 3), generator=generator), torch.randn((4, 2, 5, 3), generator=generator))}
    return sample, torch.randn((2, 6), generator=generator), text


def test_every_input_reaches_the_graph_and_no_answer_changes_afterwards(cuda: Cuda) -> None:
    """Inputs are copied to where the graph reads, the layout's too, and answers away from where it writes."""
    with torch.inference_mode():
        first, second, third = inputs(0), inputs(1), (*inputs(2)[:2], inputs(1)[2])
        recorded = Recorded(cuda, *first, pool=None)
        answers = [recorded(*each) for each in (first, second, third, first)]
        expected = [cuda.kernels(*each) for each in (first, second, third, first)]

    assert all(torch.equal(made, wanted) for made, wanted in zip(answers, expected, strict=True))
    assert cuda.last is not None
    assert cuda.last[0][0].is_contiguous(memory_format=torch.channels_last)
    assert cuda.last[0][0] is not first[0]


def test_graphs_of_one_pool_share_its_stream_as_well(cuda: Cuda) -> None:
    """Memory is kept by stream: another stream's graph would take its own."""
    with torch.inference_mode():
        one = Recorded(cuda, *inputs(0), pool=None)
        Recorded(cuda, *inputs(1), pool=one.pool)
    first, second = cuda.captures

    assert (first["pool"], second["pool"]) == (None, "pool")
    assert first["stream"] is second["stream"]
    assert first["capture_error_mode"] == "thread_local"
