"""Find the files of a ``StableDiffusionUpscalePipeline`` on this machine; nothing is downloaded and nothing unpickled.

Not here: loading them (``sd_x4_load``). Nothing heavy is imported, so that a role may ask what it could run.
"""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fourfold.errors import InvalidParameterError, ModelUnavailableError

PIPE_CLASS: Final = "StableDiffusionUpscalePipeline"
NEEDED_PACKAGES: Final = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "huggingface_hub")
PART_TO_STEM: Final[Mapping[str, str]] = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""The parts that have weights, and how their files' names begin."""

PLAIN_FILES: Final = (
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "low_res_scheduler/scheduler_config.json",
)
"""What is needed beside weights and tokenizer."""

TOKENIZER_FILES: Final = ("tokenizer/tokenizer.json", "tokenizer/vocab.json")
"""One of these is needed."""

_MAX_JSON_BYTES: Final = 2**24


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's folder in which every needed file is present."""

    path: Path
    index: Mapping[str, Any]  #: model_index.json
    part_to_variant: Mapping[str, str | None]  #: which of a part's weights to read: "fp16", or None for the plain ones


def missing_packages() -> tuple[str, ...]:
    """Return which packages of the [diffusion] extra are not installed."""
    return tuple(name for name in NEEDED_PACKAGES if importlib.util.find_spec(name) is None)


def locate_model(model_id: str, folders: Mapping[str, Path], *, prefers_half: bool = False) -> ModelFolder:
    """Return the checked folder of *model_id*: the one named for it, else the one in the hub's cache.

    Args: *prefers_half*, whether 16-bit weights are wanted where there are both.

    Raises: ModelUnavailableError if a package or a file is missing, or it is another kind of model.
    """
    missing = missing_packages()
    if missing:
        raise ModelUnavailableError(
            f"{model_id} needs {', '.join(missing)}, which is not installed; run: pip install 'fourfold[diffusion]'"
        )
    path = folders.get(model_id) or cached_snapshot(model_id)
    return check_folder(path, prefers_half=prefers_half)


def check_folder(path: Path, *, prefers_half: bool = False) -> ModelFolder:
    """Return *path* as a model's folder. Raises: ModelUnavailableError naming what is missing or wrong."""
    if not path.is_dir():
        raise ModelUnavailableError(f"the model's folder {path} does not exist")
    index = read_json(path / "model_index.json")
    if index.get("_class_name") != PIPE_CLASS:
        raise ModelUnavailableError(f"{path} holds a {index.get('_class_name')!r}, expected a {PIPE_CLASS}")
    for name in PLAIN_FILES:
        if not (path / name).is_file():
            raise ModelUnavailableError(f"{path / name} is missing")
        read_json(path / name)
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise ModelUnavailableError(f"{path / 'tokenizer'} holds neither tokenizer.json nor vocab.json")
    variants = ("fp16", None) if prefers_half else (None, "fp16")
    part_to_variant = {part: _variant(path / part, stem, variants) for part, stem in PART_TO_STEM.items()}
    return ModelFolder(path, index, part_to_variant)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a small JSON file. Raises: ModelUnavailableError if there is none."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelUnavailableError(f"{path} is too large for a configuration")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ModelUnavailableError(f"{path} cannot be read: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise ModelUnavailableError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ModelUnavailableError(f"{path} must hold a JSON object")
    return value


def _variant(folder: Path, stem: str, variants: tuple[str | None, ...]) -> str | None:
    """Return the first of *variants* whose weights are there, all shards of them."""
    for variant in variants:
        infix = f".{variant}" if variant else ""
        if (folder / f"{stem}{infix}.safetensors").is_file():
            return variant
        index = folder / f"{stem}.safetensors.index{infix}.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(_is_file_name(name) for name in weight_map.values()):
                raise ModelUnavailableError(f"{index} must map weights to files beside it; pull or copy it anew")
            shards = set(weight_map.values())
            absent = sorted(name for name in shards if not (folder / name).is_file())
            if absent or not shards:
                raise ModelUnavailableError(f"{folder} lacks {', '.join(absent) or 'every shard'} of {index.name}")
            return variant
    if any(folder.glob("*.bin")) or any(folder.glob("*.ckpt")):
        raise ModelUnavailableError(
            f"{folder} has pickled weights only, which may run code; {stem}.safetensors is needed"
        )
    raise ModelUnavailableError(f"{folder / stem}.safetensors is missing")


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name == Path(name).name


def cached_snapshot(model_id: str) -> Path:
    """Return the model's folder in the hub's cache: the pulled commit, else what the main branch was last known to be.

    Raises: ModelUnavailableError if it is not there.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from fourfold.engine.hub_pins import read_pin

    try:
        pin = read_pin(model_id)
        return pin.folder if pin else Path(huggingface_hub.snapshot_download(model_id, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, InvalidParameterError, OSError) as exc:
        raise ModelUnavailableError(
            f"the files of {model_id} are not on this machine; fetch them with: fourfold models pull {model_id}, "
            f"or name their folder: [worker] model_paths = {{ {model_id!r} = '/folder' }}"
        ) from exc
