"""Laws of prices."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.protocol.units import Pixels, Price, Wei, price_from_fraction, wei_per_pixel

WEI = st.integers(0, 10**12).map(Wei)
UNITS = st.integers(1, 10**7).map(Pixels)
PIXELS = st.integers(0, 10**9).map(Pixels)


@given(pixels=PIXELS, price=WEI, per=UNITS)
def test_the_fee_is_the_exact_price_rounded_up(pixels: Pixels, price: Wei, per: Pixels) -> None:
    """The fee is never below the quote and less than one wei above it."""
    assert 0 <= Price(price, per).fee(pixels) - Fraction(pixels * price, per) < 1


@given(st.fractions(0, 10**9))
def test_a_price_on_the_wire_is_never_below_the_price(exact: Fraction) -> None:
    """And less than a thousandth of a wei above it."""
    assert 0 <= price_from_fraction(exact).per_pixel - exact < Fraction(1, 1000)


def test_the_recommended_price_is_exact_in_wei() -> None:
    """Source: protocol_and_payments.md, section 0."""
    exact = wei_per_pixel("1.9073484e-08", usd_per_eth=3000)

    assert exact == 6357828
    assert price_from_fraction(exact).fee(Pixels(1024 * 1024)) == 6666665852928


@pytest.mark.parametrize(("price", "per"), [(-1, 1), (1, 0)])
def test_a_price_that_makes_no_sense_is_refused(price: int, per: int) -> None:
    """Wrong money raises; it is never clamped."""
    with pytest.raises(ValueError, match="got"):
        Price(Wei(price), Pixels(per))


def test_a_price_beyond_the_wire_is_refused() -> None:
    """Two int64 carry it."""
    with pytest.raises(ValueError, match=r"2\^63"):
        price_from_fraction(Fraction(2**63))


@pytest.mark.parametrize(("usd", "rate"), [(-1, 3000), (1, 0)])
def test_a_rate_that_makes_no_sense_is_refused(usd: int, rate: int) -> None:
    """Dividing by nothing is nobody's price."""
    with pytest.raises(ValueError, match="usd_per_eth"):
        wei_per_pixel(usd, usd_per_eth=rate)
