"""Run a network that spandrel knows, tile by tile, on the path that the Real-ESRGAN family takes under torch."""

import copy
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch.nn import functional

from fourfold.engine.base import EngineCard, UpscaleEngine
from fourfold.engine.full_memory import is_out_of_memory
from fourfold.engine.networks import LocalNetwork, facts, read_pinned
from fourfold.engine.settings import EngineSettings
from fourfold.engine.tiles_kernels import Stage
from fourfold.engine.tiles_torch import TorchTilesEngine
from fourfold.errors import ModelUnavailableError, WorkerFailedError

_LOST_WITHOUT_TORCHVISION: Final = ("normalize", "rotate", "InterpolationMode")


def load_network_engine(card: EngineCard, *, settings: EngineSettings) -> UpscaleEngine:
    """Load the settings' network of this card, its content checked.

    Raises: ModelUnavailableError if it is another file, or no network that spandrel knows.
    """
    network = settings.networks[card.model_id]
    found = facts(network)
    least_px, multiple_px = found.min_side_px, found.multiple_px
    device = torch.device(settings.device)
    loaded = load_descriptor(network)

    def make(dtype: torch.dtype) -> PaddedNetwork:
        is_loaded = (device.type, dtype) == ("cpu", torch.float32)
        descriptor = loaded if is_loaded else copy.deepcopy(loaded).to(device, dtype)
        if device.type != "cpu":
            descriptor.model.to(memory_format=torch.channels_last)
        return PaddedNetwork(descriptor, multiple_px=multiple_px, min_side_px=least_px)

    engine: UpscaleEngine = TorchTilesEngine(card, settings=settings, make_network=make, has_half=found.has_half)
    return engine


class PaddedNetwork:
    """A network of spandrel's that takes pictures of any size.

    It has no stages to compile: the code of these architectures looks at sizes, so that kernels would be made for each
    size of picture, or refused.
    """

    stages: Final[tuple[Stage, ...]] = ()

    def __init__(self, descriptor: Any, *, multiple_px: int = 1, min_side_px: int = 1) -> None:
        self._descriptor = descriptor
        self._multiple_px = multiple_px
        self._min_side_px = min_side_px

    def run(self, picture: torch.Tensor) -> torch.Tensor:
        """Return ``[n, 3, 4 h, 4 w]`` float32 in 0 .. 1 of ``[n, 3, h, w]`` in 0 .. 1; one picture at a time.

        Raises: WorkerFailedError: the network's code failed.
        """
        height, width = picture.shape[2:]
        right, below = self._missing(width), self._missing(height)
        # Repeated edges, as spandrel's own reflection needs more pixels than a small picture has.
        padded = functional.pad(picture, (0, right, 0, below), mode="replicate")
        scale = self._descriptor.scale
        try:
            rows = [self._run_one(row[None]) for row in padded]
        except (RuntimeError, ValueError, TypeError, IndexError) as exc:
            if is_out_of_memory(exc):
                raise  # the engine knows what to do
            raise WorkerFailedError(f"the network failed on {width}x{height}: {type(exc).__name__}: {exc}") from exc
        return torch.cat(rows)[:, :, : height * scale, : width * scale]

    def _run_one(self, row: torch.Tensor) -> torch.Tensor:
        moved = row.to(self._descriptor.device, self._descriptor.dtype)
        made: torch.Tensor = self._descriptor(moved).float().clamp(0, 1)
        return made

    def _missing(self, side: int) -> int:
        wanted = max(side, self._min_side_px)
        return -(-wanted // self._multiple_px) * self._multiple_px - side


def load_descriptor(network: LocalNetwork) -> Any:
    """Return spandrel's descriptor of the pinned file, in float32 on the CPU.

    Raises: ModelUnavailableError if spandrel does not know it.
    """
    content = read_pinned(network)
    spandrel = import_spandrel()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old architectures about new versions of torch
            tensors = spandrel.canonicalize_state_dict(load(content))
            descriptor: Any = spandrel.ModelLoader().load_from_state_dict(tensors)
        descriptor.float().eval().model.requires_grad_(False)
    except spandrel.UnsupportedModelError as exc:
        raise ModelUnavailableError(f"{network.path} is no network that spandrel knows") from exc
    except (RuntimeError, ValueError, KeyError, TypeError, AssertionError, SafetensorError) as exc:
        raise ModelUnavailableError(f"{network.path} cannot be loaded: {type(exc).__name__}: {exc}") from exc
    return descriptor


def import_spandrel() -> Any:
    """Return the package, with or without torchvision."""
    with _torchvision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import spandrel
    return spandrel


@contextmanager
def _torchvision() -> Iterator[None]:
    """Let spandrel be imported where there is no torchvision that fits torch; some devices have no build of it.

    Two of its architectures (LaMa, which fills holes, and RestoreFormer, for faces) take three names from torchvision
    when they are imported. Both are refused here anyway, so names that cannot be called stand in for the duration.
    """
    try:
        import torchvision.transforms.functional  # noqa: F401
    except (ImportError, RuntimeError, OSError):  # not there, or made for another torch
        ours: dict[str, types.ModuleType] = {}
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            ours[name] = types.ModuleType(name)
        for name in _LOST_WITHOUT_TORCHVISION:
            setattr(ours["torchvision.transforms.functional"], name, None)
        before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "torchvision"}
        sys.modules |= ours
        try:
            yield
        finally:
            for name in ours:
                sys.modules.pop(name, None)
            sys.modules |= before
    else:
        yield
