"""Laws of ranking and of the choice of a model."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.errors import NoOrchestratorError, PriceAboveMaxError, UnknownModelError
from fourfold.gateway.selection import FALLBACK_MODEL, LIVEPEER_MODEL, Offer, rank, resolve_model
from fourfold.protocol.units import Pixels, Price, Wei

prices = st.none() | st.builds(Price, st.integers(0, 10**9).map(Wei), st.integers(1, 1000).map(Pixels))
offers = st.builds(
    Offer,
    orchestrator=st.integers(0, 30).map(lambda n: f"https://o{n}:8935"),
    url=st.just("https://o:8935"),
    model_id=st.just("m"),
    price=prices,
    warm=st.booleans(),
    capacity=st.integers(0, 4),
    is_ours=st.booleans(),
    open_jobs=st.integers(0, 8),
    s_per_megapixel=st.floats(0, 100),
    is_penalised=st.booleans(),
)
offer_lists = st.lists(offers, max_size=8)
pixels = st.integers(1, 10**8).map(Pixels)
model_ids = st.sampled_from(["a/x", "b/y", "c/z", LIVEPEER_MODEL, FALLBACK_MODEL])
model_sets = st.frozensets(model_ids)


@given(offers=offer_lists, n=pixels)
def test_without_a_ceiling_ranking_only_reorders(offers: list[Offer], n: Pixels) -> None:
    """Nobody is dropped and nobody invented."""
    ranked = rank(offers, input_pixels=n)

    assert sorted(map(repr, offers)) == sorted(map(repr, ranked))


@given(offers=offer_lists, ceiling=prices, n=pixels)
def test_nobody_above_the_ceiling_is_chosen(offers: list[Offer], ceiling: Price | None, n: Pixels) -> None:
    """The ceiling holds exactly, or the nearest price is told."""
    limit = None if ceiling is None else ceiling.per_pixel
    affordable = [o for o in offers if limit is None or o.wei_per_pixel <= limit]
    if offers and not affordable:
        with pytest.raises(PriceAboveMaxError, match="nearest offer"):
            rank(offers, input_pixels=n, max_price=ceiling)
        return

    assert len(affordable) == len(rank(offers, input_pixels=n, max_price=ceiling))


@given(offers=st.lists(offers, min_size=2, max_size=8), n=pixels)
def test_order_of_precedence(offers: list[Offer], n: Pixels) -> None:
    """Those without room come last, before them the penalised; among equals the sooner, then the cheaper, is first."""
    ranked = rank(offers, input_pixels=n)
    for earlier, later in itertools.pairwise(ranked):
        one = (earlier.capacity == 0, earlier.is_penalised)
        other = (later.capacity == 0, later.is_penalised)
        assert one <= other
        if one == other:
            waits = [o.wait_s(n, cold_start_s=30.0) for o in (earlier, later)]
            assert waits[0] <= waits[1]
            if waits[0] == waits[1]:
                assert earlier.wei_per_pixel <= later.wei_per_pixel


@given(offers=offer_lists, n=pixels, seed=st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_who_answered_first(offers: list[Offer], n: Pixels, seed: object) -> None:
    """Ranking is a function of the set of offers."""
    shuffled = list(offers)
    seed.shuffle(shuffled)  # type: ignore[attr-defined]

    def key(offer: Offer) -> tuple[object, ...]:
        wait_s = offer.wait_s(n, cold_start_s=30.0)
        return offer.capacity == 0, offer.is_penalised, wait_s, offer.wei_per_pixel, offer.orchestrator

    assert [key(o) for o in rank(offers, input_pixels=n)] == [key(o) for o in rank(shuffled, input_pixels=n)]


@given(offer=offers, n=pixels)
def test_the_fee_is_the_price_rounded_up(offer: Offer, n: Pixels) -> None:
    """The fee is never below the quote and less than one wei above it; no price is no fee."""
    assert 0 <= offer.fee(n) - n * offer.wei_per_pixel < 1
    assert offer.price is not None or offer.fee(n) == 0


@given(requested=model_ids, offered=model_sets, known=model_sets)
def test_a_named_model_is_never_substituted(requested: str, offered: frozenset[str], known: frozenset[str]) -> None:
    """What was named runs, or nothing does, and the reason tells known from unknown."""
    try:
        chosen = resolve_model(requested, offered=offered, known=known)
    except UnknownModelError:
        assert requested not in offered | known
    except NoOrchestratorError:
        assert requested in known - offered
    else:
        assert requested == chosen and chosen in offered


@given(offered=model_sets, known=model_sets, default=st.none() | model_ids)
def test_a_request_that_names_none_gets_what_is_offered(
    offered: frozenset[str], known: frozenset[str], default: str | None
) -> None:
    """The operator's default if offered; else Livepeer's, ours, the lowest id, in this order."""
    try:
        chosen = resolve_model("", offered=offered, known=known, default_model=default)
    except NoOrchestratorError:
        assert not offered or default not in offered
        return
    assert chosen in offered
    if default is not None:
        assert default == chosen
    elif LIVEPEER_MODEL in offered:
        assert chosen == LIVEPEER_MODEL
    elif FALLBACK_MODEL in offered:
        assert chosen == FALLBACK_MODEL
    else:
        assert min(offered) == chosen


def test_an_alias_is_the_only_substitution() -> None:
    """An operator's alias maps one id to another, once."""
    aliases = {LIVEPEER_MODEL: FALLBACK_MODEL, FALLBACK_MODEL: "never/followed"}

    chosen = resolve_model(LIVEPEER_MODEL, offered=[FALLBACK_MODEL], known=[LIVEPEER_MODEL], aliases=aliases)

    assert chosen == FALLBACK_MODEL


def test_refusals_list_what_is_on_offer() -> None:
    """Both refusals of a named model tell what could be asked for instead."""
    with pytest.raises(UnknownModelError, match="on offer: a/x, b/y"):
        resolve_model("nope", offered=["b/y", "a/x"], known=[])
    with pytest.raises(NoOrchestratorError, match="nothing is on offer"):
        resolve_model("a/x", offered=[], known=["a/x"])


def test_the_nearest_price_is_told_in_wei() -> None:
    """The message names ceiling and nearest price, to a thousandth of a wei."""
    offer = Offer("https://o:1", "https://o:1", "m", Price(Wei(7), Pixels(2)), True, 1, True)

    with pytest.raises(PriceAboveMaxError, match=r"ceiling is 2 wei .* costs 3\.5;"):
        rank([offer], input_pixels=Pixels(1), max_price=Price(Wei(2), Pixels(1)))


def test_a_loaded_orchestrator_comes_after_an_idle_one() -> None:
    """Among orchestrators of unknown speed the one with a free place is first."""
    busy = Offer("https://a:1", "https://a:1", "m", None, True, 1, True, open_jobs=1)
    idle = Offer("https://b:1", "https://b:1", "m", None, True, 1, True)

    assert rank([busy, idle], input_pixels=Pixels(10**6)) == [idle, busy]
    assert busy.wei_per_pixel == Fraction(0)
