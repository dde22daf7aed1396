"""Forms read as they arrive, bounded in every direction."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fourfold.errors import StorageFullError, UploadTooLargeError, ValidationError
from fourfold.protocol.multipart import Upload, read_form

BOUNDARY = "xyzzy"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
HEADERS = {"content-type": TYPE}
NAMES = {"prompt", "seed"}


def part(name: str, value: bytes, extra: str = "") -> bytes:
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def read(
    body: bytes, tmp_path: Path, *, size: int = 7, content_type: str = TYPE, encoding: str = "", **options: int
) -> Upload:
    limits = {"max_bytes": 10_000, "max_parts": 10, "silence_s": 1} | options
    image = tmp_path / "image"
    headers = {"content-type": content_type, "content-encoding": encoding}
    return await read_form(pieces(body, size), headers, names=NAMES, image_path=image, **limits)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_fields_and_image_arrive_whatever_the_pieces(tmp_path: Path, size: int) -> None:
    """The image goes to its file as it comes."""
    body = part("prompt", "Grüße".encode()) + part("image", b"\x00\r\n--x" * 50, '; filename="../../etc/passwd"') + END

    upload = await read(body, tmp_path, size=size)

    assert upload.fields == {"prompt": "Grüße"}
    assert upload.image == tmp_path / "image"
    assert upload.image.read_bytes() == b"\x00\r\n--x" * 50


async def test_the_first_of_a_name_counts(tmp_path: Path) -> None:
    """As in Livepeer's gateway; the others are read and dropped."""
    body = part("seed", b"1") + part("seed", b"2") + part("image", b"a") + part("image", b"b") + END

    upload = await read(body, tmp_path)

    assert (upload.fields, (tmp_path / "image").read_bytes()) == ({"seed": "1"}, b"a")


async def test_parts_of_other_names_are_ignored_whatever_is_in_them(tmp_path: Path) -> None:
    """A mask, a button, a file under another name: neither text nor of any size, and no reason to refuse."""
    others = part("mask", b"\xff\xd8" * 50_000, '; filename="m.jpg"') + part("image[]", b"\xff") + part("submit", b"Go")

    upload = await read(others + part("seed", b"1") + part("image", b"a") + END, tmp_path, max_bytes=10**6)

    assert (upload.fields, upload.image_bytes) == ({"seed": "1"}, 1)


async def test_an_image_sent_as_text_is_still_the_image(tmp_path: Path) -> None:
    """Filenames and content types are ignored."""
    upload = await read(part("image", b"bytes") + END, tmp_path)

    assert upload.image_bytes == 5


async def test_no_image_is_told_from_an_empty_one(tmp_path: Path) -> None:
    """The caller answers them differently."""
    assert (await read(part("prompt", b"") + END, tmp_path)).image is None
    assert (await read(part("image", b"") + END, tmp_path)).image_bytes == 0


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"", "multipart/form-data"),
        (b"", ""),
        (part("a", b"b"), TYPE),
        (b"no boundary at all", TYPE),
        (END[:-4], TYPE),
        (b"", f"multipart/form-data; boundary={'b' * 300}"),
        (part("prompt", b"\xff\xfe") + END, TYPE),
        (part("prompt", b"x" * 70_000) + END, TYPE),
        (part("a", b"b", "; " + "x" * 9_000) + END, TYPE),
        (b"".join(part(f"f{i}", b"") for i in range(11)) + END, TYPE),
    ],
)
async def test_a_malformed_form_is_a_validation_error(tmp_path: Path, body: bytes, content_type: str) -> None:
    """Never anything else."""
    with pytest.raises(ValidationError):
        await read(body, tmp_path, content_type=content_type, max_bytes=10**6, size=1000)


@pytest.mark.parametrize("encoding", ["gzip", "x-unknown", "identity, br"])
async def test_a_compressed_body_is_refused_with_its_reason(tmp_path: Path, encoding: str) -> None:
    """Read as it is, it would be "damaged"."""
    with pytest.raises(
        ValidationError, match=f"without Content-Encoding, got '{encoding}'; send it uncompressed"
    ) as it:
        await read(b"\x1f\x8b", tmp_path, encoding=encoding)

    assert it.value.detail[0]["loc"] == ["body"]


async def test_an_encoding_that_changes_nothing_is_none(tmp_path: Path) -> None:
    """RFC 9110 has a name for it."""
    assert (await read(part("image", b"x") + END, tmp_path, encoding="Identity")).image_bytes == 1


async def test_a_body_that_says_that_it_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    """Before a byte of it has come."""

    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("read all the same")
        yield b""

    with pytest.raises(UploadTooLargeError, match="1001"):
        headers = HEADERS | {"content-length": "1001"}
        image = tmp_path / "image"
        await read_form(unread(), headers, names=NAMES, image_path=image, max_bytes=1000, max_parts=5, silence_s=1)


async def test_a_body_beyond_the_limit_is_refused_while_it_arrives(tmp_path: Path) -> None:
    """No length has to be announced for that."""
    with pytest.raises(UploadTooLargeError, match="10000"):
        await read(part("image", b"x" * 20_000) + END, tmp_path)
    assert (tmp_path / "image").stat().st_size <= 10_000


async def test_a_silent_sender_is_refused(tmp_path: Path) -> None:
    """A slow one is not: only silence counts."""

    async def stalls() -> AsyncIterator[bytes]:
        yield part("prompt", b"x")
        await asyncio.sleep(60)
        yield END

    with pytest.raises(ValidationError, match="stopped arriving"):
        await read_form(
            stalls(), HEADERS, names=NAMES, image_path=tmp_path / "i", max_bytes=1000, max_parts=5, silence_s=0.05
        )


async def test_a_disk_that_takes_no_upload_is_507(tmp_path: Path) -> None:
    """Not the client's fault."""
    with pytest.raises(StorageFullError):
        await read_form(
            pieces(part("image", b"x") + END, 10),
            HEADERS,
            names=NAMES,
            image_path=tmp_path / "gone" / "image",
            max_bytes=1000,
            max_parts=5,
            silence_s=1,
        )
