"""What a client wants to get, read from its form and its ``Accept``."""

import pytest

from fourfold.errors import InvalidParameterError, ValidationError
from fourfold.gateway.output_form import Wanted, parse_wanted
from fourfold.imaging import OutputOptions


@pytest.mark.parametrize("accept", ["", "*/*", "application/json", "text/html,application/xhtml+xml,*/*;q=0.8"])
def test_who_asks_for_nothing_gets_what_livepeer_gives(accept: str) -> None:
    """A PNG four times as large, its address in JSON; empty fields count as absent."""
    assert parse_wanted({}, accept) == Wanted()
    assert parse_wanted({"output_format": "", "scale": " "}, accept) == Wanted()


def test_every_field_is_read() -> None:
    """As they are sent in a form: text."""
    form = {"output_format": "WebP", "quality": "80", "metadata": "strip", "width": "100", "height": "90"}
    form |= {"fit": "exact"}

    assert parse_wanted(form, "") == Wanted(OutputOptions("webp", 80, "strip", None, 100, 90, "exact"))
    assert parse_wanted({"scale": "2.5"}, "").options.scale == 2.5
    assert parse_wanted({"scale": str(4 / 3)}, "").options.scale == 4 / 3


@pytest.mark.parametrize(
    ("accept", "form", "is_body", "kind"),
    [
        ("image/jpeg", {}, True, "jpeg"),
        ("image/avif, image/webp;q=0.8", {}, True, "avif"),
        ("image/webp;q=0.5, image/png", {}, True, "png"),
        ("image/*", {}, True, "png"),
        ("image/*", {"output_format": "tiff"}, True, "tiff"),
        ("image/jpeg", {"output_format": "jpeg"}, True, "jpeg"),
        ("image/jpeg;q=0.5, application/json", {}, False, "png"),
        ("application/json, image/webp", {}, False, "png"),
        ("image/jpeg;q=0", {}, False, "png"),
        ("image/heic", {}, False, "png"),
        ("image/jpeg;q=nonsense", {}, False, "png"),
    ],
)
def test_accept_may_ask_for_the_picture_itself(accept: str, form: dict[str, str], is_body: bool, kind: str) -> None:
    """Only a client that names images, and prefers them, gets one instead of JSON."""
    wanted = parse_wanted(form, accept)

    assert (wanted.is_body, wanted.options.format) == (is_body, kind)


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"quality": "high"}, ValidationError),
        ({"scale": "2x"}, ValidationError),
        ({"scale": "nan"}, ValidationError),
        ({"width": "1.5"}, ValidationError),
        ({"output_format": "gif"}, InvalidParameterError),
        ({"output_format": "jpeg", "quality": "0"}, InvalidParameterError),
        ({"scale": "5"}, InvalidParameterError),
        ({"metadata": "some"}, InvalidParameterError),
        ({"fit": "exact"}, InvalidParameterError),
        ({"width": "0"}, InvalidParameterError),
    ],
)
def test_malformed_is_422_and_refused_is_400(form: dict[str, str], error: type[Exception]) -> None:
    """The two kinds of wrong that clients tell apart."""
    with pytest.raises(error):
        parse_wanted(form, "")


def test_form_and_accept_must_not_disagree() -> None:
    """Neither of two formats would be right."""
    with pytest.raises(InvalidParameterError, match="Accept asks for png and output_format for jpeg"):
        parse_wanted({"output_format": "jpeg"}, "image/png")
