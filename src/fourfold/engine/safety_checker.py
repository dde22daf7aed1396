"""Stable Diffusion's stock safety checker: how near a picture's CLIP embedding is to a score of forbidden concepts.

Our own code over transformers' CLIP vision model. It only says yes or no, and blackens nothing.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate import init_empty_weights
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional
from transformers import CLIPConfig, CLIPVisionModel

from fourfold.engine.full_memory import comes_from_want_of_memory
from fourfold.engine.sd_x4_files import read_json
from fourfold.errors import InvalidImageError, ModelUnavailableError, OutOfMemoryError

#: How much lower the thresholds of all concepts are once one of special care is near.
_SPECIAL_CARE: Final = 0.01
_PREFIX: Final = "vision_model."
_LONGEST: Final = 8  #: times the short side


class SafetyChecker:
    """The checker, loaded once, in float32 on the CPU. One thread at a time."""

    def __init__(self, weights: Path, *, threads: int) -> None:
        """Load *weights*, a safetensors file with its configuration beside it.

        Raises:
            OutOfMemoryError: there is no memory for it.
            ModelUnavailableError: it is damaged or no such checker.
        """
        torch.set_num_threads(threads)
        folder = weights.parent
        try:
            tensors = {name: tensor.float() for name, tensor in load_file(weights).items()}
            config = CLIPConfig.from_pretrained(folder, local_files_only=True).vision_config
            with init_empty_weights(include_buffers=False):  # else its weights would stand in memory twice
                self._model = CLIPVisionModel(config)
            _fill(self._model, tensors)
            self._model.eval().requires_grad_(False)
            self._projection = tensors["visual_projection.weight"]
            self._concepts = tensors["concept_embeds"], tensors["concept_embeds_weights"]
            self._special = tensors["special_care_embeds"], tensors["special_care_embeds_weights"]
            self._input = _Input.read(folder / "preprocessor_config.json", config.image_size)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as exc:
            if comes_from_want_of_memory(exc):
                raise OutOfMemoryError(f"there is no memory left to load {weights}") from exc
            raise ModelUnavailableError(f"{weights} is no safety checker: {type(exc).__name__}: {exc}") from exc

    def score(self, rgb: NDArray[np.uint8]) -> float:
        """Return 1 if *rgb* is near a forbidden concept, else 0: the thresholds are the model's own.

        Args:
            rgb: ``[h, w, 3]`` of any size; a thumbnail of 512 px is enough.

        Raises:
            InvalidImageError: *rgb* is not such an array.
        """
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
            raise InvalidImageError(f"a picture to score must be uint8 [h, w, 3], got {rgb.dtype} {list(rgb.shape)}")
        return float(self.is_flagged(self._input.prepare(rgb)[None]))

    def is_flagged(self, pixels: torch.Tensor) -> bool:
        """Say whether ``[1, 3, side, side]``, prepared, is near a forbidden concept.

        Source: diffusers ``StableDiffusionSafetyChecker.forward``, its rounding included.
        """
        with torch.inference_mode():
            embedding = functional.linear(self._model(pixels).pooler_output, self._projection)
            lower = _SPECIAL_CARE if self._near(embedding, *self._special, lower=0.0) else 0.0
            return self._near(embedding, *self._concepts, lower=lower)

    @staticmethod
    def _near(embedding: torch.Tensor, concepts: torch.Tensor, thresholds: torch.Tensor, *, lower: float) -> bool:
        """Say whether *embedding* is nearer to one of *concepts* than its threshold, with that *lower*."""
        cosines = functional.normalize(embedding) @ functional.normalize(concepts).t()
        margins = zip(cosines[0].tolist(), thresholds.tolist(), strict=True)
        return any(round(cosine - threshold + lower, 3) > 0 for cosine, threshold in margins)


class _Input:
    """What the model wants to see of a picture: the middle square, its mean taken off."""

    def __init__(self, side: int, mean: list[float], deviation: list[float]) -> None:
        self._side = side
        self._mean = torch.tensor(mean)[:, None, None]
        self._deviation = torch.tensor(deviation)[:, None, None]

    @classmethod
    def read(cls, path: Path, side: int) -> "_Input":
        values: dict[str, Any] = read_json(path)
        return cls(side, values["image_mean"], values["image_std"])

    def prepare(self, rgb: NDArray[np.uint8]) -> torch.Tensor:
        """Return ``[3, side, side]``. Source: transformers ``CLIPImageProcessor``, whose resize is Pillow's bicubic."""
        rgb = _middle(_middle(rgb, 0), 1)
        height, width = rgb.shape[:2]
        scale = self._side / min(height, width)
        size = [self._side if edge == min(height, width) else int(edge * scale) for edge in (height, width)]
        planes = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].float()
        planes = functional.interpolate(planes, size=size, mode="bicubic", antialias=True, align_corners=False)
        top, left = ((edge - self._side) // 2 for edge in size)
        square = planes[0, :, top : top + self._side, left : left + self._side].round().clamp(0, 255) / 255
        return (square - self._mean) / self._deviation


def _middle(rgb: NDArray[np.uint8], axis: int) -> NDArray[np.uint8]:
    """Return the middle of a very long picture, all that is looked at: else its short side would take all memory."""
    length, most = rgb.shape[axis], _LONGEST * rgb.shape[1 - axis]
    start = (length - most) // 2
    return rgb if length <= most else rgb.take(range(start, start + most), axis)


def _fill(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Give *model* its weights, whatever prefix this and that version of transformers put before their names."""
    wanted = {_bare(name): name for name in model.state_dict()}
    given = {_bare(name): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    missing = sorted(wanted.keys() - given.keys())
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, the first is {missing[0]}")
    model.load_state_dict({name: given[bare] for bare, name in wanted.items()}, assign=True)


def _bare(name: str) -> str:
    while name.startswith(_PREFIX):
        name = name.removeprefix(_PREFIX)
    return name
