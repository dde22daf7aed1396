"""Prices: from what an operator writes to whole wei on the wire."""

from decimal import Decimal
from fractions import Fraction

import pytest

from fourfold.errors import ConfigError
from fourfold.orchestrator.models import ModelConfig
from fourfold.orchestrator.pricing import PriceDefaults, price_list, wei_per_pixel
from fourfold.protocol.units import Pixels, Price, Wei

DEFAULTS = PriceDefaults(price_usd=1.9073484e-08, usd_per_eth=3000.0)
GATEWAY = "0x" + "aB" * 20


@pytest.mark.parametrize(
    ("rate", "wei", "one_megapixel"),
    # protocol_and_payments.md section 6, its two tables
    [(2000, 9_536_742, None), (3000, 6_357_828, 6_666_665_852_928), (4000, 4_768_371, None)],
)
def test_the_recommended_price_is_a_whole_number_of_wei(rate: int, wei: int, one_megapixel: int | None) -> None:
    """1.9073484e-08 USD per pixel, at three rates."""
    defaults = PriceDefaults(price_usd=1.9073484e-08, usd_per_eth=float(rate))
    price = price_list([ModelConfig("m")], defaults).quote("m")

    assert price == Price(Wei(wei), Pixels(1))
    if one_megapixel is not None:
        assert price.fee(Pixels(1024 * 1024)) == one_megapixel


@pytest.mark.parametrize(
    ("price", "unit", "currency", "expected"),
    [
        ("4768371", 1, "wei", Fraction(4768371)),
        ("0.5", 1, "wei", Fraction(1, 2)),
        ("1", 3, "wei", Fraction(1, 3)),
        ("0.000000000001", 1, "eth", Fraction(10**6)),
        ("0.02", 1048576, "usd", Fraction(2, 100) * 10**18 / 3000 / 1048576),
        ("0", 1, "usd", Fraction(0)),
    ],
)
def test_each_currency_is_exact(price: str, unit: int, currency: str, expected: Fraction) -> None:
    """Nothing is rounded before the wire."""
    model = ModelConfig("m", price_per_unit=Decimal(price), pixels_per_unit=unit, currency=currency)

    assert wei_per_pixel(model, DEFAULTS) == expected


def test_the_wire_price_is_rounded_up_to_a_thousandth_of_a_wei_once() -> None:
    """A third of a wei is quoted as 0.334."""
    model = ModelConfig("m", price_per_unit=Decimal(1), pixels_per_unit=3)

    assert price_list([model], DEFAULTS).quote("m") == Price(Wei(167), Pixels(500))


def test_a_gateways_own_price_comes_before_the_general_one() -> None:
    """Addresses compare without case; a model that is not sold has no price."""
    models = [
        ModelConfig("m", price_per_unit=Decimal(10)),
        ModelConfig("m", price_per_unit=Decimal(7), gateway=GATEWAY),
        ModelConfig("private", price_per_unit=Decimal(1), gateway=GATEWAY),
    ]
    prices = price_list(models, DEFAULTS)

    assert prices.models == ("m", "private")
    assert prices.quote("m") == prices.quote("m", "0x" + "00" * 20) == Price(Wei(10), Pixels(1))
    assert prices.quote("m", GATEWAY.lower()) == Price(Wei(7), Pixels(1))
    assert prices.quote("private") is None
    assert prices.quote("private", GATEWAY.upper()) == Price(Wei(1), Pixels(1))
    assert prices.quote("unknown") is None


def test_a_price_that_does_not_fit_the_wire_is_refused_by_name() -> None:
    """Two int64 carry a price."""
    model = ModelConfig("dear", price_per_unit=Decimal(10) ** 30)

    with pytest.raises(ConfigError, match="^the price of dear cannot be quoted: price must be below"):
        price_list([model], DEFAULTS)
