"""Read a multipart/form-data body as it arrives: text fields into memory, the image straight to a file.

Bounded in every direction: bytes of the body, number of parts, bytes of a field, silence of the sender.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from fourfold.errors import StorageFullError, UploadTooLargeError, ValidationError

FIELD_BYTES: Final = 64 * 1024  #: a text field larger than this is no prompt
_HEADER_BYTES: Final = 8 * 1024  #: all headers of one part
_BOUNDARY_BYTES: Final = 256  #: the parser's own limit; RFC 2046 allows 70
#: A body may be slow for so long; from then on its mean rate counts. A byte a second only holds a place.
_SLOW_S: Final = 20.0
_LEAST_BYTES_PER_S: Final = 1_000


@dataclass(slots=True)
class Upload:
    """What a form held: the text fields asked for (the first of each name), the image's file, None where none came."""

    fields: dict[str, str] = field(default_factory=dict)
    image: Path | None = None
    image_bytes: int = 0


async def read_form(
    chunks: AsyncIterator[bytes],
    headers: Mapping[str, str],
    *,
    names: Collection[str],
    image_path: Path,
    max_bytes: int,
    max_parts: int,
    silence_s: float,
) -> Upload:
    """Read the whole form from *chunks*; the part named ``image`` goes to *image_path*.

    The caller removes *image_path* in every outcome. Filenames and the parts' content types are ignored, and so are
    parts of other names than *names*, whatever is in them: clients send masks, buttons and files of their own.

    Args: *headers*, the request's, by lower-case name.

    Raises:
        UploadTooLargeError: the body says that it has more than *max_bytes* bytes, or has them.
        ValidationError: the body is compressed or no multipart form, is damaged, has too many parts, stops for
            *silence_s*, or arrives so slowly that it only holds a place.
        StorageFullError: *image_path* cannot be written.
    """
    length, encoding = headers.get("content-length", ""), headers.get("content-encoding", "")
    if length.isascii() and length.isdigit() and int(length) > max_bytes:
        raise UploadTooLargeError(f"a request may have {max_bytes} bytes, this one has {length}; send a smaller image")
    if encoding.strip().lower() not in ("", "identity"):
        raise ValidationError(f"expected a body without Content-Encoding, got {encoding[:100]!r}; send it uncompressed")
    content_type = headers.get("content-type", "")
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise ValidationError(f"expected Content-Type multipart/form-data with a boundary, got {content_type[:100]!r}")
    if len(options[b"boundary"]) > _BOUNDARY_BYTES:
        raise ValidationError(f"a boundary may have {_BOUNDARY_BYTES} bytes, got more")
    received = 0
    clock = asyncio.get_running_loop().time
    started = clock()
    with _FormReader(options[b"boundary"], names, image_path, max_parts) as reader:
        try:
            async for chunk in _with_timeout(chunks, silence_s):
                received += len(chunk)
                if received > max_bytes:
                    raise UploadTooLargeError(f"a request may have {max_bytes} bytes; send a smaller image")
                seconds = clock() - started
                if seconds > _SLOW_S and received < seconds * _LEAST_BYTES_PER_S:
                    raise ValidationError(f"the body has {received} bytes after {seconds:.0f} s; send faster")
                reader.feed(chunk)
        except TimeoutError:
            raise ValidationError(f"the body stopped arriving for {silence_s:g} s") from None
        return reader.finish()


async def _with_timeout(chunks: AsyncIterator[bytes], silence_s: float) -> AsyncIterator[bytes]:
    """Yield from *chunks*; TimeoutError where the next takes longer than *silence_s*."""
    while True:
        try:
            async with asyncio.timeout(silence_s):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        yield chunk


class _FormReader:
    """Turns the parser's callbacks into an :class:`Upload`."""

    def __init__(self, boundary: bytes, names: Collection[str], image_path: Path, max_parts: int) -> None:
        self._upload = Upload()
        self._names = frozenset(names)
        self._image_path = image_path
        self._max_parts = max_parts
        self._parts = 0
        self._ended = False
        self._file: BinaryIO | None = None
        self._text: bytearray | None = None
        self._name = ""
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._header_bytes = 0
        callbacks: dict[str, Callable[..., None]] = {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value_part,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }
        self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]  # its TypedDict wants literals

    def __enter__(self) -> "_FormReader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as exc:
            raise ValidationError(f"the multipart body is damaged: {exc}") from exc
        except OSError as exc:
            raise StorageFullError(f"the upload cannot be kept: {exc.strerror}; try again later") from exc

    def finish(self) -> Upload:
        """Return the form. Raises: ValidationError if the closing boundary never came."""
        if not self._ended:
            raise ValidationError("the multipart body ends before its closing boundary")
        return self._upload

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > self._max_parts:
            raise ValidationError(f"a form may have {self._max_parts} parts, got more")
        self._name, self._header_bytes = "", 0

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += self._bounded(data[start:end])

    def _header_value_part(self, data: bytes, start: int, end: int) -> None:
        self._header_value += self._bounded(data[start:end])

    def _bounded(self, piece: bytes) -> bytes:
        self._header_bytes += len(piece)
        if self._header_bytes > _HEADER_BYTES:
            raise ValidationError(f"the headers of a part may have {_HEADER_BYTES} bytes, got more")
        return piece

    def _header_end(self) -> None:
        if bytes(self._header_name).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._header_value))
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._header_name.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        if self._name == "image" and self._upload.image is None:
            self._file = self._image_path.open("wb")
            self._upload.image = self._image_path
        elif self._name in self._names and self._name not in self._upload.fields:
            self._text = bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])
            self._upload.image_bytes += end - start
        elif self._text is not None:
            self._text += data[start:end]
            if len(self._text) > FIELD_BYTES:
                raise ValidationError(f"a field may have {FIELD_BYTES} bytes, got more", field=self._name)

    def _part_end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        elif self._text is not None:
            try:
                self._upload.fields[self._name] = self._text.decode("utf-8")
            except UnicodeDecodeError:
                raise ValidationError("expected UTF-8 text", field=self._name, kind="string_unicode") from None
            self._text = None

    def _end(self) -> None:
        self._ended = True
