"""Livepeer's answer to a job: JSON with a data URL, or with the address where the orchestrator keeps the picture."""

import asyncio
import json
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fourfold.errors import BadResultError, StorageFullError, UnreachableError
from fourfold.gateway.orchestrator_url import OrchestratorUrl
from fourfold.gateway.transfer import client, save, translated
from fourfold.protocol.wire import decode_data_url, is_seed

#: Livepeer's own limit for a result is 300 MB; base64 adds a third.
JSON_BYTES: Final = 400 * 10**6
_HTTPS_PORT: Final = 443
_UNSPECIFIED: Final = frozenset({"0.0.0.0", "::"})


@dataclass(frozen=True, slots=True)
class ImageAnswer:
    """The one image of an ``ImageResponse``."""

    seed: int
    nsfw: bool
    url: str | None  #: where the picture is; None if it came along and lies in the target file


async def read_answer(json_file: Path, target: Path, *, peer: str) -> ImageAnswer:
    """Read an ``ImageResponse`` from *json_file*; write the picture to *target* where it came along.

    Raises: BadResultError if it is no such answer. StorageFullError if *target* cannot be written.
    """
    return await asyncio.to_thread(_read_answer, json_file, target, peer)


def _read_answer(json_file: Path, target: Path, peer: str) -> ImageAnswer:
    try:
        image = json.loads(json_file.read_bytes())["images"][0]
        url, seed, nsfw = image["url"], image["seed"], image["nsfw"]
        if not (isinstance(url, str) and is_seed(seed) and isinstance(nsfw, bool)):
            raise TypeError("expected a string, a seed and a boolean")
        picture = decode_data_url(url)
    except (ValueError, LookupError, TypeError, RecursionError) as exc:
        raise BadResultError(f"{peer} answered with no ImageResponse: {type(exc).__name__}") from exc
    if picture is not None:
        try:
            target.write_bytes(picture)
        except OSError as exc:
            raise StorageFullError(f"the result cannot be kept: {exc.strerror}; try again later") from exc
    return ImageAnswer(seed, nsfw, None if picture is not None else url)


async def fetch_image(
    url: str,
    target: Path,
    *,
    orchestrator: OrchestratorUrl,
    tls: ssl.SSLContext,
    other_hosts: Collection[str],
    max_bytes: int,
    connect_s: float,
) -> None:
    """Download *url*, which *orchestrator* named, to *target*.

    Only from the orchestrator itself, with its pinned certificate *tls*, or from one of *other_hosts* (``host[:port]``)
    with a certificate of a public authority: else whoever sells pixels could have the gateway read its inner network.

    Raises: BadResultError, UnreachableError, StorageFullError.
    """
    host, port, location = _locate(url, orchestrator)
    if (host, port) != (orchestrator.host, orchestrator.port):
        names = {f"{host}:{port}"} | ({host} if port == _HTTPS_PORT else set())
        if names.isdisjoint(other_hosts):
            raise BadResultError(
                f"{orchestrator} keeps its result at {host}:{port}; allow that by gateway.result_hosts or leave it"
            )
        tls = ssl.create_default_context()
    peer = f"{host}:{port}"
    with translated(peer):
        async with client(tls, connect_s=connect_s) as http, http.stream("GET", location) as response:
            if response.status_code != 200:
                raise UnreachableError(f"{peer} answered {response.status_code} for the result it announced")
            await save(response, target, peer=peer, max_bytes=max_bytes)


def _locate(url: str, orchestrator: OrchestratorUrl) -> tuple[str, int, str]:
    """Return host, port and address of a result; a relative one, or one on "any address", is on *orchestrator*."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _HTTPS_PORT
    except ValueError as exc:
        raise BadResultError(f"{orchestrator} names no address for its result: {exc}") from exc
    query = f"?{parts.query}" if parts.query else ""
    if not parts.scheme and not parts.netloc and parts.path.startswith("/"):
        return orchestrator.host, orchestrator.port, f"https://{orchestrator.authority}{parts.path}{query}"
    if parts.scheme != "https" or not host or parts.username:
        raise BadResultError(f"{orchestrator} names no https address for its result")
    if host in _UNSPECIFIED:
        host = orchestrator.host
    return host, port, f"https://{OrchestratorUrl(host, port).authority}{parts.path}{query}"
