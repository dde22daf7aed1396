"""Where finished pictures wait for whoever knows their unguessable name."""

from fourfold.results.base import ResultStore, StoredResult
from fourfold.results.filesystem import FilesystemStore

__all__ = ["FilesystemStore", "ResultStore", "StoredResult"]
