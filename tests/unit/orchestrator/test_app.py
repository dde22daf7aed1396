"""The orchestrator's own address, as it tells it to others. Over real ports: tests/integration/orchestrator."""

import pytest

from fourfold.orchestrator.app import ServiceAddress
from fourfold.protocol.grpc_asgi import Call


@pytest.mark.parametrize(
    ("configured", "server", "expected"),
    [
        ("https://orch.example:8935/", ("10.0.0.1", 8935), "https://orch.example:8935"),
        (None, ("10.0.0.1", 8935), "https://10.0.0.1:8935"),
        (None, ("2001:db8::1", 8935), "https://[2001:db8::1]:8935"),
        (None, None, "https://localhost"),
    ],
)
def test_a_grpc_caller_is_told_where_its_call_arrived(
    configured: str | None, server: tuple[str, int] | None, expected: str
) -> None:
    """Unless the operator says otherwise; its authority is only a name in our certificate."""
    assert ServiceAddress(configured).of_call(Call("localhost", server)) == expected


def test_an_http_caller_is_told_the_name_it_used() -> None:
    """Unless the operator says otherwise."""
    assert ServiceAddress(None).of_request({"scheme": "https"}, "o:1") == "https://o:1"
    assert ServiceAddress("https://p:2").of_request({"scheme": "https"}, "o:1") == "https://p:2"
