"""What goes out to an orchestrator."""

import base64
import inspect

import httpx2
import pytest

from fourfold.errors import UnreachableError
from fourfold.gateway.submission import segment_header
from fourfold.gateway.transfer import translated
from fourfold.protocol.livepeer_pb2 import AuthToken, SegData

MODEL = "stabilityai/stable-diffusion-x4-upscaler"


def test_the_segment_is_livepeers() -> None:
    """Every field of an AI job's segment, off-chain: see protocol_and_payments.md 3d and 3h."""
    token = AuthToken(token=b"t", session_id="abcd1234", expiration=1_700_000_000)

    segment = SegData.FromString(base64.b64decode(segment_header(MODEL, token), validate=True))

    assert segment.manifestId == f"30_{MODEL}".encode()
    assert segment.seq == 0
    assert segment.hash.hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert segment.profiles == b"invalid"
    assert segment.sig == b""
    assert segment.auth_token == token
    assert list(segment.capabilities.bitstring) == [0x44005FFF]
    assert segment.capabilities.capacities[30] == 1
    assert list(segment.capabilities.constraints.PerCapability[30].models) == [MODEL]


def test_the_segment_is_one_header_line() -> None:
    """However long the model's name."""
    header = segment_header("m" * 300, AuthToken(token=b"x" * 300))

    assert "\n" not in header and "\r" not in header


def _raised_by_httpx2() -> list[type[Exception]]:
    """Return what httpx2 can raise while a request is under way."""
    roots = (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, httpx2.CookieConflict)
    found = [value for value in vars(httpx2).values() if inspect.isclass(value) and issubclass(value, Exception)]
    unplaced = [cls for cls in found if not issubclass(cls, roots)]
    assert unplaced == [], f"httpx2 has new exceptions; decide what they mean: {unplaced}"
    return [cls for cls in found if not issubclass(cls, httpx2.CookieConflict)]  # we keep no cookies


@pytest.mark.parametrize("cls", _raised_by_httpx2())
def test_every_failure_of_the_library_is_a_peer_that_was_not_reached(cls: type[Exception]) -> None:
    """None of its exceptions leaks out as an internal error."""
    exc = cls.__new__(cls)
    Exception.__init__(exc, "boom")

    with pytest.raises(UnreachableError, match="https://o:1 dropped the exchange: boom"), translated("https://o:1"):
        raise exc
