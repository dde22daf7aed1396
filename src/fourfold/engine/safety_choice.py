"""Which safety classifier scores pictures here: the stock checker where its files are, else the embedded one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from fourfold.engine.sd_x4_files import cached_snapshot, missing_packages
from fourfold.errors import ModelUnavailableError

if TYPE_CHECKING:  # a worker looks for the files; only its device loads what reads them
    import numpy as np
    from numpy.typing import NDArray

CHECKER: Final = "CompVis/stable-diffusion-safety-checker"
"""The stock checker of Stable Diffusion, by its hub id."""

_PLAIN_FILES: Final = ("config.json", "preprocessor_config.json")
_WEIGHTS: Final = ("model.fp16.safetensors", "model.safetensors")
_FLOAT32_BYTES: Final = 4
_MAX_HEADER_BYTES: Final = 2**24


class Classifier(Protocol):
    """Says how likely a picture is not safe for work. It only scores; what follows is the caller's."""

    def score(self, rgb: NDArray[np.uint8]) -> float:
        """Return 0 .. 1 for ``[h, w, 3]`` of any size."""


def locate_checker(folder: Path | None) -> Path | None:
    """Return the weights of the stock checker: those in *folder*, else those in the hub's cache, else None.

    Raises: ModelUnavailableError if *folder* is named and lacks something, or the packages that run it are missing.
    """
    missing = missing_packages()
    if folder is not None:
        if missing:
            raise ModelUnavailableError(
                f"worker.safety_checker needs {', '.join(missing)}, not installed: pip install 'fourfold[diffusion]'"
            )
        weights = _weights(folder)
        if weights is None:
            raise ModelUnavailableError(
                f"worker.safety_checker: {folder} must hold {', '.join(_PLAIN_FILES)} and {_WEIGHTS[-1]}; pickled "
                "weights, which may run code, are not read"
            )
        return weights
    if missing:
        return None
    try:
        return _weights(cached_snapshot(CHECKER))
    except ModelUnavailableError:
        return None


def checker_bytes(weights: Path | None) -> int:
    """Return the memory, of the CPU on any device, that the stock checker takes once it is loaded: it is in float32.

    Args: *weights*, its safetensors file; None, for the embedded classifier, or a damaged one: nothing to speak of.
    """
    if weights is None:
        return 0
    try:
        with weights.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, _MAX_HEADER_BYTES)))
        shapes: list[list[int]] = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
        return sum(math.prod(shape) for shape in shapes) * _FLOAT32_BYTES
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return 0  # it will be told apart when it is loaded


def make_classifier(*, threads: int, folder: Path | None = None) -> Classifier:
    """Load the classifier to use here; torch or OpenVINO is imported only now.

    Raises: ModelUnavailableError if its files are missing, damaged or of another kind.
    """
    weights = locate_checker(folder)
    made: Any
    if weights is None:
        from fourfold.engine.safety import SafetyClassifier

        made = SafetyClassifier(threads=threads)
    else:
        from fourfold.engine.safety_checker import SafetyChecker

        made = SafetyChecker(weights, threads=threads)
    classifier: Classifier = made
    return classifier


def _weights(folder: Path) -> Path | None:
    """Return the checker's weights in *folder*, None where something is missing."""
    if not all((folder / name).is_file() for name in _PLAIN_FILES):
        return None
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
