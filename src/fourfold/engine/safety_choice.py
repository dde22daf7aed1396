"""Which safety classifier scores pictures here: the stock checker where its files are, else the embedded one."""

from __future__ import annotations

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
