"""Functions are compiled beside who calls them, and who calls never waits for a compiler."""

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest

pytest.importorskip("torch", reason="needs the [diffusion] extra")

import torch

from fourfold.engine.compiling import Call, Compiler, NotCompiledError, nobody_compiles


class Factor(NamedTuple):
    """What is compiled here: a product with a number."""

    value: int

    def facts(self) -> Mapping[str, Any]:
        return {"value": self.value}

    def label(self) -> str:
        return str(self.value)


class Held:
    """A compiler of graphs that stands still at the wanted one until it is told to go on."""

    def __init__(self, at: int = 0) -> None:
        self._at, self.count = at, 0
        self.stands, self.goes_on = threading.Event(), threading.Event()

    def __call__(self, graph: Any, _: Any) -> Any:
        self.count += 1
        if self.count == self._at:
            self.stands.set()
            self.goes_on.wait()
        return graph.forward


def product(key: Factor) -> Call:
    return lambda x: x * key.value


@pytest.fixture
def make() -> Iterator[Callable[..., Compiler[Factor]]]:
    """Make compilers, whose threads have ended afterwards."""
    made: list[Compiler[Factor]] = []

    def compiler(backend: Any, function: Callable[[Factor], Call] = product) -> Compiler[Factor]:
        made.append(Compiler(function, backend=backend, is_gpu=False))
        return made[-1]

    yield compiler
    for each in made:
        each.close()
        if each._thread is not None:
            each._thread.join()


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """As engines run; kernels made in that mode serve no other."""
    with torch.inference_mode():
        yield


@pytest.fixture
def half_by_default() -> Iterator[Callable[[], None]]:
    """Change, when called, what a loading model changes for a moment."""
    yield lambda: torch.set_default_dtype(torch.float16)
    torch.set_default_dtype(torch.float32)


def asked(compiler: Compiler[Factor], value: int = 3) -> Any:
    """Ask for a product, wait for it and return it."""
    compiler.ask_for(Factor(value), lambda: [torch.ones(4)])
    compiler.settle()
    return compiler.ready(Factor(value))


def test_what_is_asked_for_is_compiled_once(make: Callable[..., Compiler[Factor]]) -> None:
    compiler = make(held := Held())
    for value in (3, 3, 5):
        assert asked(compiler, value)(torch.arange(4.0)).tolist() == [0.0, value, 2.0 * value, 3.0 * value]

    assert held.count == 2
    assert [(told.name, told.facts["value"]) for told in compiler.remarks()] == [
        ("kernels_ready", 3),
        ("kernels_ready", 5),
    ]


def test_a_call_in_another_state_of_the_process_neither_compiles_nor_waits(
    make: Callable[..., Compiler[Factor]], half_by_default: Callable[[], None]
) -> None:
    """While another function is being compiled, which holds torch's lock: it would wait for that, and then compile."""
    compiler = make(held := Held(at=2))
    ready = asked(compiler)
    compiler.ask_for(Factor(5), lambda: [torch.ones(4)])
    held.stands.wait()
    half_by_default()

    with pytest.raises(NotCompiledError):
        ready(torch.ones(4, dtype=torch.float32))
    assert held.count == 2
    held.goes_on.set()


def test_a_compiler_gives_way_to_the_jobs_python(make: Callable[..., Compiler[Factor]]) -> None:
    """Threads change ten times as often while it works, and as usual afterwards."""
    usual_s, backend = sys.getswitchinterval(), Held(at=1)
    compiler = make(backend)
    compiler.ask_for(Factor(3), lambda: [torch.ones(4)])
    backend.stands.wait()
    meanwhile_s = sys.getswitchinterval()
    backend.goes_on.set()
    compiler.settle()

    assert meanwhile_s == pytest.approx(usual_s / 10)
    assert sys.getswitchinterval() == usual_s


def test_what_was_missed_is_compiled_beside_and_then_there_again(
    make: Callable[..., Compiler[Factor]],
) -> None:
    """For its inputs, and still for those before."""
    compiler = make("eager")
    ready = asked(compiler)
    longer = torch.ones(6)
    with pytest.raises(NotCompiledError):
        ready(longer)
    compiler.missed(Factor(3), lambda: [longer])
    compiler.settle()

    again = compiler.ready(Factor(3))
    assert again is not None
    assert [again(x).tolist() for x in (longer, torch.ones(4))] == [[3.0] * 6, [3.0] * 4]
    assert [told.name for told in compiler.remarks()] == ["kernels_ready"]


def test_nobody_compiles_while_a_graph_is_recorded(make: Callable[..., Compiler[Factor]]) -> None:
    compiler = make(Held())
    with nobody_compiles() as is_free:
        assert is_free
        with nobody_compiles() as is_free_again:
            assert not is_free_again
        compiler.ask_for(Factor(3), lambda: [torch.ones(3)])
        assert compiler.ready(Factor(3)) is None
    compiler.settle()

    assert compiler.ready(Factor(3)) is not None


def test_a_failure_is_told_once_and_ends_all(make: Callable[..., Compiler[Factor]]) -> None:
    compiler = make("no_such_compiler")

    assert [asked(compiler, 3), asked(compiler, 5)] == [None, None]
    assert [told.name for told in compiler.remarks()] == ["compile_failed"]


def test_a_compilation_without_memory_is_tried_when_it_is_next_asked_for(
    make: Callable[..., Compiler[Factor]],
) -> None:
    """As jobs hold it that will end; it says nothing about the compiler."""
    full = [True]

    def function(key: Factor) -> Call:
        if full.pop() if full else False:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return product(key)

    compiler = make("eager", function)

    assert asked(compiler) is None
    assert asked(compiler) is not None
    assert [told.name for told in compiler.remarks()] == ["kernels_ready"]


def test_closed_it_compiles_nothing_more_and_holds_nothing(make: Callable[..., Compiler[Factor]]) -> None:
    """Neither its functions nor, by way of torch, what they hold."""
    weights = [torch.ones(4)]
    alive = weakref.ref(weights[0])

    def function(key: Factor) -> Call:
        ours = weights[0]
        return lambda x: x * ours * key.value

    compiler = make(held := Held(at=2), function)
    asked(compiler)
    compiler.ask_for(Factor(5), lambda: [torch.ones(4)])
    held.stands.wait()
    compiler.ask_for(Factor(7), lambda: [torch.ones(4)])
    compiler.close()
    held.goes_on.set()
    compiler.settle()
    weights.clear()
    gc.collect()

    assert held.count == 2
    assert alive() is None
