"""Credentials + payment + image + capacity -> ``Admitted``, or the reason why not, in Livepeer's order and words.

Off-chain for now: nobody signs, nothing is owed, an empty payment is a payment. Tickets and balances come with
payments and go between the capacity and the work.
Source: go-livepeer ``server/ai_http.go`` handleAIRequest, ``server/segment_rpc.go`` verifySegCreds.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from fourfold.config import LimitSettings
from fourfold.errors import InvalidCredentialsError, InvalidParameterError, InvalidPaymentError, NoCapacityError
from fourfold.orchestrator.models import ANY_GATEWAY
from fourfold.orchestrator.pricing import PriceList
from fourfold.protocol import livepeer_errors as words
from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol.capabilities import incompatibility
from fourfold.protocol.units import Pixels, Wei
from fourfold.protocol.wire import UPSCALE_CAPABILITY

_KEY_BYTES: Final = 32
_SESSION_BYTES: Final = 16
_INT64: Final = 2**63


class Header(Protocol):
    """What the first bytes of an image say of it."""

    @property
    def width(self) -> int:
        """Pixels."""

    @property
    def height(self) -> int:
        """Pixels."""


class Codec(Protocol):
    """Reads pictures; ``fourfold.imaging.Codec`` is one."""

    async def inspect(self, path: Path, limits: LimitSettings, /) -> Header:
        """Return the header of the image at *path*.

        Raises: UnsupportedFormatError, InvalidImageError, ImageTooLargeError.
        """


_Slot = TypeVar("_Slot", covariant=True)


class Capacity(Protocol[_Slot]):
    """Who has room for a job; :class:`fourfold.orchestrator.workers.Workers` knows."""

    def reserve(self, model_id: str) -> AbstractContextManager[_Slot]:
        """Hold a slot for *model_id* while the context lasts. Raises: NoCapacityError if there is none."""


class Tokens:
    """Issues and checks auth tokens. Nothing is stored: a token is an HMAC under a key that dies with the process."""

    def __init__(self, *, ttl_s: float, clock: Callable[[], float], random: Callable[[int], bytes]) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._random = random
        self._key = random(_KEY_BYTES)

    def issue(self) -> pb.AuthToken:
        """Return a token for a new session."""
        session_id = self._random(_SESSION_BYTES).hex()
        expiration = int(self._clock() + self._ttl_s)
        return pb.AuthToken(token=self._mac(session_id, expiration), session_id=session_id, expiration=expiration)

    def check(self, token: pb.AuthToken) -> None:
        """Raise InvalidCredentialsError unless this process issued *token* and it still holds."""
        if not hmac.compare_digest(self._mac(token.session_id, token.expiration), token.token):
            raise InvalidCredentialsError(words.INVALID_AUTH_TOKEN)
        if self._clock() > token.expiration:
            raise InvalidCredentialsError(words.EXPIRED_AUTH_TOKEN)

    def _mac(self, session_id: str, expiration: int) -> bytes:
        """Return HMAC-SHA256(key; session id, then the expiration in minimal big-endian)."""
        moment = expiration % (2 * _INT64)  # a forged token may carry a negative one
        payload = session_id.encode() + moment.to_bytes((moment.bit_length() + 7) // 8, "big")
        return hmac.digest(self._key, payload, hashlib.sha256)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a job request says of itself, unchecked."""

    segment: str  #: the Livepeer-Segment header
    payment: str  #: the Livepeer-Payment header; empty off-chain
    model_id: str


@dataclass(frozen=True, slots=True)
class Admitted(Generic[_Slot]):
    """A job that may run: it holds *slot*, and costs *fee* if it succeeds."""

    slot: _Slot
    session_id: str
    input_pixels: Pixels
    fee: Wei


class Admission(Generic[_Slot]):
    """The desk where a job request is checked."""

    def __init__(
        self,
        *,
        tokens: Tokens,
        capabilities: Callable[[], pb.Capabilities],
        capacity: Capacity[_Slot],
        prices: PriceList,
        codec: Codec,
        limits: LimitSettings,
    ) -> None:
        self._tokens = tokens
        self._capabilities = capabilities
        self._capacity = capacity
        self._prices = prices
        self._codec = codec
        self._limits = limits

    @asynccontextmanager
    async def admit(self, claims: Claims, image: Path) -> AsyncIterator[Admitted[_Slot]]:
        """Check *claims* and the *image*, then hold a slot while the context lasts.

        Raises: in the order of the checks,
            InvalidPaymentError: the payment header cannot be read.
            InvalidCredentialsError: the segment header cannot be read, asks for what is not offered, or its token is
                missing, not ours, expired, or for another model.
            InvalidParameterError: no model is named.
            UnsupportedFormatError, InvalidImageError, ImageTooLargeError: by the image's header.
            NoCapacityError: nobody has room for this model, or it is not sold here.
        """
        payment = read_payment(claims.payment)
        session_id = self._check_segment(claims)
        if not claims.model_id:
            raise InvalidParameterError(f"model_id is missing; name one of {', '.join(self._prices.models)}")
        header = await self._codec.inspect(image, self._limits)
        pixels = Pixels(header.width * header.height)
        with self._capacity.reserve(claims.model_id) as slot:
            gateway = "0x" + payment.sender.hex() if payment.sender else ANY_GATEWAY
            price = self._prices.quote(claims.model_id, gateway)
            if price is None:
                raise NoCapacityError(f"{claims.model_id} is not sold to {gateway}")
            yield Admitted(slot, session_id, pixels, price.fee(pixels))

    def _check_segment(self, claims: Claims) -> str:
        """Check the segment credentials; return their session id. Off-chain the signature is not looked at."""
        segment = read_segment(claims.segment)
        reason = incompatibility(segment.capabilities, self._capabilities())
        if reason is not None:
            raise InvalidCredentialsError(words.INCOMPATIBLE_CAPABILITIES)
        if not segment.HasField("auth_token"):
            raise InvalidCredentialsError(words.MISSING_AUTH_TOKEN)
        self._tokens.check(segment.auth_token)
        expected = f"{UPSCALE_CAPABILITY}_{claims.model_id}".encode()
        if segment.manifestId and claims.model_id and segment.manifestId != expected:
            raise InvalidCredentialsError(f"invalid manifest id: expected {expected.decode()}")
        return segment.auth_token.session_id


def read_payment(header: str) -> pb.Payment:
    """Return the payment in *header*; an empty one is the off-chain payment. Raises: InvalidPaymentError."""
    payment = pb.Payment()
    if not _read(header, payment):
        raise InvalidPaymentError("expected the payment as base64 of a net.Payment")
    return payment


def read_segment(header: str) -> pb.SegData:
    """Return the segment credentials in *header*. Raises: InvalidCredentialsError."""
    segment = pb.SegData()
    if not _read(header, segment):
        raise InvalidCredentialsError(words.SEGMENT_ENCODING)
    return segment


def _read(header: str, message: Message) -> bool:
    """Fill *message* from base64 in *header*; return whether it is one."""
    try:
        message.ParseFromString(base64.b64decode(header.encode("latin-1"), validate=True))
    except (binascii.Error, UnicodeEncodeError, DecodeError):
        return False
    return True
