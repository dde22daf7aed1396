"""What workers answer: results of both kinds, checked; failures by code or by words."""

import base64
import io
import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from fourfold.errors import BadResultError, StorageFullError, walk
from fourfold.orchestrator.answers import check_png, read_failure, read_headers, read_runner_json
from fourfold.protocol import wire

FIELDS = wire.UpscaleFields("m", prompt="", safety_check=True, seed=None, num_inference_steps=None)


def png() -> bytes:
    """Return a small picture."""
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 90).save(buffer, "PNG")
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


SIGNATURE = b"\x89PNG\r\n\x1a\n"


async def test_a_whole_png_passes(tmp_path: Path) -> None:
    """No pixel of it is decoded."""
    path = tmp_path / "x.png"
    path.write_bytes(png())

    await check_png(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "other bytes came"),
        (b"\xff\xd8\xff\xe0 a JPEG", "other bytes came"),
        (SIGNATURE, "it ends after 8 bytes"),
        (png()[:-5], "in mid-picture"),
        (png()[:-12], "in mid-picture"),
        (png()[:100], "in mid-picture"),
        (png() + b"x", "1 bytes follow its end"),
        (SIGNATURE + chunk(b"IDAT") + chunk(b"IEND"), "its header is missing"),
        (SIGNATURE + b"\xff\xff\xff\xffIHDR", "in mid-picture"),
    ],
)
async def test_anything_else_is_a_bad_result(tmp_path: Path, content: bytes, says: str) -> None:
    """Half a picture is never sold."""
    path = tmp_path / "x.png"
    path.write_bytes(content)

    with pytest.raises(BadResultError, match=says):
        await check_png(path)


def our_headers(**changes: str | None) -> dict[str, str]:
    """Return what a worker of ours sends with a picture."""
    headers = {
        wire.SEED_HEADER: "0",
        wire.NSFW_HEADER: "true",
        wire.SAFETY_HEADER: "flagged",
        wire.MODEL_HEADER: "ran",
    }
    for name, value in changes.items():
        key = f"Fourfold-{name.title()}"
        headers.pop(key)
        if value is not None:
            headers[key] = value
    return headers


def test_the_facts_of_our_worker_stand_in_headers(tmp_path: Path) -> None:
    """Zero is a seed."""
    path = tmp_path / "x.png"
    path.write_bytes(b"12345")
    result = read_headers(our_headers(), FIELDS, path)

    assert (result.seed, result.nsfw, result.safety, result.model_id, result.bytes) == (0, True, "flagged", "ran", 5)
    assert read_headers(our_headers(model=None), FIELDS, path).model_id == "m"


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": None},
        {"seed": ""},
        {"seed": "-1"},
        {"seed": str(2**53)},
        {"seed": "9" * 5000},
        {"seed": "1.0"},
        {"seed": "٣"},
        {"nsfw": "True"},
        {"nsfw": None},
        {"safety": "sure"},
        {"safety": None},
    ],
)
def test_a_missing_or_malformed_fact_is_a_bad_result(tmp_path: Path, changes: dict[str, str | None]) -> None:
    """A seed that was not told cannot be repeated."""
    with pytest.raises(BadResultError, match="Fourfold-Seed"):
        read_headers(our_headers(**changes), FIELDS, tmp_path)


async def read_json(tmp_path: Path, image: dict[str, object], *, safety_check: bool = True) -> object:
    """Read a Livepeer runner's answer with one *image*."""
    body = tmp_path / "answer.json"
    body.write_text(json.dumps({"images": [image]}))
    fields = wire.UpscaleFields("m", prompt="", safety_check=safety_check, seed=None, num_inference_steps=None)
    result = await read_runner_json(body, fields, tmp_path / "x.png")
    assert not body.exists()
    return result.seed, result.nsfw, result.safety, result.model_id, result.path.read_bytes()


async def test_a_livepeer_runners_data_url_is_decoded(tmp_path: Path) -> None:
    """Its boolean says neither that it looked nor that it did not: we know whether we asked."""
    url = "data:image/png;base64," + base64.b64encode(b"a picture").decode()
    clean = {"url": url, "seed": 5, "nsfw": False}

    assert await read_json(tmp_path, clean) == (5, False, "clean", "m", b"a picture")
    assert await read_json(tmp_path, clean, safety_check=False) == (5, False, "not-checked", "m", b"a picture")
    assert await read_json(tmp_path, clean | {"nsfw": True}) == (5, True, "flagged", "m", b"a picture")


@pytest.mark.parametrize("url", ["https://example.org/x.png", "data:text/plain;base64,AA==", "data:image/png;base64,A"])
async def test_any_other_url_is_a_bad_result(tmp_path: Path, url: str) -> None:
    """A worker gives its picture with the answer; nothing is fetched from where it says."""
    with pytest.raises(BadResultError):
        await read_json(tmp_path, {"url": url, "seed": 5})


async def test_a_picture_that_cannot_be_kept_is_a_storage_failure(tmp_path: Path) -> None:
    """Not the worker's fault."""
    body = tmp_path / "answer.json"
    body.write_text(json.dumps({"images": [{"url": "data:image/png;base64,AAAA", "seed": 1}]}))

    with pytest.raises(StorageFullError):
        await read_runner_json(body, FIELDS, tmp_path / "missing" / "x.png")


def code_of(code: str | None, status: int = 500, body: bytes = b'{"detail": {"msg": "why"}}') -> tuple[str, str]:
    """Return code and message of what we make of a failure."""
    error = read_failure(status, {} if code is None else {wire.ERROR_HEADER: code}, body)
    return error.code, error.message


def test_our_workers_failures_are_known_by_code() -> None:
    """Those that are the client's stay the client's."""
    for code in ("invalid_image", "image_too_large", "invalid_parameter", "insufficient_capacity", "engine_crashed"):
        assert code_of(code) == (code, "why")


def test_a_worker_that_lacks_the_model_is_not_the_clients_fault() -> None:
    """It was offered; the operator's file and the worker disagree."""
    assert code_of("unknown_model")[0] == "model_unavailable"


@pytest.mark.parametrize("code", ["unauthorized", "not_found", "cancelled", "internal", "storage_full", "queue_full"])
def test_what_is_between_us_and_the_worker_is_the_workers_failure(code: str) -> None:
    """Our token, our job id, its disk: no client can do anything about them."""
    assert code_of(code) == ("worker_failed", f"the worker failed ({code}): why")


def test_every_code_has_a_meaning() -> None:
    """None of them ends in another exception, and an unknown one is the worker's failure."""
    assert {code_of(cls.code)[0] for cls in walk()} <= {cls.code for cls in walk()}
    assert code_of("from_the_future") == ("worker_failed", "why")


def test_without_a_code_the_words_count() -> None:
    """A Livepeer runner."""
    assert code_of(None, 400)[0] == "invalid_parameter"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"detail": [{"msg": "first"}, {"msg": "second"}]}', "first"),
        (b"plain", "plain"),
        (b"", "no reason was given"),
        (b'{"detail": []}', '{"detail": []}'),
    ],
)
def test_the_message_is_found_in_any_of_our_bodies(body: bytes, message: str) -> None:
    """The list form of a 422, and what a proxy may have put in between."""
    assert code_of("worker_failed", body=body) == ("worker_failed", message)
