"""Admission: the order and the words of Livepeer's checks, tokens, and the slot that is always given back."""

import base64
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest

from fourfold.config import LimitSettings
from fourfold.errors import (
    FourfoldError,
    InvalidCredentialsError,
    InvalidImageError,
    InvalidParameterError,
    InvalidPaymentError,
    NoCapacityError,
)
from fourfold.orchestrator.admission import Admission, Claims, Tokens, read_payment, read_segment
from fourfold.orchestrator.models import ModelConfig
from fourfold.orchestrator.pricing import PriceDefaults, price_list
from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol.capabilities import ModelOffer, demand, offer

MODEL = "m"
SENDER = bytes(range(20))
NOW = 1_800_000_000.0


@dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


def counting_random() -> object:
    """Return a source of bytes that never repeats itself, and is no secret."""
    calls = iter(range(256))
    return lambda size: bytes([next(calls)]) * size


@dataclass
class Picture:
    width: int = 8
    height: int = 6


@dataclass
class FakeCodec:
    failure: FourfoldError | None = None
    asked: list[Path] = field(default_factory=list)

    async def inspect(self, path: Path, limits: LimitSettings, /) -> Picture:
        self.asked.append(path)
        if self.failure is not None:
            raise self.failure
        return Picture()


@dataclass
class FakeCapacity:
    free: int = 1
    asked: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def reserve(self, model_id: str) -> Iterator[str]:
        self.asked.append(model_id)
        if self.free == 0:
            raise NoCapacityError("full")
        self.free -= 1
        try:
            yield "a slot"
        finally:
            self.free += 1


class Desk:
    """An admission desk and everything around it."""

    def __init__(self, models: list[ModelConfig] | None = None) -> None:
        self.clock = Clock()
        self.tokens = Tokens(ttl_s=1800.0, clock=self.clock, random=counting_random())  # type: ignore[arg-type]
        self.codec = FakeCodec()
        self.capacity = FakeCapacity()
        models = models or [ModelConfig(MODEL)]
        self.admission = Admission(
            tokens=self.tokens,
            capabilities=lambda: offer(ModelOffer(m.model_id, True, 1) for m in models),
            capacity=self.capacity,
            prices=price_list(models, PriceDefaults(price_usd=1.9073484e-08, usd_per_eth=3000.0)),
            codec=self.codec,
            limits=LimitSettings(),
        )

    def claims(self, **changes: str) -> Claims:
        """Return claims that are admitted, but for *changes*."""
        fields = {"segment": encoded(self.segment()), "payment": "", "model_id": MODEL}
        return Claims(**(fields | changes))

    def segment(self, model_id: str = MODEL) -> pb.SegData:
        """Return credentials that are good now."""
        return pb.SegData(
            manifestId=f"30_{model_id}".encode(), capabilities=demand(model_id), auth_token=self.tokens.issue()
        )

    async def refusal(self, claims: Claims) -> FourfoldError:
        """Return why *claims* are refused."""
        with pytest.raises(FourfoldError) as caught:
            async with self.admission.admit(claims, Path("upload")):
                pass
        return caught.value


def encoded(message: pb.SegData | pb.Payment) -> str:
    """Return *message* as its header."""
    return base64.b64encode(message.SerializeToString()).decode()


async def test_an_admitted_job_has_a_slot_and_a_fee() -> None:
    """Input width x height x price; off-chain an empty payment will do."""
    desk = Desk()
    claims = desk.claims()
    async with desk.admission.admit(claims, Path("upload")) as admitted:
        assert (admitted.slot, admitted.input_pixels, admitted.fee) == ("a slot", 48, 48 * 6_357_828)
        assert admitted.session_id == read_segment(claims.segment).auth_token.session_id
        assert desk.capacity.free == 0

    assert desk.capacity.free == 1
    assert desk.codec.asked == [Path("upload")]


async def test_the_slot_is_given_back_when_the_work_fails() -> None:
    """Whatever is raised inside."""
    desk = Desk()
    with pytest.raises(RuntimeError):
        async with desk.admission.admit(desk.claims(), Path("upload")):
            raise RuntimeError

    assert desk.capacity.free == 1


async def test_a_gateway_pays_its_own_price() -> None:
    """The payment names the sender; without a price for him nothing is held."""
    own = "0x" + SENDER.hex()
    desk = Desk([ModelConfig(MODEL, price_per_unit=Decimal(7), gateway=own)])
    claims = desk.claims(payment=encoded(pb.Payment(sender=SENDER)))
    async with desk.admission.admit(claims, Path("upload")) as admitted:
        assert admitted.fee == 48 * 7
    refusal = await desk.refusal(desk.claims())

    assert isinstance(refusal, NoCapacityError)
    assert refusal.message == "m is not sold to default"
    assert desk.capacity.free == 1


@pytest.mark.parametrize("header", ["*", "QUJD", "ä", "QQ=", "\u20ac"])
async def test_a_payment_that_cannot_be_read_is_402(header: str) -> None:
    """Row 2 of livepeer_upscale.md 3.8: no base64, or no Payment inside."""
    refusal = await Desk().refusal(Desk().claims(payment=header))

    assert isinstance(refusal, InvalidPaymentError)
    assert refusal.http_status == 402


def _edited(desk: Desk, **changes: object) -> str:
    segment = desk.segment()
    for name, value in changes.items():
        if value is None:
            segment.ClearField(name)  # type: ignore[arg-type]
        else:
            setattr(segment.auth_token, name, value)
    return encoded(segment)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda desk: "no base64", "ErrorSegEncoding"),
        (lambda desk: base64.b64encode(b"\xff\xff").decode(), "ErrorSegEncoding"),
        (lambda desk: "", "incompatible capabilities"),
        (lambda desk: _edited(desk, capabilities=None), "incompatible capabilities"),
        (lambda desk: encoded(desk.segment("another/model")), "incompatible capabilities"),
        (lambda desk: _edited(desk, auth_token=None), "missing auth token"),
        (lambda desk: _edited(desk, token=b"x" * 32), "invalid auth token"),
        (lambda desk: _edited(desk, token=b""), "invalid auth token"),
        (lambda desk: _edited(desk, session_id="other"), "invalid auth token"),
        (lambda desk: _edited(desk, expiration=int(NOW) + 10**6), "invalid auth token"),
        (lambda desk: _edited(desk, expiration=-1), "invalid auth token"),
        (lambda desk: _edited(desk, expiration=-(2**63)), "invalid auth token"),
    ],
)
async def test_credentials_are_refused_in_livepeers_words(make: object, text: str) -> None:
    """Row 3 of livepeer_upscale.md 3.8: each with 403 and the text that gateways know."""
    desk = Desk()
    refusal = await desk.refusal(desk.claims(segment=make(desk)))  # type: ignore[operator]

    assert isinstance(refusal, InvalidCredentialsError)
    assert (refusal.http_status, refusal.message) == (403, text)
    assert desk.codec.asked == []


async def test_a_token_holds_for_half_an_hour() -> None:
    """At its last second it still does."""
    desk = Desk()
    claims = desk.claims()
    desk.clock.now += 1800
    async with desk.admission.admit(claims, Path("upload")):
        pass
    desk.clock.now += 1
    refusal = await desk.refusal(claims)

    assert refusal.message == "expired auth token"


async def test_a_token_of_another_process_is_none_of_ours() -> None:
    """The key dies with the process."""
    desk = Desk()
    other = Tokens(ttl_s=1800.0, clock=desk.clock, random=lambda size: b"\xee" * size)
    segment = desk.segment()
    segment.auth_token.CopyFrom(other.issue())
    refusal = await desk.refusal(desk.claims(segment=encoded(segment)))

    assert refusal.message == "invalid auth token"


def test_a_token_is_an_hmac_over_session_and_expiration() -> None:
    """protocol_and_payments.md 3b, with the minimal big-endian form of the expiration."""
    import hashlib
    import hmac

    token = Tokens(ttl_s=1800.0, clock=lambda: 0.0, random=lambda size: b"k" * size).issue()
    expected = hmac.new(b"k" * 32, token.session_id.encode() + b"\x07\x08", hashlib.sha256).digest()

    assert (token.expiration, token.token) == (1800, expected)
    assert token.session_id == (b"k" * 16).hex()


async def test_credentials_for_another_model_are_refused() -> None:
    """The manifest id names capability and model; one that is absent says nothing."""
    desk = Desk([ModelConfig(MODEL), ModelConfig("n")])
    refusal = await desk.refusal(desk.claims(model_id="n"))
    segment = desk.segment()
    segment.manifestId = b""
    async with desk.admission.admit(desk.claims(segment=encoded(segment)), Path("upload")):
        pass

    assert (refusal.http_status, refusal.message) == (403, "invalid manifest id: expected 30_n")


async def test_a_request_that_names_no_model_is_400() -> None:
    """go-livepeer dereferences a nil pointer here (livepeer_upscale.md 1.6, B2)."""
    desk = Desk()
    refusal = await desk.refusal(desk.claims(model_id=""))

    assert isinstance(refusal, InvalidParameterError)
    assert (refusal.http_status, refusal.message) == (400, "model_id is missing; name one of m")


async def test_a_picture_that_cannot_be_read_holds_no_slot() -> None:
    """Row 4 comes before row 5."""
    desk = Desk()
    desk.codec.failure = InvalidImageError("damaged")
    refusal = await desk.refusal(desk.claims())

    assert refusal is desk.codec.failure
    assert desk.capacity.asked == []


async def test_a_full_orchestrator_says_so_last() -> None:
    """Row 5, after everything that is the gateway's own fault."""
    desk = Desk()
    desk.capacity.free = 0
    refusal = await desk.refusal(desk.claims())

    assert isinstance(refusal, NoCapacityError)


async def test_the_checks_come_in_livepeers_order() -> None:
    """With everything wrong at once, each repair uncovers the next complaint."""
    desk = Desk()
    desk.codec.failure = InvalidImageError("damaged")
    desk.capacity.free = 0
    codes = []
    wrong = {"payment": "*", "segment": "*", "model_id": ""}
    for repair in ("payment", "segment", "model_id"):
        codes.append((await desk.refusal(desk.claims(**wrong))).code)
        del wrong[repair]
    codes.append((await desk.refusal(desk.claims())).code)
    desk.codec.failure = None
    codes.append((await desk.refusal(desk.claims())).code)

    assert codes == [
        "invalid_payment",
        "invalid_credentials",
        "invalid_parameter",
        "invalid_image",
        "insufficient_capacity",
    ]


def test_an_empty_payment_is_a_payment() -> None:
    """Off-chain gateways send the header empty."""
    assert read_payment("") == pb.Payment()
