"""Kernels are compiled beside the jobs: eager first, then compiled, with the same picture; a failure changes nothing.

``aot_eager`` goes the whole way of torch.compile but for the making of machine code, which takes minutes; ``eager``
only traces. With ``inductor`` on a CPU the answers were within 1.4e-6 of their size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fourfold.engine import registry, sd_x4_kernels
from fourfold.engine.base import EngineEvent, JobDone, Remark
from fourfold.engine.compiling import nobody_compiles
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.engine.settings import EngineSettings
from fourfold.testing.sd_x4_stock import job, notes, picture, pixels, run

MODEL = "stabilityai/stable-diffusion-x4-upscaler"


@contextmanager
def compiling(folder: Path, *, rows: tuple[int, ...] = (1,), compiler: str = "aot_eager") -> Iterator[Any]:
    """Yield an engine that compiles; its thread has ended afterwards."""
    settings = EngineSettings(threads=1, batch_rows=rows, compiler=compiler)
    engine = StableDiffusionX4Engine(registry.card(MODEL), settings=settings, folder=folder)
    compiler = engine._kernels._compiler
    yield engine
    engine.close()
    if compiler._thread is not None:
        compiler._thread.join()


def remarks(events: list[EngineEvent]) -> list[str]:
    return [event.name for event in events if isinstance(event, Remark)]


@pytest.mark.slow
def test_the_first_jobs_are_eager_and_later_ones_compiled(
    tiny_folder: Path, engine: StableDiffusionX4Engine, gate: Callable[[], None]
) -> None:
    """Nothing waits for the compiler; a job that has begun is not switched; the pictures are the same to a level."""
    each = job(steps=2, guidance_scale=1.0)
    expected = pixels(run(engine, each)).astype(int)
    with compiling(tiny_folder) as compiled:
        first = run(compiled, each)  # from its first step to its last while the compiler stands still
        compiled.admit(replace(each, job_id="begun"))
        compiled.step()
        kernels = compiled._kernels
        gate()
        kernels.settle()
        begun, later = run(compiled), run(compiled, replace(each, job_id="later"))
        told = [event for event in [*begun, *later] if isinstance(event, Remark)]

    assert [notes(first)["kernels"], notes(begun, "begun")["kernels"], notes(later, "later")["kernels"]] == [
        "eager",
        "eager",
        "compiled",
    ]
    assert [(remark.name, remark.facts["shape"]) for remark in told] == [("kernels_ready", [1, 1, 64, 64])]
    for events, name in ((first, "a"), (begun, "begun"), (later, "later")):
        assert np.abs(pixels(events, name).astype(int) - expected).max() <= 1


@pytest.mark.slow
def test_compiled_answers_are_the_eager_ones(tiny_folder: Path) -> None:
    """For each shape that is compiled; shapes do not hinder one another, and inputs are not mixed up."""
    with compiling(tiny_folder, compiler="eager") as engine:
        kernels, generator = engine._kernels, torch.Generator().manual_seed(1)
        with torch.inference_mode():
            for rows, ways, texts in ((1, 1, ["cat"]), (2, 1, ["cat", "dog"])):
                shape = sd_x4_kernels.Shape(rows, ways, 64, 64)
                inputs = [
                    (
                        torch.randn((rows, 7, 64, 64), generator=generator),
                        torch.randn((rows, 64), generator=generator),
                        engine._prompts.rows(texts),
                    )
                    for _ in range(2)
                ]
                kernels.run(shape, *inputs[0], compiled=True)  # asks for it
                kernels.settle()
                assert kernels.is_compiled(shape)
                for each in inputs:
                    expected = kernels.eager(ways, *each)
                    made, is_compiled = kernels.run(shape, *each, compiled=True)
                    assert is_compiled
                    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_compiler_that_fails_is_told_once_and_everything_stays_eager(tiny_folder: Path) -> None:
    """Whatever it raises; no job notices."""
    with compiling(tiny_folder, compiler="no_such_compiler") as engine:
        first = run(engine, job(steps=1))
        kernels = engine._kernels
        kernels.settle()
        later = run(engine, job("b", picture(100, 40), steps=1))

    assert remarks([*first, *later]) == ["compile_failed"]
    assert {notes(first)["kernels"], notes(later, "b")["kernels"]} == {"eager"}


@pytest.mark.slow
def test_strict_jobs_of_different_kernels_share_no_batch(tiny_folder: Path, gate: Callable[[], None]) -> None:
    """A job from before and one from after the compilation run side by side, each by its own kernels throughout."""
    with compiling(tiny_folder, rows=(2,), compiler="eager") as engine:
        before, after = job("before", steps=3, guidance_scale=1.0), job("after", steps=3, guidance_scale=1.0)
        engine.admit(before)
        engine.step()
        gate()
        engine._kernels.settle()
        engine.admit(after)
        mixed = run(engine)
        alone = run(engine, after)

    assert notes(mixed, "before")["kernels"] == "eager"
    assert notes(mixed, "after")["kernels"] == "compiled"
    assert np.array_equal(pixels(mixed, "after"), pixels(alone, "after"))


def test_nothing_is_compiled_unless_asked_for_or_beyond_a_bound(
    engine: StableDiffusionX4Engine, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default, for large shapes, without memory for a second step beside, and for the thirty-third."""
    run(engine, job(steps=1))
    assert engine._kernels._compiler._thread is None

    monkeypatch.setattr(sd_x4_kernels, "MOST_PIXELS", 64 * 64 - 1)
    with compiling(tiny_folder) as large:
        events = run(large, job(steps=1))
        assert large._kernels._compiler._thread is None
    monkeypatch.undo()
    with compiling(tiny_folder) as short:
        monkeypatch.setattr(short, "_room_beside", lambda shape: shape.pixels - 1)
        events = run(short, job(steps=1))
        assert short._kernels._compiler._thread is None
    monkeypatch.setattr(sd_x4_kernels, "MOST_SHAPES", 0)
    assert any(isinstance(event, JobDone) for event in events)


@contextmanager
def recording(folder: Path, monkeypatch: pytest.MonkeyPatch, by: type, *, rows: int = 1) -> Iterator[Any]:
    """Yield an engine that has kernels for one shape, eager ones as if compiled, and records them, as on a GPU."""
    with compiling(folder, rows=(rows,)) as engine, monkeypatch.context() as patched:
        kernels, shape = engine._kernels, sd_x4_kernels.Shape(rows, 2, 64, 64)
        kernels._compiler._ready[shape] = kernels._predict(shape)
        patched.setattr(kernels._compiler, "_backend", None)
        patched.setattr(kernels, "_is_gpu", True)
        patched.setattr(sd_x4_kernels, "Recorded", by)
        yield engine


class NoRecording:
    """Kernels that cannot be a graph."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")


class Recording:
    """Kernels that are called one by one, instead of as a graph; it counts."""

    made = 0
    is_full = False

    def __init__(self, kernels: Any, *_: Any, pool: Any) -> None:
        Recording.made += 1
        self._kernels, self.pool = kernels, pool or object()

    def __call__(self, *inputs: Any) -> Any:
        if self.is_full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._kernels(*inputs)


def test_kernels_that_cannot_be_recorded_are_not_used(
    tiny_folder: Path, engine: StableDiffusionX4Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU compiled kernels are recorded; where that fails the job goes on with eager ones, and it is told."""
    expected = pixels(run(engine, job(steps=2)))
    with recording(tiny_folder, monkeypatch, NoRecording) as other:
        events = run(other, job(steps=2))

    assert remarks(events) == ["compile_failed"]
    assert notes(events)["kernels"] == "eager"
    assert np.array_equal(pixels(events), expected)


def test_no_graph_is_recorded_while_something_is_compiled_nor_of_a_large_shape(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler waits for the whole device, which makes a recording fail; the compiled kernels run one by one."""
    monkeypatch.setattr(Recording, "made", 0)
    with recording(tiny_folder, monkeypatch, Recording) as engine:
        with nobody_compiles() as is_free:  # holds what who compiles holds
            assert is_free
            events = run(engine, job(steps=1))
        assert (notes(events)["kernels"], Recording.made) == ("compiled", 0)
        with monkeypatch.context() as bounded:
            bounded.setattr(sd_x4_kernels, "MOST_RECORDED_PIXELS", 64 * 64 - 1)
            events = run(engine, job(steps=1))
        assert (notes(events)["kernels"], Recording.made) == ("compiled", 0)
        run(engine, job(steps=1))
        assert Recording.made == 1


def test_room_beside_a_step_is_what_the_budget_leaves(make_engine: Callable[..., StableDiffusionX4Engine]) -> None:
    shape = sd_x4_kernels.Shape(1, 2, 64, 64)
    engine = make_engine(budget=make_engine().card.peak_bytes(2 * 64 * 64))

    assert engine._room_beside(shape) == 64 * 64
    assert engine._room_beside(shape._replace(rows=3)) == 0
    assert make_engine()._room_beside(shape) >= 64 * 64


def test_graphs_make_room_where_memory_runs_out_and_are_recorded_again(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs go on with the same kernels, so with the same bytes; no graph is recorded until they have ended."""
    monkeypatch.setattr(Recording, "made", 0)
    jobs = [job("a", steps=3), job("b", steps=3, seed=1)]
    with recording(tiny_folder, monkeypatch, Recording, rows=2) as engine:
        kernels = engine._kernels
        for each in jobs:
            engine.admit(each)
        engine.step()
        (graph,) = kernels._recorded.values()
        with monkeypatch.context() as full:
            full.setattr(Recording, "is_full", True)
            engine.step()
        assert (kernels._recorded, kernels._graph_pool) == ({}, None)
        events = run(engine)
        assert Recording.made == 1
        later = run(engine, *jobs)

        assert Recording.made == 2
        assert kernels._graph_pool not in (None, graph.pool)

    for each in jobs:
        first, second = notes(events, each.job_id), notes(later, each.job_id)
        assert (first["kernels"], first["out_of_memory_retries"]) == ("compiled", 1)
        assert (second["kernels"], second.get("out_of_memory_retries")) == ("compiled", None)
        assert np.array_equal(pixels(events, each.job_id), pixels(later, each.job_id))
