"""Choose: which model a request means, and in which order the offers for it are tried. Pure."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from fourfold.errors import NoOrchestratorError, PriceAboveMaxError, UnknownModelError
from fourfold.protocol.units import Pixels, Price, Wei, price_from_fraction, wei_per_pixel

#: What Livepeer's clients mean when they name no model.
LIVEPEER_MODEL: Final = "stabilityai/stable-diffusion-x4-upscaler"
#: What we run where nobody offers that one.
FALLBACK_MODEL: Final = "fourfold/realesrgan-x4plus"

_PIXELS_PER_MEGAPIXEL: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Offer:
    """What one orchestrator advertises for one model, plus what we measured."""

    orchestrator: str  #: its base URL as configured; the identity that is remembered
    url: str  #: the base URL that jobs go to, as the orchestrator names it
    model_id: str
    price: Price | None  #: None = it names none (go-livepeer off-chain): free
    warm: bool  #: the model is loaded
    capacity: int  #: jobs at once; 0 = no room now
    is_ours: bool  #: speaks our additions to Livepeer's protocol
    open_jobs: int = 0  #: jobs there now: this gateway's, or more where the orchestrator says so
    s_per_megapixel: float = 0.0  #: 0 until its first finished job, so that newcomers win some
    is_penalised: bool = False  #: a worker of its failed lately; tried after the others

    @property
    def wei_per_pixel(self) -> Fraction:
        """The price of one input pixel, exactly."""
        return Fraction(0) if self.price is None else self.price.per_pixel

    def fee(self, input_pixels: Pixels) -> Wei:
        """Return what a job of *input_pixels* costs here."""
        return Wei(0) if self.price is None else self.price.fee(input_pixels)

    def wait_s(self, input_pixels: Pixels, *, cold_start_s: float) -> float:
        """Return how long a job of *input_pixels* probably takes here, the jobs before it and a cold start included."""
        rounds = 1 + self.open_jobs // max(self.capacity, 1)
        running_s = rounds * self.s_per_megapixel * input_pixels / _PIXELS_PER_MEGAPIXEL
        # A newcomer's speed is unknown, its queue is not: the loaded one comes later.
        return running_s + (0.0 if self.warm else cold_start_s) + (rounds - 1)


def rank(
    offers: Iterable[Offer], *, input_pixels: Pixels, max_price: Price | None = None, cold_start_s: float = 30.0
) -> list[Offer]:
    """Return the affordable *offers*: soonest, cheapest, least busy first; the penalised, then those without room last.

    Args: *max_price*, the ceiling; None = any price.
    Raises: PriceAboveMaxError, with the nearest price, if there are offers and every one is above the ceiling.
    """
    listed = list(offers)
    ceiling = None if max_price is None else max_price.per_pixel
    affordable = [o for o in listed if ceiling is None or o.wei_per_pixel <= ceiling]
    if listed and not affordable:
        assert ceiling is not None
        nearest = min(o.wei_per_pixel for o in listed)
        raise PriceAboveMaxError(
            f"the ceiling is {_decimal(ceiling)} wei per input pixel, the nearest offer for "
            f"{listed[0].model_id} costs {_decimal(nearest)}; raise gateway.max_price_usd or choose another model"
        )

    def key(offer: Offer) -> tuple[bool, bool, float, Fraction, int, str]:
        wait_s = offer.wait_s(input_pixels, cold_start_s=cold_start_s)
        return offer.capacity == 0, offer.is_penalised, wait_s, offer.wei_per_pixel, offer.open_jobs, offer.orchestrator

    return sorted(affordable, key=key)


def price_ceiling(max_price_usd: float | None, *, usd_per_eth: float) -> Price | None:
    """Return the operator's ceiling, USD per input pixel, in wei; None = any price.

    Rounded like a price on the wire, so that an offer at exactly the ceiling's USD passes.
    """
    if max_price_usd is None:
        return None
    return price_from_fraction(wei_per_pixel(max_price_usd, usd_per_eth=usd_per_eth))


def resolve_model(
    requested: str,
    *,
    offered: Collection[str],
    known: Collection[str],
    default_model: str | None = None,
    aliases: Mapping[str, str] | None = None,
) -> str:
    """Return the id of the model that runs for a request that named *requested*; "" = it named none.

    A model that was named is never substituted, but by an alias that the operator set.

    Args: *offered*, the ids on offer now; *known*, the ids of the local registry and of earlier offers.
    Raises:
        UnknownModelError: a model was named that is neither offered nor known.
        NoOrchestratorError: nobody offers the model now.
    """
    if not requested:
        return _default_model(offered, default_model)
    model_id = (aliases or {}).get(requested, requested)
    if model_id in offered:
        return model_id
    if model_id in known:
        raise NoOrchestratorError(f"nobody offers {model_id!r} now; {_listing(offered)}")
    raise UnknownModelError(f"no model {model_id!r}; {_listing(offered)}")


def _default_model(offered: Collection[str], default_model: str | None) -> str:
    """Return what runs for a request that names no model."""
    if default_model is not None:
        if default_model not in offered:
            raise NoOrchestratorError(f"nobody offers the default model {default_model!r} now; {_listing(offered)}")
        return default_model
    for model_id in (LIVEPEER_MODEL, FALLBACK_MODEL):
        if model_id in offered:
            return model_id
    if not offered:
        raise NoOrchestratorError("no orchestrator offers any model now; try again later")
    return min(offered)


def _listing(offered: Collection[str]) -> str:
    """Return the sentence that tells what is on offer."""
    return f"on offer: {', '.join(sorted(offered))}" if offered else "nothing is on offer"


def _decimal(value: Fraction) -> str:
    """Return *value* for people: up to three decimals, the resolution of prices on the wire."""
    return f"{float(value):.3f}".rstrip("0").rstrip(".")
