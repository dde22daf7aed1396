"""Which files of a model on a hub are worth having. Pure: a listing in, a choice out.

Of the weights one copy, in 16 bits where there is one, and only as safetensors: a pickle may run code.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from fourfold.engine.sd_x4_files import PART_TO_STEM, PLAIN_FILES, TOKENIZER_FILES
from fourfold.errors import ModelUnavailableError

INDEX: Final = "model_index.json"
_CHECKER_FILES: Final = ("config.json", "preprocessor_config.json")
_TOKENIZER: Final = (*TOKENIZER_FILES, "tokenizer/merges.txt", "tokenizer/tokenizer_config.json")
_TOKENIZER_TOO: Final = ("tokenizer/special_tokens_map.json",)
_LICENCE: Final = re.compile(r"licen[cs]e(\.(md|txt))?\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository, as the hub lists it."""

    name: str  #: its path in the repository, with ``/``
    size: int  #: bytes
    sha256: str | None  #: of large files
    git_oid: str | None  #: SHA-1 of a small file as a git blob


def needed_files(model_id: str, listed: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Return what is needed of a repository with a pipeline or a safety checker in it, what says what it is first.

    Raises: ModelUnavailableError if it is neither, or something is missing.
    """
    files = {file.name: file for file in listed if _is_plain(file.name)}
    if INDEX in files:
        names = [INDEX, *_required(model_id, files, PLAIN_FILES)]
        if not any(name in files for name in TOKENIZER_FILES):
            raise ModelUnavailableError(f"{model_id} holds none of {', '.join(TOKENIZER_FILES)}")
        names += [name for name in (*_TOKENIZER, *_TOKENIZER_TOO) if name in files]
        for part, stem in PART_TO_STEM.items():
            names += _weights(model_id, files, f"{part}/{stem}")
    elif "preprocessor_config.json" in files:
        names = [*_required(model_id, files, _CHECKER_FILES), *_weights(model_id, files, "model")]
    else:
        raise ModelUnavailableError(
            f"{model_id} is no model that runs here: it holds neither {INDEX}, as a StableDiffusionUpscalePipeline "
            "does, nor preprocessor_config.json, as a safety checker does"
        )
    names += [name for name in files if _LICENCE.match(name)]
    return tuple(files[name] for name in names)


def _required(model_id: str, files: Mapping[str, RemoteFile], names: Iterable[str]) -> list[str]:
    missing = [name for name in names if name not in files]
    if missing:
        raise ModelUnavailableError(f"{model_id} lacks {', '.join(missing)}")
    return list(names)


def _weights(model_id: str, files: Mapping[str, RemoteFile], stem: str) -> list[str]:
    """Return the weights at *stem*: one file, or an index and its shards."""
    for infix in (".fp16", ""):
        if f"{stem}{infix}.safetensors" in files:
            return [f"{stem}{infix}.safetensors"]
        index = f"{stem}.safetensors.index{infix}.json"
        # diffusers has written the variant before and after the shard's number.
        shard = re.compile(
            rf"{re.escape(stem)}({re.escape(infix)}-\d+-of-\d+|-\d+-of-\d+{re.escape(infix)})\.safetensors"
        )
        shards = [name for name in files if shard.fullmatch(name)]
        if index in files and shards:
            return [index, *sorted(shards)]
    raise ModelUnavailableError(
        f"{model_id} has no {stem}.safetensors; pickled weights, which may run code when they are read, are not fetched"
    )


def _is_plain(name: str) -> bool:
    """Say whether *name* stays inside the folder that it is put into."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name
