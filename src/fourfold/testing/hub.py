"""A hub on loopback: what downloads use of the Hugging Face hub's HTTP API, over folders, with faults on demand.

As on the real one, large files are redirected to a store that goes by another host name, and answer Range requests.
"""

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LARGE = ".safetensors"


@dataclass
class Repository:
    """One model: a folder, and what goes wrong with it."""

    folder: Path
    licence: str | None = "openrail++"
    commit: str = "0" * 40
    gated: bool = False  #: its files are refused to who has not accepted its terms
    names: Mapping[str, bytes] = field(default_factory=dict)  #: further files, by name
    gone: set[str] = field(default_factory=set)  #: listed, and not there
    cut: dict[str, int] = field(default_factory=dict)  #: name -> bytes after which the connection drops, then 503
    damaged: dict[str, int] = field(default_factory=dict)  #: name -> how often its first byte comes wrong
    short: dict[str, int] = field(default_factory=dict)  #: name -> bytes that come in all, as if that were the file
    held: dict[str, int] = field(
        default_factory=dict
    )  #: name -> bytes after which nothing more comes, until it is let go
    ignores_ranges: bool = False  #: sends files whole, whatever part was asked for
    etag: str | None = None  #: of every large file, instead of its content's
    refusal: HTTPStatus | None = None  #: of every question about the model
    page: bytes | None = None  #: what comes instead of a description

    def files(self) -> dict[str, bytes]:
        """Return every file's content by its name."""
        paths = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths} | dict(self.names)


@dataclass
class Hub:
    """A running hub."""

    repositories: dict[str, Repository]
    port: int = 0
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  #: method, path, headers of requests
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://localhost:{self.port}"

    def let_go(self) -> None:
        """Send the rest of what is held."""
        self.released.set()

    def ranges(self) -> list[str]:
        """Return the Range headers of all requests for content."""
        return [headers["range"] for method, _, headers in self.asked if method == "GET" and "range" in headers]


@contextmanager
def serving_hub(**repositories: Repository) -> Iterator[Hub]:
    """Run a hub with *repositories*, in whose names ``__`` stands for ``/``."""
    hub = Hub({name.replace("__", "/"): repository for name, repository in repositories.items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="hub")
    thread.start()
    try:
        yield hub
    finally:
        hub.let_go()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self._answer()

    def do_GET(self) -> None:
        """Answer."""
        self._answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        self.hub.asked.append((self.command, self.path, {key.lower(): value for key, value in self.headers.items()}))
        parts = [urllib.parse.unquote(part) for part in urllib.parse.urlsplit(self.path).path.strip("/").split("/")]
        match parts:
            case ["api", "models", owner, name, *rest]:
                self._describe(f"{owner}/{name}", rest)
            case ["store", owner, name, digest]:
                self._content(f"{owner}/{name}", digest)
            case [owner, name, "resolve", revision, *path]:
                self._resolve(f"{owner}/{name}", revision, "/".join(path))
            case _:
                self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")

    def _repository(self, model_id: str, revision: str) -> Repository | None:
        """Return what is meant, or answer that it is not there: of unknown models with 401, as the hub does."""
        repository = self.hub.repositories.get(model_id)
        if repository is None:
            self._refuse(HTTPStatus.UNAUTHORIZED, "RepoNotFound")
        elif revision not in ("main", repository.commit):
            self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        else:
            return repository
        return None

    def _describe(self, model_id: str, rest: list[str]) -> None:
        what, revision = (rest[0], rest[1]) if len(rest) == 2 else ("revision", "main")
        repository = self._repository(model_id, revision)
        if repository is None:
            return
        if repository.refusal is not None:
            self._refuse(repository.refusal, "")
            return
        if repository.page is not None:
            self._send(HTTPStatus.OK, repository.page, {"Content-Type": "text/html"})
            return
        files = repository.files()
        large = {
            name: {"sha256": _sha256(body), "oid": _sha256(body), "size": len(body), "pointerSize": 134}
            for name, body in files.items()
            if name.endswith(LARGE)
        }
        if what == "tree":
            rows = [
                {"type": "file", "path": name, "size": len(body), "oid": _git_oid(body)}
                | ({"lfs": large[name]} if name in large else {})
                for name, body in files.items()
            ]
            self._json(rows)
            return
        siblings = [
            {"rfilename": name, "size": len(body), "blobId": _git_oid(body)}
            | ({"lfs": large[name]} if name in large else {})
            for name, body in files.items()
        ]
        card = {} if repository.licence is None else {"cardData": {"license": repository.licence}}
        self._json(
            {
                "_id": "0",
                "id": model_id,
                "modelId": model_id,
                "sha": repository.commit,
                "siblings": siblings,
                "private": False,
                "gated": "auto" if repository.gated else False,
                "tags": [],
                "downloads": 0,
                **card,
            }
        )

    def _resolve(self, model_id: str, revision: str, name: str) -> None:
        repository = self._repository(model_id, revision)
        if repository is None:
            return
        if repository.gated:
            self._refuse(HTTPStatus.FORBIDDEN, "GatedRepo")
            return
        body = repository.files().get(name)
        if body is None or name in repository.gone:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", commit=repository.commit)
            return
        facts = {"X-Repo-Commit": repository.commit}
        if name.endswith(LARGE):
            digest = _sha256(body)
            facts |= {"X-Linked-Etag": f'"{repository.etag or digest}"', "X-Linked-Size": str(len(body))}
            facts |= {"Location": f"http://127.0.0.1:{self.hub.port}/store/{model_id}/{digest}"}
            self._send(HTTPStatus.FOUND, b"", facts)
        else:
            self._send(HTTPStatus.OK, body, facts | {"ETag": f'"{_git_oid(body)}"'})

    def _content(self, model_id: str, digest: str) -> None:
        """Answer with a large file or the end of it."""
        repository = self.hub.repositories[model_id]
        name, body = next((n, b) for n, b in repository.files().items() if _sha256(b) == digest)
        after = repository.cut.get(name)
        if after is not None and after < 0:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "Unavailable")
            return
        if repository.damaged.get(name, 0) > 0:
            repository.damaged[name] -= 1
            body = bytes([body[0] ^ 1]) + body[1:]
        body = body[: repository.short.get(name)]
        is_part = "Range" in self.headers and not repository.ignores_ranges
        begin = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0]) if is_part else 0
        status = HTTPStatus.PARTIAL_CONTENT if is_part else HTTPStatus.OK
        facts = {"ETag": f'"{digest}"'}
        facts |= {"Content-Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"} if is_part else {}
        if name in repository.held:
            self._send(status, body[begin:], facts, hold_after=repository.held[name])
            return
        if after is None:
            self._send(status, body[begin:], facts)
            return
        repository.cut[name] = -1
        self._send(status, body[begin:], facts, stop_after=after)

    def _json(self, value: object) -> None:
        self._send(HTTPStatus.OK, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: HTTPStatus, code: str, *, commit: str | None = None) -> None:
        facts = {"X-Error-Code": code, "X-Error-Message": code} | ({"X-Repo-Commit": commit} if commit else {})
        self._send(status, b"{}", facts)

    def _send(
        self,
        status: HTTPStatus,
        body: bytes,
        facts: Mapping[str, Any],
        *,
        stop_after: int | None = None,
        hold_after: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {**facts, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):  # who was kept waiting may have left
            if hold_after is not None:
                self.wfile.write(body[:hold_after])
                self.hub.released.wait()
                body = body[hold_after:]
            if self.command != "HEAD":
                self.wfile.write(body if stop_after is None else body[:stop_after])
        if stop_after is not None:
            self.close_connection = True


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _git_oid(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
