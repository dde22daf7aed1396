"""A network's kernels: eager at once; compiled beside the jobs, once for windows of every size.

A window has the size that its picture gives it, and it cannot be padded to one of a few: the zeros that a network's
convolutions see beyond a picture's border belong to the picture, and would move. So sizes are left open (torch's
dynamic shapes): one compilation for each number type and kind of pixels, and one more for several windows at once, as
torch takes 1 for a number like no other. There are no CUDA graphs, each of which has one size: a window is far more
work than the launching of its kernels.

A network is compiled in stages, equal ones once: in one piece the largest took minutes, and Python's collector walked
its graph for seconds at a time, in which the device's process gave no sign of life.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import torch

from fourfold.engine.base import Remark
from fourfold.engine.compiling import Call, Compiler, NotCompiledError

EXAMPLE_SIDES: Final = (96, 128)
"""Height and width of the windows that kernels are compiled with: enough for torch to tune them for large ones."""


class Stage(NamedTuple):
    """A part of a network: a function of what was made before and of its own weights."""

    function: Callable[..., tuple[torch.Tensor, ...]]  #: one object for all stages that compute the same
    weights: tuple[torch.Tensor, ...]
    reads: tuple[str, ...]  #: names of what was made before, ``[n, channels, h, w]``; the first stage's, the picture
    makes: tuple[str, ...]
    drops: tuple[str, ...] = ()  #: what no later stage reads


class RunsPictures(Protocol):
    """A network on its device in one number type."""

    @property
    def stages(self) -> Sequence[Stage]:
        """Its parts, the last of which makes the picture; none where it is not to be compiled."""

    def run(self, picture: torch.Tensor) -> torch.Tensor:
        """Return ``[n, 3, 4 h, 4 w]`` float32 in 0 .. 1 of ``[n, 3, h, w]`` in 0 .. 1."""


class Kind(NamedTuple):
    """What kernels are compiled for: windows of any size."""

    dtype: torch.dtype
    bits: int  #: of a level: 8 or 16
    is_batch: bool  #: whether there are several at once


class Part(NamedTuple):
    """What is compiled at once."""

    kind: Kind
    at: int  #: the first of the stages that compute the same

    def facts(self) -> Mapping[str, Any]:
        """Return plain values that tell it in the log."""
        kind = self.kind
        return {"precision": _name(kind.dtype), "bits": kind.bits, "is_batch": kind.is_batch, "stage": self.at}

    def label(self) -> str:
        """Return what tells it from others in a name."""
        return "_".join(str(value) for value in self.facts().values())


class Enlarged(NamedTuple):
    """What the kernels made."""

    levels: torch.Tensor  #: [n, 4 h, 4 w, 3]
    is_compiled: bool  #: by which kernels


class TileKernels:
    """Calls of one network on one device. One thread uses it."""

    def __init__(
        self, make_network: Callable[[torch.dtype], RunsPictures], *, device: torch.device, backend: str | None
    ) -> None:
        """*make_network* makes the network in a number type; *backend*, torch.compile's, None: everything is eager."""
        self._make_network = make_network
        self._device = device
        self._dtype_to_network: dict[torch.dtype, RunsPictures] = {}
        self._compiler: Compiler[Part] = Compiler(self._function, backend=backend, is_gpu=device.type == "cuda")

    def are_compiled(self, kinds: Iterable[Kind]) -> bool:
        """Whether all of *kinds* have their compiled kernels now."""
        return all(self._compiled(kind) is not None for kind in kinds)

    def load(self, dtype: torch.dtype) -> None:
        """Make the network in this number type, if it is not there."""
        if dtype not in self._dtype_to_network:
            self._dtype_to_network[dtype] = self._make_network(dtype)

    def run(self, kind: Kind, windows: torch.Tensor, *, compiled: bool) -> Enlarged:
        """Return *windows*, ``[n, h, w, 3]`` on the device, enlarged by a loaded network, in inference mode.

        Args: *compiled*, by compiled kernels, if they are there.
        """
        network, picture = self._dtype_to_network[kind.dtype], to_picture(windows, kind.bits)
        calls = self._compiled(kind)
        if calls is None:
            for part in dict.fromkeys(_parts(kind, network.stages)):
                self._compiler.ask_for(part, lambda part=part: self._example(part))  # type: ignore[misc]
        elif compiled:
            try:
                return Enlarged(run_stages(network.stages, picture, calls), is_compiled=True)
            except _MissedError as exc:
                part, inputs = exc.part, exc.inputs
            self._compiler.missed(part, lambda: _any_size(part, inputs, network.stages))
        return Enlarged(to_levels(network.run(picture), kind.bits), is_compiled=False)

    def remarks(self) -> list[Remark]:
        """Return what happened since the last call: kernels are there, or will never be."""
        return self._compiler.remarks()

    def settle(self) -> None:
        """Wait until all that was asked for is compiled, or has failed; for tests and benchmarks."""
        self._compiler.settle()

    def close(self) -> None:
        """Forget the network; what is being compiled ends by itself."""
        self._compiler.close()
        self._dtype_to_network.clear()

    def _compiled(self, kind: Kind) -> list[Call] | None:
        """Return the stages' compiled functions; None where one is not there."""
        network = self._dtype_to_network.get(kind.dtype)
        if network is None or not network.stages:
            return None
        parts = _parts(kind, network.stages)
        ready = {part: self._compiler.ready(part) for part in dict.fromkeys(parts)}
        calls = {part: _telling(part, call) for part, call in ready.items() if call is not None}
        return [calls[part] for part in parts] if len(calls) == len(ready) else None

    def _function(self, part: Part) -> Call:
        """Return what is compiled: a stage, and with the last one the way to levels."""
        stages = self._dtype_to_network[part.kind.dtype].stages
        function, bits = stages[part.at].function, part.kind.bits
        if part.at < len(stages) - 1:
            return function
        return lambda *inputs: (to_levels(function(*inputs)[0], bits),)

    def _example(self, part: Part) -> list[torch.Tensor]:
        """Return the inputs of a call, of windows that might have other sizes."""
        kind, stages = part.kind, self._dtype_to_network[part.kind.dtype].stages
        dtype = torch.uint8 if kind.bits == 8 else torch.float32
        windows = torch.zeros((2 if kind.is_batch else 1, *EXAMPLE_SIDES, 3), dtype=dtype, device=self._device)
        alive = {stages[0].reads[0]: to_picture(windows, kind.bits)}
        for stage in stages[: part.at]:
            _run_stage(stage, stage.function, alive)
        stage = stages[part.at]
        return _any_size(part, [*(alive[blob] for blob in stage.reads), *stage.weights], stages)


class _MissedError(Exception):
    """A stage has no kernels for a call."""

    def __init__(self, part: Part, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__(part)
        self.part, self.inputs = part, inputs


def run_stages(stages: Sequence[Stage], picture: torch.Tensor, calls: Sequence[Call] = ()) -> torch.Tensor:
    """Return what the last of *stages* makes of *picture*; *calls* instead of the stages' own functions."""
    alive = {stages[0].reads[0]: picture}
    for stage, call in zip(stages, calls or [stage.function for stage in stages], strict=True):
        _run_stage(stage, call, alive)
    return alive[stages[-1].makes[0]]


def _run_stage(stage: Stage, call: Call, alive: dict[str, torch.Tensor]) -> None:
    made = call(*(alive[blob] for blob in stage.reads), *stage.weights)
    alive.update(zip(stage.makes, made, strict=True))
    for blob in stage.drops:
        del alive[blob]


def to_picture(windows: torch.Tensor, bits: int) -> torch.Tensor:
    """Return ``[n, 3, h, w]`` float32 in 0 .. 1 of the levels ``[n, h, w, 3]``."""
    return (windows.float() / float(2**bits - 1)).permute(0, 3, 1, 2)


def to_levels(picture: torch.Tensor, bits: int) -> torch.Tensor:
    """Return ``[n, h, w, 3]``, the levels of ``[n, 3, h, w]``, on its device.

    8 bits are uint8, a quarter of what float32 would take to the host; 16 are float32.
    """
    levels = (picture.float().clamp(0, 1) * float(2**bits - 1)).round().permute(0, 2, 3, 1)
    return (levels.to(torch.uint8) if bits == 8 else levels).contiguous()


def _parts(kind: Kind, stages: Sequence[Stage]) -> list[Part]:
    """Return what each stage is compiled as: the last one on its own, as the way to levels comes with it."""
    first: dict[int, int] = {}
    body = [Part(kind, first.setdefault(id(stage.function), at)) for at, stage in enumerate(stages[:-1])]
    return [*body, Part(kind, len(stages) - 1)] if stages else []


def _telling(part: Part, call: Call) -> Call:
    """Return *call*, which says more where it has no kernels."""

    def called(*inputs: torch.Tensor) -> Any:
        try:
            return call(*inputs)
        except NotCompiledError:
            raise _MissedError(part, inputs) from None

    return called


def _any_size(part: Part, inputs: Sequence[torch.Tensor], stages: Sequence[Stage]) -> list[torch.Tensor]:
    """Return *inputs* of a call as an example of other sizes, too; where torch cannot, compiling fails."""
    for blob in inputs[: len(stages[part.at].reads)]:
        for dimension in (0, 2, 3) if part.kind.is_batch else (2, 3):
            torch._dynamo.mark_dynamic(blob, dimension)
    return list(inputs)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
