"""Which models' licences the user of this machine has accepted; each is asked about once."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fourfold.errors import StorageFullError

_NAME: Final = "licences.json"


@dataclass(frozen=True, slots=True)
class Acceptances:
    """A file in the data folder: model_id -> the licence as its card named it. Another licence is another question."""

    data_dir: Path

    def has(self, model_id: str, licence: str) -> bool:
        """Say whether the model was accepted under this licence."""
        return self._read().get(model_id) == licence

    def add(self, model_id: str, licence: str) -> None:
        """Remember that it was. Raises: StorageFullError if that cannot be written."""
        path = self.data_dir / _NAME
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".tmp")
            fresh.write_text(json.dumps(self._read() | {model_id: licence}, indent=2), encoding="utf-8")
            fresh.replace(path)
        except OSError as exc:
            raise StorageFullError(f"cannot write {path}: {exc.strerror}; choose another folder: data_dir") from exc

    def _read(self) -> dict[str, str]:
        """Return what was accepted; an unreadable file is as good as none, and the user is asked again."""
        try:
            value = json.loads((self.data_dir / _NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}
