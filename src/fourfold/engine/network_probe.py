"""Load a network and say what it is: ``python -m fourfold.engine.network_probe``, a LocalNetwork on standard input.

A process of its own, so that who asks needs no torch, and survives a network whose code crashes.
"""

import json
import sys
import weakref
from dataclasses import asdict
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fourfold.engine.network_torch import PaddedNetwork, load_descriptor
from fourfold.engine.networks import LocalNetwork, NetworkFacts
from fourfold.errors import FourfoldError

_SIDE_PX: Final = 64
_SLACK: Final = 1.5  #: for what a library takes beside its results


class LiveMemory(TorchDispatchMode):  # type: ignore[misc]  # torch has no types for us
    """Counts the bytes of all tensors that are alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked, and look at the results."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, key, None)
            self.peak = max(self.peak, sum(self._alive.values()))


def describe(network: LocalNetwork) -> NetworkFacts:
    """Load *network*, try it on a small picture, and return what it is.

    Raises: ModelUnavailableError: it cannot be loaded; WorkerFailedError: it cannot be run.
    """
    descriptor = load_descriptor(network)
    rules = descriptor.size_requirements
    multiple_px = rules.multiple_of
    # One window is too little for networks that shift it.
    least_px = max(rules.minimum, 1 if multiple_px == 1 else 2 * multiple_px)
    side = max(_SIDE_PX, least_px)
    channels = descriptor.input_channels, descriptor.output_channels
    memory = LiveMemory()
    if channels == (3, 3):
        padded = PaddedNetwork(descriptor, multiple_px=multiple_px, min_side_px=least_px)
        with torch.inference_mode(), memory:
            padded.run(torch.full((1, 3, side, side), 0.5))
    return NetworkFacts(
        architecture=str(descriptor.architecture.name),
        purpose=str(descriptor.purpose),
        scale=int(descriptor.scale),
        channels=channels,
        multiple_px=multiple_px,
        min_side_px=least_px,
        is_square=bool(rules.square),
        is_tiled_inside=descriptor.tiling.name == "INTERNAL",
        has_half=bool(descriptor.supports_half),
        weight_bytes=sum(p.numel() * p.element_size() for p in descriptor.model.parameters()),
        bytes_per_pixel=max(1, int(_SLACK * memory.peak / side**2)),
    )


def main() -> None:
    """Print the facts as one line of JSON, or why there are none, with exit status 1."""
    torch.set_num_threads(1)
    try:
        found = describe(LocalNetwork.from_json(json.load(sys.stdin)))
    except FourfoldError as exc:
        sys.exit(" ".join(exc.message.split()))
    print(json.dumps(asdict(found)), flush=True)


if __name__ == "__main__":
    main()
