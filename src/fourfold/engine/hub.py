"""Fetch models from a Hugging Face hub into its cache, pin them, remove them: a thin face over huggingface_hub.

Its client, endpoint, tokens, progress and cache are used as they are. Two things are done here because it does not do
them (as of 2.4): a download that a dying process left goes on where it stopped; content is checked before it counts.
Nothing here runs when a model is loaded.
"""

import errno
import importlib.util
import json
import re
import shutil
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fourfold.engine.hub_pins import (
    Pin,
    PinnedFile,
    cache_folder,
    git_oid_of,
    read_pin,
    repository_folder,
    sha256_of,
    write_pin,
)
from fourfold.engine.hub_plan import INDEX, RemoteFile, needed_files
from fourfold.engine.sd_x4_files import PIPE_CLASS, check_folder, read_json
from fourfold.errors import (
    ConfigError,
    ModelUnavailableError,
    NotFoundError,
    StorageFullError,
    UnreachableError,
)
from fourfold.processes.lock import FolderLock

_MAIN: Final = "main"
_SLACK_BYTES: Final = 2**26  #: left free on the disk
_REFUSALS: Final = (401, 403, 451)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}\Z")
_ETAG: Final = re.compile(r"[0-9A-Za-z]{1,128}\Z")


@dataclass(frozen=True, slots=True)
class Listing:
    """What a pull would fetch."""

    model_id: str
    revision: str  #: what was asked for
    commit: str  #: what that is now
    licence: str
    page: str  #: where people read about the model and its licence
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def require_library() -> None:
    """Raise ModelUnavailableError unless huggingface-hub is installed."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ModelUnavailableError(
            "huggingface-hub is not installed, which fetches models; run: pip install 'fourfold[diffusion]'"
        )


def look_up(model_id: str, *, revision: str | None = None) -> Listing:
    """Ask the hub what *model_id* is; nothing is fetched.

    Args: *revision*, a branch, tag or commit; without it the pinned commit, so that a damaged model is mended and not
        exchanged, and for a new model the main branch.

    Raises:
        InvalidParameterError: *model_id* is no hub id.
        ConfigError: HF_ENDPOINT is no URL.
        UnreachableError: the hub does not answer, answers something else, or we are told to stay offline.
        ModelUnavailableError: there is no such model or revision, it is gated, or it is nothing that runs here.
    """
    require_library()
    from huggingface_hub import HfApi

    with _translated(model_id, revision):
        repository_folder(model_id)  # an id that is none is refused before anybody is asked
        pin = read_pin(model_id) if revision is None else None
        asked = revision or (pin.revision if pin else _MAIN)
        api = HfApi()
        _check_endpoint(api.endpoint)
        try:
            found = api.model_info(model_id, revision=pin.commit if pin else asked, files_metadata=True)
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as exc:
            raise UnreachableError(
                f"{api.endpoint} answers something else than a hub does; look at HF_ENDPOINT, or log in to the network"
            ) from exc
        if not _COMMIT.match(str(found.sha)):
            raise UnreachableError(f"{api.endpoint} names no commit of {model_id}, but {str(found.sha)[:80]!r}")
        files = [
            RemoteFile(
                file.rfilename,
                file.lfs.size if file.lfs else file.size or 0,
                file.lfs.sha256 if file.lfs else None,
                file.blob_id,
            )
            for file in found.siblings or []
        ]
        return Listing(
            model_id,
            asked,
            found.sha,
            _licence(found),
            f"{api.endpoint}/{model_id}",
            needed_files(model_id, files),
        )


def pull(listing: Listing) -> Pin:
    """Fetch what is missing or damaged of *listing*, and pin it.

    Raises:
        StorageFullError: the disk has no room for it; checked before anything is fetched.
        UnreachableError: the hub went away; the next pull goes on where this one stopped.
        ModelUnavailableError: a file is gone, comes damaged twice, or the model is of another kind.
        ConfigError: another process pulls the same model.
    """
    folder = repository_folder(listing.model_id)
    with _translated(listing.model_id, listing.revision), _locked(folder):
        missing = [file for file in listing.files if not _is_here(listing, file)]
        _check_space(listing.model_id, folder, missing)
        for file in missing:
            _fetch(listing, file)
            if file.name == INDEX:
                _check_kind(listing, _path(listing, file))
        snapshot = folder / "snapshots" / listing.commit
        if (snapshot / INDEX).is_file():
            check_folder(snapshot, prefers_half=True)
        pinned = [PinnedFile(f.name, f.size, f.sha256 or sha256_of(_path(listing, f))) for f in listing.files]
        pin = Pin(listing.model_id, listing.revision, listing.commit, listing.licence, tuple(pinned))
        write_pin(pin)
        return pin


def remove(model_id: str) -> int:
    """Delete *model_id* from the cache, every revision of it; return how many bytes that freed.

    Raises: NotFoundError if it is not there; InvalidParameterError if it is no hub id.
    """
    require_library()
    from huggingface_hub import scan_cache_dir

    with _translated(model_id, None):
        folder = repository_folder(model_id)
        if not folder.is_dir():
            raise NotFoundError(f"{model_id} is not in the hub's cache, {cache_folder()}")
        with _locked(folder):  # not under the feet of a pull
            freed = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
            # The library first: content may be shared between models, and it alone knows.
            for repository in scan_cache_dir(cache_folder()).repos:
                if repository.repo_type == "model" and repository.repo_id == model_id:
                    commits = [revision.commit_hash for revision in repository.revisions]
                    scan_cache_dir(cache_folder()).delete_revisions(*commits).execute()
        shutil.rmtree(folder, ignore_errors=True)  # unfinished downloads
        shutil.rmtree(cache_folder() / ".locks" / folder.name, ignore_errors=True)
        return freed


def _check_endpoint(endpoint: str) -> None:
    """Raise ConfigError unless *endpoint* is the URL of a server."""
    try:
        parts = urllib.parse.urlsplit(endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigError(f"HF_ENDPOINT must be a hub's URL, http(s)://host[:port], got {endpoint!r}")


def _licence(found: Any) -> str:
    """Return how the model's card names its licence; a name of the author's own before "other"."""
    card = found.card_data
    name = getattr(card, "license_name", None) or getattr(card, "license", None)
    return str(name) if name else "unknown"


def _path(listing: Listing, file: RemoteFile) -> Path:
    return repository_folder(listing.model_id) / "snapshots" / listing.commit / file.name


def _is_here(listing: Listing, file: RemoteFile) -> bool:
    """Say whether *file* is in the cache as it should be; delete it where it is damaged."""
    path = _path(listing, file)
    if not path.exists():
        path.unlink(missing_ok=True)  # a link to nothing
        return False
    if _is_intact(path, file):
        return True
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    return False


def _is_intact(path: Path, file: RemoteFile) -> bool:
    if path.stat().st_size != file.size:
        return False
    if file.sha256 is not None:
        return sha256_of(path) == file.sha256
    return file.git_oid is None or git_oid_of(path) == file.git_oid


def _locked(folder: Path) -> FolderLock:
    return FolderLock(folder, name="hub's cache", advice="it pulls or removes the same model; wait until it has ended")


def _check_space(model_id: str, folder: Path, missing: list[RemoteFile]) -> None:
    needed = sum(max(0, file.size - _bytes_there(folder, file)) for file in missing)
    free = shutil.disk_usage(cache_folder()).free
    if missing and needed + _SLACK_BYTES > free:
        raise StorageFullError(
            f"{model_id} needs {needed / 1e9:.2f} GB more, {cache_folder()} has {free / 1e9:.2f} GB free; make room, "
            "or name another folder: HF_HOME=/folder"
        )


def _bytes_there(folder: Path, file: RemoteFile) -> int:
    """Return how much of *file* an earlier try left; a blob goes by its content's name."""
    try:
        return (folder / "blobs" / f"{file.sha256 or file.git_oid}.incomplete").stat().st_size
    except OSError:
        return 0


def _check_kind(listing: Listing, index: Path) -> None:
    kind = read_json(index).get("_class_name")
    if kind != PIPE_CLASS:
        raise ModelUnavailableError(
            f"{listing.model_id} is a {kind}, expected a {PIPE_CLASS}; nothing more was fetched"
        )


def _fetch(listing: Listing, file: RemoteFile) -> None:
    """Bring *file* into the cache, going on with what an earlier try left of it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    url = hf_hub_url(listing.model_id, file.name, revision=listing.commit)
    remote = get_hf_file_metadata(url)
    if not _ETAG.match(str(remote.etag)):  # it becomes a file's name
        raise UnreachableError(f"the hub names the content of {file.name} {str(remote.etag)[:80]!r}; expected a hash")
    blob = repository_folder(listing.model_id) / "blobs" / str(remote.etag)
    if blob.exists() and not _is_intact(blob, file):
        blob.unlink()
    if not blob.exists():
        blob.parent.mkdir(parents=True, exist_ok=True)
        partial = blob.with_name(f"{blob.name}.incomplete")
        resumed = _download(url, remote.location, partial, file)
        if not _is_intact(partial, file) and resumed:  # the old half may be what is wrong: once more from the start
            partial.unlink()
            _download(url, remote.location, partial, file)
        if not _is_intact(partial, file):
            partial.unlink()
            raise ModelUnavailableError(
                f"{file.name} of {listing.model_id} came with other content than the hub lists; try again later"
            )
        partial.rename(blob)
    # It finds the content there, and links it into the snapshot.
    hf_hub_download(listing.model_id, file.name, revision=listing.commit, cache_dir=cache_folder())


def _download(url: str, location: str, partial: Path, file: RemoteFile) -> bool:
    """Append to *partial* what it lacks of *file*; say whether something was there before."""
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = dict(build_hf_headers())
    if urllib.parse.urlsplit(location).netloc != urllib.parse.urlsplit(url).netloc:
        headers.pop("authorization", None)  # the store of large files must not see the hub's token
    if partial.exists() and partial.stat().st_size > file.size:
        partial.unlink()
    with partial.open("ab") as stream:
        there = stream.tell()
        if there < file.size:
            try:
                http_get(
                    location,
                    stream,
                    resume_size=there,
                    headers=headers,
                    expected_size=file.size,
                    displayed_filename=file.name,
                )
            except OSError as exc:
                if exc.errno is not None or isinstance(exc, HTTPError):
                    raise
                raise UnreachableError(  # the library's word for another number of bytes
                    f"{file.name} came with another size than the {file.size} bytes that the hub lists; run the "
                    "command again"
                ) from exc
    return there > 0


@contextmanager
def _translated(model_id: str, revision: str | None) -> Iterator[None]:
    """Tell the library's failures in our words."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    try:
        yield
    except errors.OfflineModeIsEnabled as exc:
        raise UnreachableError(
            f"{model_id} cannot be asked for: HF_HUB_OFFLINE is set, which forbids it; unset it and try again"
        ) from exc
    except errors.GatedRepoError as exc:
        raise ModelUnavailableError(
            f"{model_id} is gated: accept its terms at {hub}/{model_id}, then log in with: hf auth login"
        ) from exc
    except errors.RepositoryNotFoundError as exc:
        raise ModelUnavailableError(
            f"{hub} has no model {model_id}, or it is private; look at the spelling, or log in with: hf auth login"
        ) from exc
    except errors.RevisionNotFoundError as exc:
        raise ModelUnavailableError(
            f"{model_id} has no revision {revision!r}; {hub}/{model_id}/tree/main lists them"
        ) from exc
    except errors.EntryNotFoundError as exc:
        raise ModelUnavailableError(f"a file of {model_id} is listed by {hub} and not there; try again later") from exc
    except errors.HfHubHTTPError as exc:
        if exc.response.status_code in _REFUSALS:
            raise ModelUnavailableError(
                f"{hub} refuses {model_id} ({exc.response.status_code}): log in with an account that may have it: "
                "hf auth login; HF_TOKEN, where it is set, comes before that"
            ) from exc
        raise UnreachableError(
            f"{hub} answered {exc.response.status_code} for {model_id}; run the command again, it goes on from there"
        ) from exc
    except errors.HTTPError as exc:
        raise UnreachableError(
            f"{hub} does not answer ({type(exc).__name__}); run the command again, it goes on from there"
        ) from exc
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            raise StorageFullError(f"no room is left in {cache_folder()}; make some, and run the same command") from exc
        raise ModelUnavailableError(f"{model_id} could not be stored in {cache_folder()}: {exc}") from exc
