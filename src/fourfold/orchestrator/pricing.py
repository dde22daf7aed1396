"""ModelConfig -> Price -> fee. Pure and exact: fractions of wei until the one rounding that the wire needs.

Not here: rates that change (a rate is an argument), tickets, credit.
Source: go-livepeer ``core/orchestrator.go`` priceInfo, ``core/autoconvertedprice.go``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from fourfold.errors import ConfigError
from fourfold.orchestrator.models import ANY_GATEWAY, ModelConfig
from fourfold.protocol.units import WEI_PER_ETH, Price, price_from_fraction
from fourfold.protocol.units import wei_per_pixel as wei_from_usd


@dataclass(frozen=True, slots=True)
class PriceDefaults:
    """What an entry that names no price costs, and the rate that turns USD into wei."""

    price_usd: Decimal | float  #: USD per input pixel
    usd_per_eth: Decimal | float


@dataclass(frozen=True, slots=True)
class PriceList:
    """The prices of one orchestrator, as they stand on the wire: both sides compute fees from these."""

    model_to_gateway_to_price: Mapping[str, Mapping[str, Price]]

    @property
    def models(self) -> tuple[str, ...]:
        """The ids of what is sold, in the operator's order."""
        return tuple(self.model_to_gateway_to_price)

    def quote(self, model_id: str, gateway: str = ANY_GATEWAY) -> Price | None:
        """Return what *model_id* costs *gateway* (an address in hex, any case): its own price before the general one.

        None where the model is not sold, or not to this gateway.
        """
        prices = self.model_to_gateway_to_price.get(model_id, {})
        return prices.get(gateway.lower(), prices.get(ANY_GATEWAY))


def wei_per_pixel(model: ModelConfig, defaults: PriceDefaults) -> Fraction:
    """Return the exact price of one input pixel in wei, from the decimal digits as the operator wrote them.

    Raises: ValueError if the rate is not positive.
    """
    if model.price_per_unit is None:
        return wei_from_usd(str(defaults.price_usd), usd_per_eth=str(defaults.usd_per_eth))
    if model.currency == "usd":
        per_unit = wei_from_usd(str(model.price_per_unit), usd_per_eth=str(defaults.usd_per_eth))
    else:
        per_unit = Fraction(model.price_per_unit) * (WEI_PER_ETH if model.currency == "eth" else 1)
    return per_unit / model.pixels_per_unit


def price_list(models: Iterable[ModelConfig], defaults: PriceDefaults) -> PriceList:
    """Return the prices of *models*, each rounded up once to 0.001 wei per pixel.

    Raises: ConfigError naming the model whose price does not fit the wire.
    """
    prices: dict[str, dict[str, Price]] = {}
    for model in models:
        try:
            price = price_from_fraction(wei_per_pixel(model, defaults))
        except ValueError as exc:
            raise ConfigError(f"the price of {model.model_id} cannot be quoted: {exc}") from exc
        prices.setdefault(model.model_id, {})[model.gateway.lower()] = price
    return PriceList(prices)
