"""What a fake orchestrator does with a job: the behaviours by name, the job as it arrived, and the words it uses."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import pyvips

from fourfold.protocol import livepeer_errors, wire
from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol.grpc_asgi import Receive, Send

Style = Literal["fourfold", "livepeer-url", "livepeer-data"]
Behaviour = Literal[
    "ok",
    "busy",
    "crash",
    "refuse",  #: the client's fault, says the worker
    "bad-token",
    "out-of-memory",
    "hang",
    "cut",  #: the answer ends in its middle
    "garbage",  #: 200, and no picture
    "half",  #: the first half of a PNG, as if it were whole
    "wrong-size",
    "blank",  #: as large as it must be, and all black
    "slow",  #: a byte at a time
    "oversize",  #: announces more bytes than anybody takes
    "elsewhere",  #: names an address on another host
    "missing",  #: names an address where nothing is
    "odd-seed",  #: names a seed that is none
    "other-model",  #: runs another one than it was asked for
]

OUR_ERRORS: Final[Mapping[str, tuple[int, str]]] = {
    "busy": (503, "insufficient_capacity"),
    "crash": (500, "engine_crashed"),
    "refuse": (400, "invalid_parameter"),
    "bad-token": (403, "invalid_credentials"),
    "out-of-memory": (500, "out_of_memory"),
}
LIVEPEER_ERRORS: Final[Mapping[str, tuple[int, str]]] = {
    "busy": (503, livepeer_errors.INSUFFICIENT_CAPACITY),
    "crash": (500, "upscale container returned 500: Upscale pipeline error."),
    "refuse": (500, "upscale container returned 400: Error during model execution: too odd."),
    "bad-token": (403, livepeer_errors.INVALID_AUTH_TOKEN),
    "out-of-memory": (500, "upscale container returned 500: Out of memory error. Try reducing input image resolution."),
}
_PART: Final = re.compile(rb'Content-Disposition: form-data; name="([^"]+)"')


@dataclass(slots=True)
class ReceivedJob:
    """One job as it arrived."""

    headers: dict[str, str]  #: names in lower case
    parts: list[tuple[str, bytes]]  #: names and contents in the order of the body
    behaviour: str
    was_left: bool = False  #: the gateway closed the connection before it had the whole answer

    @property
    def fields(self) -> dict[str, str]:
        """The text parts."""
        return {name: content.decode() for name, content in self.parts if name != "image"}

    @property
    def image(self) -> bytes:
        """The image part."""
        return dict(self.parts)["image"]

    @property
    def job_id(self) -> str:
        """The id that the gateway gave it."""
        return self.headers.get(wire.JOB_HEADER.lower(), "")

    @property
    def segment(self) -> pb.SegData:
        """The segment header, read."""
        return pb.SegData.FromString(base64.b64decode(self.headers[wire.SEGMENT_HEADER.lower()]))


def enlarge(image: bytes, factor: int) -> bytes:
    """Return *image* with each pixel repeated, as a PNG."""
    picture = pyvips.Image.new_from_buffer(image, "")
    return bytes(picture.zoom(factor, factor).pngsave_buffer(compression=1))


def blank(image: bytes, factor: int) -> bytes:
    """Return a black PNG, *factor* times as large as *image*."""
    picture = pyvips.Image.new_from_buffer(image, "")
    return bytes(pyvips.Image.black(picture.width * factor, picture.height * factor, bands=3).pngsave_buffer())


def read_parts(body: bytes, content_type: str) -> list[tuple[str, bytes]]:
    """Return the parts of a multipart body as it stands, in its order."""
    boundary = b"--" + content_type.partition("boundary=")[2].encode()
    parts = []
    for piece in body.split(boundary)[1:-1]:
        head, _, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        match = _PART.search(head)
        assert match is not None, head
        parts.append((match[1].decode(), content.removesuffix(b"\r\n")))
    return parts


async def read_body(receive: Receive) -> bytes:
    """Return the whole body of a request."""
    body = bytearray()
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body", False):
            return bytes(body)


async def until_left(receive: Receive) -> None:
    """Return when the peer has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def start_answer(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Send the head of an answer."""
    raw: list[Any] = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def answer(send: Send, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    """Send a whole answer."""
    await start_answer(send, status, {**(headers or {}), "Content-Length": str(len(body))})
    await send({"type": "http.response.body", "body": body, "more_body": False})
