"""The seam to a place that keeps results."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A result that is still there."""

    path: Path
    bytes: int
    expires_in_s: float


class ResultStore(Protocol):
    """Keeps files for a while under names with 128 random bits in each half."""

    async def put(self, source: Path, *, suffix: str = ".png") -> str:
        """Move *source* in; return its key, ``<32 hex>/<32 hex><suffix>``.

        Raises: StorageFullError if it does not fit, even after the oldest results have left.
        """

    def find(self, group: str, name: str) -> StoredResult | None:
        """Return the result of key ``group/name``, None if there is none or it has expired."""

    async def sweep(self) -> int:
        """Remove what has expired; return how many results left."""
