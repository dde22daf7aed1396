"""Inputs under suspicion."""

from fourfold.gateway.quarantine import Quarantine


def test_what_was_added_is_held_for_a_while() -> None:
    """And then forgotten."""
    quarantine = Quarantine()
    assert not quarantine
    quarantine.add("x", now_s=0.0)

    assert quarantine
    assert quarantine.holds("x", now_s=599.0)
    assert not quarantine.holds("y", now_s=0.0)
    assert not quarantine.holds("x", now_s=600.0)
    assert not quarantine


def test_the_oldest_leaves_when_there_are_too_many() -> None:
    """Memory stays bounded; adding again counts as new."""
    quarantine = Quarantine()
    for number in range(1000):
        quarantine.add(str(number), now_s=0.0)
    quarantine.add("0", now_s=0.0)
    quarantine.add("new", now_s=0.0)

    assert quarantine.holds("0", now_s=1.0)
    assert not quarantine.holds("1", now_s=1.0)
    assert quarantine.holds("2", now_s=1.0)
