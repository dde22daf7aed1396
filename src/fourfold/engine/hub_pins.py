"""Which revision of a model is in force: a file in its folder of the hub's cache, written once all of it is there.

The loader goes by it, so that what runs is what was pulled, whatever else the cache holds. Needs huggingface-hub.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from fourfold.errors import InvalidParameterError, ModelUnavailableError

_PIN: Final = "fourfold.json"
_CHUNK_BYTES: Final = 2**20

Condition = Enum("Condition", {"GOOD": "good", "MISSING": "missing", "DAMAGED": "damaged"})


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """One file as it was pulled."""

    name: str  #: its path in the snapshot, with ``/``
    size: int  #: bytes
    sha256: str  #: lower-case hex


@dataclass(frozen=True, slots=True)
class Pin:
    """A pulled model: exactly these files of exactly this commit."""

    model_id: str
    revision: str  #: what was asked for: a branch, a tag or a commit
    commit: str
    licence: str  #: as the model's card names it
    files: tuple[PinnedFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return repository_folder(self.model_id) / "snapshots" / self.commit


def cache_folder() -> Path:
    """Return the hub's cache, as its library finds it: HF_HUB_CACHE, HF_HOME, the user's own."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repository_folder(model_id: str) -> Path:
    """Return where the cache keeps *model_id*. Raises: InvalidParameterError if it is no hub id."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(model_id)
    except HFValidationError as exc:
        raise InvalidParameterError(f"expected a model's id as in stabilityai/name, got {model_id[:200]!r}") from exc
    return cache_folder() / str(repo_folder_name(repo_id=model_id, repo_type="model"))


def read_pin(model_id: str) -> Pin | None:
    """Return the pin of *model_id*, None where it was never pulled.

    Raises: InvalidParameterError if *model_id* is no hub id; ModelUnavailableError if the pin is damaged.
    """
    return _read(repository_folder(model_id) / _PIN)


def pins() -> Iterator[Pin]:
    """Yield every pulled model, by id; damaged pins are left out."""
    for path in sorted(cache_folder().glob(f"models--*/{_PIN}")):
        try:
            pin = _read(path)
        except ModelUnavailableError:
            continue
        if pin is not None:
            yield pin


def write_pin(pin: Pin) -> None:
    """Put *pin* in force, whole or not at all."""
    path = repository_folder(pin.model_id) / _PIN
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_text(json.dumps(asdict(pin), indent=2), encoding="utf-8")
    fresh.replace(path)


def condition(pin: Pin, file: PinnedFile) -> Condition:
    """Say whether *file* is what was pulled, byte by byte."""
    path = pin.folder / file.name
    try:
        if path.stat().st_size != file.size:
            return Condition.DAMAGED
        return Condition.GOOD if sha256_of(path) == file.sha256 else Condition.DAMAGED
    except FileNotFoundError:
        return Condition.MISSING
    except OSError:
        return Condition.DAMAGED


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    return _digest(path, hashlib.sha256())


def git_oid_of(path: Path) -> str:
    """Return the name that git has for the file's content."""
    return _digest(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))


def _digest(path: Path, state: Any) -> str:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            state.update(chunk)
    return str(state.hexdigest())


def _read(path: Path) -> Pin | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        files = tuple(PinnedFile(**file) for file in values.pop("files"))
        return Pin(**values, files=files)
    except (FileNotFoundError, NotADirectoryError):  # the latter where a file stands in the cache's place
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        raise ModelUnavailableError(
            f"{path} cannot be read: {type(exc).__name__}; remove it and pull the model again"
        ) from exc
