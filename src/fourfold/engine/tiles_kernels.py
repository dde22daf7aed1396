"""A network's kernels: eager at once; compiled beside the jobs, once for windows of every size.

A window has the size that its picture gives it, and it cannot be padded to one of a few: the zeros that a network's
convolutions see beyond a picture's border belong to the picture, and would move. So sizes are left open (torch's
dynamic shapes): one compilation for each number type and kind of pixels, and one more for several windows at once, as
torch takes 1 for a number like no other. There are no CUDA graphs, each of which has one size: a window is far more
work than the launching of its kernels.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, Protocol

import torch

from fourfold.engine.base import Remark
from fourfold.engine.compiling import Call, Compiler, NotCompiledError

EXAMPLE_SIDES: Final = (96, 128)
"""Height and width of the windows that kernels are compiled with: enough for torch to tune them for large ones."""


class RunsPictures(Protocol):
    """A network on its device in one number type."""

    def run(self, picture: torch.Tensor) -> torch.Tensor:
        """Return ``[n, 3, 4 h, 4 w]`` float32 in 0 .. 1 of ``[n, 3, h, w]`` in 0 .. 1."""


class Kind(NamedTuple):
    """What kernels are compiled for: windows of any size."""

    dtype: torch.dtype
    bits: int  #: of a level: 8 or 16
    is_batch: bool  #: whether there are several at once

    @property
    def precision(self) -> str:
        """The number type's name."""
        return str(self.dtype).removeprefix("torch.")

    def facts(self) -> Mapping[str, Any]:
        """Return plain values that tell it in the log."""
        return {"precision": self.precision, "bits": self.bits, "is_batch": self.is_batch}

    def label(self) -> str:
        """Return what tells it from others in a name."""
        return f"{self.precision}_{self.bits}_{'several' if self.is_batch else 'one'}"


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
        self._compiler: Compiler[Kind] = Compiler(self._enlarge, backend=backend, is_gpu=device.type == "cuda")

    def are_compiled(self, kinds: Iterable[Kind]) -> bool:
        """Whether all of *kinds* have their compiled kernels now."""
        return all(self._compiler.ready(kind) is not None for kind in kinds)

    def load(self, dtype: torch.dtype) -> None:
        """Make the network in this number type, if it is not there."""
        if dtype not in self._dtype_to_network:
            self._dtype_to_network[dtype] = self._make_network(dtype)

    def run(self, kind: Kind, windows: torch.Tensor, *, compiled: bool) -> Enlarged:
        """Return *windows*, ``[n, h, w, 3]`` on the device, enlarged by a loaded network, in inference mode.

        Args: *compiled*, by compiled kernels, if they are there.
        """
        kernels = self._compiler.ready(kind)
        if kernels is None:
            self._compiler.ask_for(kind, [self._any_size(kind, self._example(kind))])
        elif compiled:
            try:
                return Enlarged(kernels(windows), is_compiled=True)
            except NotCompiledError:
                self._compiler.missed(kind, [self._any_size(kind, windows)])
        return Enlarged(self._enlarge(kind)(windows), is_compiled=False)

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

    def _enlarge(self, kind: Kind) -> Call:
        network = self._dtype_to_network[kind.dtype]

        def call(windows: torch.Tensor) -> torch.Tensor:
            return enlarge(network, windows, bits=kind.bits)

        return call

    def _example(self, kind: Kind) -> torch.Tensor:
        dtype = torch.uint8 if kind.bits == 8 else torch.float32
        return torch.zeros((2 if kind.is_batch else 1, *EXAMPLE_SIDES, 3), dtype=dtype, device=self._device)

    @staticmethod
    def _any_size(kind: Kind, windows: torch.Tensor) -> torch.Tensor:
        """Return *windows* as an example of windows of other sizes, too; where torch cannot, compiling fails."""
        for dimension in (0, 1, 2) if kind.is_batch else (1, 2):
            torch._dynamo.mark_dynamic(windows, dimension)
        return windows


def enlarge(network: RunsPictures, windows: torch.Tensor, *, bits: int) -> torch.Tensor:
    """Return ``[n, 4 h, 4 w, 3]``, the levels of ``[n, h, w, 3]`` enlarged, all on the network's device.

    8 bits come as uint8, a quarter of what float32 would take to the host; 16 as float32.
    """
    peak = float(2**bits - 1)
    made = network.run((windows.float() / peak).permute(0, 3, 1, 2))
    levels = (made * peak).round().permute(0, 2, 3, 1)
    return (levels.to(torch.uint8) if bits == 8 else levels).contiguous()
