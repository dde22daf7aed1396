"""Find a model's weight files inside the installed data packages, and refuse any whose content is not the pinned one.

The packages carry data only; they are located through their metadata and never imported.
"""

import hashlib
from importlib import metadata
from pathlib import Path

from fourfold.engine.base import WeightFile
from fourfold.errors import ModelUnavailableError


def read_weights(file: WeightFile) -> bytes:
    """Return the bytes of *file*, whose SHA-256 is the pinned one.

    Raises:
        ModelUnavailableError: the distribution is not installed, lacks the file, or carries other bytes under its name.
    """
    path = locate(file)
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ModelUnavailableError(f"{file.name} of {file.distribution} cannot be read: {exc.strerror}") from exc
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise ModelUnavailableError(
            f"{file.name} of {file.distribution} has sha256 {found}, expected {file.sha256}: it is damaged or another "
            f"version; reinstall the pinned {file.distribution}"
        )
    return content


def locate(file: WeightFile) -> Path:
    """Return where the installed distribution keeps *file*; the content is not checked here."""
    try:
        listed = metadata.files(file.distribution) or []
    except metadata.PackageNotFoundError as exc:
        raise ModelUnavailableError(f"{file.distribution} is not installed: it carries {file.name}") from exc
    for entry in listed:
        if entry.name == file.name:
            return Path(str(entry.locate()))
    raise ModelUnavailableError(f"the installed {file.distribution} does not carry {file.name}")
