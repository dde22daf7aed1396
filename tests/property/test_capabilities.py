"""Laws of capabilities."""

from hypothesis import given
from hypothesis import strategies as st

from fourfold.protocol.capabilities import (
    ModelOffer,
    demand,
    from_bitstring,
    incompatibility,
    offer,
    offered_models,
    to_bitstring,
)

bits = st.frozensets(st.integers(0, 300))
offers = st.lists(
    st.builds(
        ModelOffer,
        st.text(min_size=1, max_size=20),
        warm=st.booleans(),
        capacity=st.integers(0, 2**32 - 1),
        capacity_in_use=st.integers(0, 2**32 - 1),
        runner_version=st.text(max_size=8),
    ),
    unique_by=lambda model: model.model_id,
)


@given(bits=bits)
def test_a_bitstring_holds_exactly_its_bits(bits: frozenset[int]) -> None:
    """There and back again, without a word too many."""
    words = to_bitstring(bits)

    assert from_bitstring(words) == bits
    assert all(0 <= word < 2**64 for word in words)
    assert len(words) == (max(bits) // 64 + 1 if bits else 0)


@given(models=offers)
def test_every_offered_model_can_be_had(models: list[ModelOffer]) -> None:
    """A demand for what an offer lists fits it, and what is read is what was said."""
    capabilities = offer(models, capacity=1)

    assert offered_models(capabilities) == {model.model_id: model for model in models}
    assert all(incompatibility(demand(model.model_id), capabilities) is None for model in models)
