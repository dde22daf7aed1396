"""Laws of prices, for any entry an operator may write."""

import json
import math
from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from fourfold.errors import ConfigError
from fourfold.orchestrator.models import ModelConfig, parse_models
from fourfold.orchestrator.pricing import PriceDefaults, price_list, wei_per_pixel
from fourfold.protocol.units import Pixels

DEFAULTS = PriceDefaults(price_usd=Decimal("1.9073484e-08"), usd_per_eth=Decimal(3000))

prices = st.decimals(min_value=0, max_value=20, places=12)  # a pixel for 27 USD is beyond the wire's int64
units = st.integers(1, 10**7)


@given(price=prices, unit=units, currency=st.sampled_from(["wei", "usd"]), pixels=st.integers(0, 10**8))
def test_a_fee_is_never_below_the_operators_price_and_hardly_above(
    price: Decimal, unit: int, currency: str, pixels: int
) -> None:
    """The wire's rounding costs a gateway less than 0.001 wei per pixel, plus one wei."""
    model = ModelConfig("m", price_per_unit=price, pixels_per_unit=unit, currency=currency)
    exact = wei_per_pixel(model, DEFAULTS) * pixels
    quoted = price_list([model], DEFAULTS).quote("m")
    assert quoted is not None
    fee = quoted.fee(Pixels(pixels))

    assert exact <= fee < exact + Fraction(pixels, 1000) + 1


@given(text=st.from_regex(r"(0|[1-9][0-9]{0,15})(\.[0-9]{1,12})?([eE][+-]?[0-9]{1,2})?", fullmatch=True))
def test_a_price_is_the_number_that_stands_in_the_file(text: str) -> None:
    """Digit for digit; what is refused is refused for its length, never changed."""
    file = f'[{{"pipeline": "upscale", "model_id": "m", "price_per_unit": {text}}}]'
    try:
        (model,) = parse_models(file)
    except ConfigError as error:
        assert "digits" in str(error)
    else:
        assert model.price_per_unit is not None
        assert Fraction(model.price_per_unit) == Fraction(text)


@given(value=st.recursive(st.none() | st.booleans() | st.floats() | st.text() | st.integers(), st.lists))
def test_any_json_as_a_field_is_taken_or_refused_with_a_reason(value: object) -> None:
    """No value of any field ends in anything but an entry or a ConfigError."""
    for name in (
        "url",
        "token",
        "warm",
        "capacity",
        "gateway",
        "price_per_unit",
        "pixels_per_unit",
        "currency",
        "path",
    ):
        try:
            parse_models(json.dumps([{"pipeline": "upscale", "model_id": "m", name: value}]))
        except ConfigError as error:
            assert "aiModels.json" in str(error)


@given(usd=st.integers(1, 10**6), rate=st.integers(1, 10**5))
def test_usd_becomes_wei_at_the_rate(usd: int, rate: int) -> None:
    """One unit of a price of *usd* dollars costs usd / rate ether."""
    model = ModelConfig("m", price_per_unit=Decimal(usd), pixels_per_unit=10**6, currency="usd")
    wei = wei_per_pixel(model, PriceDefaults(price_usd=0.0, usd_per_eth=float(rate)))

    assert math.isclose(wei * 10**6, usd / rate * 10**18)
    assert wei * 10**6 * rate == usd * 10**18
