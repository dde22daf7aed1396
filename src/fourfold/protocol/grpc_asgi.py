"""Unary gRPC over plain ASGI, so that gRPC and HTTPS live on one port: framing, status trailers, limits.

Needs a server with HTTP/2 and ``http.response.trailers`` (Hypercorn). Not here: streaming calls, compression, metadata
of our own; nothing an orchestrator serves to a gateway needs them.
Source: the gRPC over HTTP/2 protocol description (``grpc/grpc doc/PROTOCOL-HTTP2.md``).
"""

import asyncio
import logging
import re
import struct
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_HEAD: Final = struct.Struct(">BI")  #: compressed flag, length of the message
_CONTENT_TYPE: Final = re.compile(rb"application/grpc(\+proto)?(;.*)?\Z")
_TIMEOUT: Final = re.compile(r"(\d{1,8})([HMSmun])\Z")
_UNIT_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Status(IntEnum):
    """The gRPC status codes used here."""

    OK = 0
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class GrpcError(Exception):
    """A call that ends with *status* and a *message* for the caller."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler may know of the call besides its message."""

    authority: str  #: the host[:port] the caller claims to use; clients that pin a certificate send the name in it
    server: tuple[str, int] | None  #: the address at which the call arrived


_Request = TypeVar("_Request", bound=Message)
_Reply = TypeVar("_Reply", bound=Message)


@dataclass(frozen=True, slots=True)
class Unary(Generic[_Request, _Reply]):
    """One method: the type of its request and the function that answers it."""

    request: type[_Request]
    answer: Callable[[_Request, Call], Awaitable[_Reply]]


def is_grpc(scope: Scope) -> bool:
    """Return whether the request is gRPC (or one of its dialects), which plain HTTP handlers must not see."""
    return scope["type"] == "http" and _header(scope, b"content-type").startswith(b"application/grpc")


class GrpcApp:
    """Serves *methods*, path -> :class:`Unary`, as an ASGI application."""

    def __init__(
        self,
        methods: Mapping[str, Unary[Any, Any]],
        *,
        max_request_bytes: int = 4 * 2**20,
        body_timeout_s: float = 10.0,
    ) -> None:
        self._methods = methods
        self._max_bytes = max_request_bytes
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call; every outcome, a bug's included, reaches the caller as a status."""
        # The whole request is read before anything is answered: a frame that arrives on a stream that has been
        # answered already costs Hypercorn 0.18 the connection, with every other call on it.
        try:
            async with asyncio.timeout(self._body_timeout_s):
                body = await self._read_body(receive)
        except TimeoutError:
            await _send_status(send, Status.DEADLINE_EXCEEDED, "the request stopped arriving")
            return
        if scope["method"] != "POST" or not _CONTENT_TYPE.match(_header(scope, b"content-type")):
            await _refuse_http(scope, send)
            return
        try:
            reply = await self._answer(scope, body)
        except GrpcError as exc:
            await _send_status(send, exc.status, exc.message)
        except Exception:  # the edge of a request: the caller still gets a status
            log.exception("grpc_call_failed", extra={"method": scope["path"]})
            await _send_status(send, Status.INTERNAL, "internal error; the server's log has the details")
        else:
            await _send_reply(send, reply.SerializeToString())

    async def _answer(self, scope: Scope, body: bytes | None) -> Message:
        """Run the method within the caller's deadline; return its reply."""
        method = self._methods.get(scope["path"])
        if method is None:
            raise GrpcError(Status.UNIMPLEMENTED, f"no method {scope['path']!r}; served: {', '.join(self._methods)}")
        if body is None:
            raise GrpcError(Status.RESOURCE_EXHAUSTED, f"a message may have {self._max_bytes} bytes, got more")
        try:
            request = method.request.FromString(_unframe(body))
        except DecodeError as exc:
            name = method.request.DESCRIPTOR.full_name
            raise GrpcError(Status.INVALID_ARGUMENT, f"expected a {name} in protobuf: {exc}") from exc
        server = scope.get("server")
        call = Call(_header(scope, b"host").decode("latin-1"), (server[0], server[1]) if server else None)
        try:
            async with asyncio.timeout(_timeout_s(scope)):
                reply: Message = await method.answer(request, call)
        except TimeoutError:
            raise GrpcError(Status.DEADLINE_EXCEEDED, "the answer took longer than the caller's deadline") from None
        return reply

    async def _read_body(self, receive: Receive) -> bytes | None:
        """Return the body, None where it is too large; a caller that left has sent an empty one."""
        body = bytearray()
        size = 0
        while True:
            event = await receive()
            if event["type"] != "http.request":
                return b""
            size += len(event.get("body", b""))
            if size <= self._max_bytes + _HEAD.size:
                body += event.get("body", b"")
            if not event.get("more_body", False):
                return bytes(body) if len(body) == size else None


def frame(message: bytes) -> bytes:
    """Return *message* with gRPC's five-byte head, uncompressed."""
    return _HEAD.pack(0, len(message)) + message


def _unframe(body: bytes) -> bytes:
    """Return the single message in *body*."""
    if len(body) < _HEAD.size:
        raise GrpcError(Status.INVALID_ARGUMENT, f"expected one framed message, got {len(body)} bytes")
    compressed, length = _HEAD.unpack_from(body)
    if compressed:
        raise GrpcError(Status.UNIMPLEMENTED, "compressed messages are not read; send with grpc-encoding identity")
    if len(body) != _HEAD.size + length:
        raise GrpcError(
            Status.INVALID_ARGUMENT, f"expected one message of {length} bytes, got {len(body) - _HEAD.size}"
        )
    return body[_HEAD.size :]


def _timeout_s(scope: Scope) -> float | None:
    """Return the caller's deadline in seconds from now; None where it set none that can be read."""
    match = _TIMEOUT.match(_header(scope, b"grpc-timeout").decode("latin-1"))
    return int(match[1]) * _UNIT_S[match[2]] if match else None


def _header(scope: Scope, name: bytes) -> bytes:
    """Return the first header called *name*, b"" where there is none."""
    return next((bytes(value) for key, value in scope["headers"] if key.lower() == name), b"")


_HEADERS: Final = [(b"content-type", b"application/grpc+proto"), (b"grpc-accept-encoding", b"identity")]


async def _send_reply(send: Send, message: bytes) -> None:
    """Send *message* and an OK trailer."""
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS, "trailers": True})
    await send({"type": "http.response.body", "body": frame(message), "more_body": False})
    await send({"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")], "more_trailers": False})


async def _send_status(send: Send, status: Status, message: str) -> None:
    """Send a failure: no message, only trailers. *message* is percent-encoded UTF-8, as the protocol wants it."""
    text = urllib.parse.quote(message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~").encode("ascii")
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS, "trailers": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    trailers = [(b"grpc-status", b"%d" % status), (b"grpc-message", text)]
    await send({"type": "http.response.trailers", "headers": trailers, "more_trailers": False})


async def _refuse_http(scope: Scope, send: Send) -> None:
    """Answer what is no gRPC call of ours in HTTP terms: 405 for the method, 415 for a dialect such as gRPC-Web."""
    status = 405 if scope["method"] != "POST" else 415
    body = b"expected POST with Content-Type application/grpc"
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)), (b"allow", b"POST")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
