"""Money and pixels: whole wei, rounded once, by one function that both sides call. Pure."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, NewType

Wei = NewType("Wei", int)
"""10^-18 ETH. Prices and fees are whole wei."""

Pixels = NewType("Pixels", int)
"""Pixels of the input image, width x height, upright."""

WEI_PER_ETH: Final = 10**18
_INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Price:
    """*price_per_unit* wei buy *pixels_per_unit* input pixels."""

    price_per_unit: Wei
    pixels_per_unit: Pixels

    def __post_init__(self) -> None:
        if self.price_per_unit < 0:
            raise ValueError(f"price_per_unit must be 0 or more wei, got {self.price_per_unit}")
        if self.pixels_per_unit < 1:
            raise ValueError(f"pixels_per_unit must be 1 or more, got {self.pixels_per_unit}")

    @property
    def per_pixel(self) -> Fraction:
        """Wei per input pixel, exactly."""
        return Fraction(self.price_per_unit, self.pixels_per_unit)

    def fee(self, input_pixels: Pixels) -> Wei:
        """Return the fee, rounded up: less than 1 wei above the quote, never below it."""
        return Wei(math.ceil(input_pixels * self.per_pixel))


def price_from_fraction(wei_per_pixel: Fraction) -> Price:
    """Return the price for a wire that carries two int64: rounded up to 0.001 wei per pixel, once.

    Raises: ValueError if the price is negative or beyond int64.
    Source: go-livepeer rounds to three decimals too (``server/rpc.go``), but to nearest; up keeps it above the quote.
    """
    milliwei = math.ceil(wei_per_pixel * 1000)
    reduced = Fraction(milliwei, 1000)
    if reduced.numerator > _INT64_MAX:
        raise ValueError(f"price must be below 2^63 thousandths of a wei per pixel, got {float(wei_per_pixel)}")
    return Price(Wei(reduced.numerator), Pixels(reduced.denominator))


def wei_per_pixel(usd_per_pixel: float | int | str, *, usd_per_eth: float | int | str) -> Fraction:
    """Return wei per pixel for a price in USD, exactly, from the decimal digits as written.

    Raises: ValueError if *usd_per_eth* is not positive or *usd_per_pixel* is negative.
    """
    usd, rate = Fraction(str(usd_per_pixel)), Fraction(str(usd_per_eth))
    if rate <= 0 or usd < 0:
        raise ValueError(f"expected usd_per_eth > 0 and a price >= 0, got {usd_per_eth} and {usd_per_pixel}")
    return usd * WEI_PER_ETH / rate
