"""Addresses of orchestrators."""

import pytest

from fourfold.errors import ConfigError
from fourfold.gateway.orchestrator_url import OrchestratorUrl, parse_orchestrator_url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://10.0.0.2:8935", "https://10.0.0.2:8935"),
        ("https://o.example", "https://o.example:8935"),
        ("o.example:1234", "https://o.example:1234"),
        ("o.example", "https://o.example:8935"),
        ("https://[::1]:8935/", "https://[::1]:8935"),
        ("https://o.example:443/base/", "https://o.example:443/base"),
        ("HTTPS://O.Example:1", "https://o.example:1"),
    ],
)
def test_what_operators_write_is_understood(text: str, expected: str) -> None:
    """The full form and Livepeer's short one."""
    assert str(parse_orchestrator_url(text)) == expected


@pytest.mark.parametrize(
    "text", ["http://o.example:8935", "https://", "", "https://u:p@o:1", "https://o:99999", "https://o:1?x", "ftp://o"]
)
def test_anything_else_is_refused(text: str) -> None:
    """Plain HTTP, credentials, queries and nonsense are errors of configuration."""
    with pytest.raises(ConfigError, match="https://host:port"):
        parse_orchestrator_url(text)


def test_any_address_means_where_it_was_seen() -> None:
    """An orchestrator that calls itself 0.0.0.0, as in Livepeer's examples, is where it answered."""
    seen_at = OrchestratorUrl("10.1.1.1", 8936)

    assert str(parse_orchestrator_url("https://0.0.0.0:8940", seen_at=seen_at)) == "https://10.1.1.1:8940"
    assert str(parse_orchestrator_url("https://other:8940", seen_at=seen_at)) == "https://other:8940"
