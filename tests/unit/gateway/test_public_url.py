"""The address of a result."""

import pytest

from fourfold.gateway.public_url import result_url

KEY = "a" * 32 + "/" + "b" * 32 + ".png"


def url(host: str, **options: object) -> str:
    arguments = {"public_url": None, "scheme": "http", "listening": ("127.0.0.1", 9935), **options}
    return result_url(KEY, host=host, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "host",
    ["gateway.example", "gateway.example:8080", "my_gateway:9935", "10.0.0.1", "[::1]:9935", "[2001:db8::1]", "a"],
)
def test_the_host_that_was_asked_is_used(host: str) -> None:
    """A client finds its result where it found the gateway."""
    assert url(host) == f"http://{host}/stream/{KEY}"


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example/path",
        "evil.example#",
        "user@evil.example",
        "evil.example:99999",
        "evil.example:port",
        "a b",
        "evil.example\\@good",
        "evil.example?x",
        "-x",
        "h:1:2",
        "<script>",
        "[::1",
        "a" * 300,
        "h\n",
    ],
)
def test_a_host_that_is_none_is_not_repeated(host: str) -> None:
    """What has not the shape of a host gives way to the address that is listened at."""
    assert url(host) == f"http://127.0.0.1:9935/stream/{KEY}"


def test_the_operators_word_goes_first() -> None:
    """`public_url` is used whatever was asked, with or without a slash at its end."""
    assert url("x", public_url="https://cdn.example/base/") == f"https://cdn.example/base/stream/{KEY}"


def test_an_ipv6_listening_address_is_bracketed() -> None:
    """A URL needs brackets around IPv6."""
    assert url("", listening=("::1", 80)) == f"http://[::1]:80/stream/{KEY}"
