"""What a worker answers, read and checked: our raw PNG, Livepeer's JSON with a data URL, and their failures."""

import asyncio
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fourfold.errors import (
    BadResultError,
    Blame,
    ClientError,
    FourfoldError,
    ModelUnavailableError,
    StorageFullError,
    UnknownModelError,
    WorkerFailedError,
    error_for,
)
from fourfold.protocol import wire
from fourfold.protocol.livepeer_errors import error_from_runner, images_from_runner

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_CHUNK_OVERHEAD: Final = 12  #: length, type and checksum of a PNG chunk
_SAFETY: Final = frozenset({wire.SAFETY_CLEAN, wire.SAFETY_FLAGGED, wire.SAFETY_NOT_CHECKED})
#: What a worker may blame on the client, besides wrong pictures and parameters.
_NOT_THE_CLIENTS: Final = frozenset({"unauthorized", "not_found", "cancelled", "invalid_request"})


@dataclass(frozen=True, slots=True)
class WorkResult:
    """A finished picture."""

    path: Path
    seed: int
    nsfw: bool
    safety: str  #: clean | flagged | not-checked
    model_id: str  #: what ran
    bytes: int
    by_ours: bool  #: the answer had our form, so a worker of ours gave it
    run: wire.RunFacts = field(default_factory=wire.RunFacts)  #: how it was computed, where the worker says so


def read_failure(status: int, headers: Mapping[str, str], body: bytes) -> FourfoldError:
    """Return the error a worker's answer stands for: by its code if it is ours, else by Livepeer's words."""
    code = headers.get(wire.ERROR_HEADER)
    if code is None:
        return error_from_runner(status, body)
    message = _message(body)
    error = error_for(code, message)
    if code == UnknownModelError.code:
        return ModelUnavailableError(f"the worker does not serve this model: {message}")
    if (isinstance(error, ClientError) and code in _NOT_THE_CLIENTS) or error.blame is Blame.GATEWAY:
        return WorkerFailedError(f"the worker failed ({code}): {message}")
    return error


def read_headers(headers: Mapping[str, str], fields: wire.UpscaleFields, path: Path) -> WorkResult:
    """Return the result whose raw PNG lies at *path*. Raises: BadResultError if a header is missing or malformed."""
    seed, nsfw = wire.read_seed(headers.get(wire.SEED_HEADER, "")), headers.get(wire.NSFW_HEADER, "")
    safety = headers.get(wire.SAFETY_HEADER, "")
    if seed is None or nsfw not in ("true", "false") or safety not in _SAFETY:
        raise BadResultError("expected Fourfold-Seed, -Nsfw and -Safety with the picture; check the worker's version")
    model_id = headers.get(wire.MODEL_HEADER, fields.model_id)
    run = wire.read_run_facts(headers)
    return WorkResult(path, seed, nsfw == "true", safety, model_id, path.stat().st_size, by_ours=True, run=run)


async def read_runner_json(body: Path, fields: wire.UpscaleFields, target: Path) -> WorkResult:
    """Return the result in a Livepeer runner's JSON, its picture decoded to *target*. Raises: BadResultError."""
    return await asyncio.to_thread(_read_runner_json, body, fields, target)


def _read_runner_json(body: Path, fields: wire.UpscaleFields, target: Path) -> WorkResult:
    image = images_from_runner(body.read_bytes())[0]
    body.unlink()
    try:
        png = wire.decode_data_url(image["url"])
    except binascii.Error as exc:
        raise BadResultError(f"the worker's picture is not base64: {exc}") from exc
    if png is None:
        raise BadResultError("expected the worker's picture as a data:image/...;base64 URL")
    try:
        target.write_bytes(png)
    except OSError as exc:
        raise StorageFullError(f"the result cannot be kept: {exc.strerror}; try again later") from exc
    nsfw = bool(image.get("nsfw", False))
    # A Livepeer runner says false both for "clean" and for "not asked to look".
    unflagged = wire.SAFETY_CLEAN if fields.safety_check else wire.SAFETY_NOT_CHECKED
    safety = wire.SAFETY_FLAGGED if nsfw else unflagged
    return WorkResult(target, image["seed"], nsfw, safety, fields.model_id, len(png), by_ours=False)


async def check_png(path: Path) -> None:
    """Raise BadResultError unless the file is one whole PNG: its chunks fit and the last of them ends the file."""
    reason = await asyncio.to_thread(_png_fault, path)
    if reason is not None:
        raise BadResultError(f"expected a PNG from the worker: {reason}")


def _png_fault(path: Path) -> str | None:
    """Return what is wrong with the PNG, by its chunks' heads alone; no pixel is decoded."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(_SIGNATURE)) != _SIGNATURE:
            return "other bytes came"
        expected = b"IHDR"
        position = len(_SIGNATURE)
        while True:
            head = file.read(8)
            if len(head) < 8:
                return f"it ends after {size} bytes, in mid-picture"
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if expected and kind != expected:
                return "its header is missing"
            expected = b""
            position += length + _CHUNK_OVERHEAD
            if position > size:
                return f"it ends after {size} bytes, in mid-picture"
            if kind == b"IEND":
                return None if position == size else f"{size - position} bytes follow its end"
            file.seek(position)


def _message(body: bytes) -> str:
    """Return the message in one of our JSON error bodies."""
    try:
        detail = json.loads(body)["detail"]
        return str((detail[0] if isinstance(detail, list) else detail)["msg"])[:500]
    except (ValueError, KeyError, TypeError, IndexError):
        return body.decode("utf-8", "replace").strip()[:500] or "no reason was given"
