"""The request's fields and their rules."""

import base64

import pytest

from fourfold.errors import InvalidParameterError, ValidationError
from fourfold.protocol import wire


def parse(**form: str) -> wire.UpscaleFields:
    return wire.parse_fields(form, max_prompt_chars=20, max_steps=150)


def test_absent_and_empty_optional_fields_take_their_defaults() -> None:
    """SDKs send empty ones."""
    expected = wire.UpscaleFields("", "", safety_check=True, seed=None, num_inference_steps=None)

    assert parse() == expected
    assert parse(model_id="", prompt="", safety_check="", seed="", num_inference_steps=" ") == expected


@pytest.mark.parametrize(("text", "seed"), [("0", 0), ("9007199254740991", 2**53 - 1), (" 7 ", 7), ("+7", 7)])
def test_zero_is_a_seed(text: str, seed: int) -> None:
    """And so is everything that a JavaScript client can hold."""
    assert parse(seed=text).seed == seed


@pytest.mark.parametrize("text", ["9007199254740992", "-1", "99999999999999999999"])
def test_a_seed_out_of_range_is_refused(text: str) -> None:
    """Well-formed but refused: 400."""
    with pytest.raises(InvalidParameterError, match="seed"):
        parse(seed=text)


@pytest.mark.parametrize("field", ["seed", "num_inference_steps"])
@pytest.mark.parametrize("text", ["abc", "1.5", "0x10", "1e3", "١", "1 2", "9" * 40])
def test_a_malformed_number_is_a_validation_error(field: str, text: str) -> None:
    """422, naming the field."""
    with pytest.raises(ValidationError) as caught:
        parse(**{field: text})
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["0", "151", "-3"])
def test_steps_out_of_range_are_refused(text: str) -> None:
    """1 to the limit."""
    with pytest.raises(InvalidParameterError, match="1 to 150"):
        parse(num_inference_steps=text)


@pytest.mark.parametrize(
    ("text", "expected"), [("true", True), ("False", False), ("1", True), ("0", False), ("F", False), ("on", True)]
)
def test_booleans_are_read_as_go_and_python_write_them(text: str, expected: bool) -> None:
    """Both SDK families and curl users."""
    assert parse(safety_check=text).safety_check is expected


def test_a_malformed_boolean_is_a_validation_error() -> None:
    """It must not silently skip the check."""
    with pytest.raises(ValidationError):
        parse(safety_check="nope")


def test_a_prompt_has_a_length() -> None:
    """Counted in characters, not bytes."""
    assert parse(prompt="ü" * 20).prompt == "ü" * 20
    with pytest.raises(InvalidParameterError, match="20 characters, got 21"):
        parse(prompt="ü" * 21)


def test_unknown_fields_are_ignored() -> None:
    """A newer client still gets its picture."""
    assert parse(guidance_scale="9", seed="1").seed == 1


def test_fields_go_out_as_they_came_in() -> None:
    """Absent ones stay absent."""
    fields = parse(seed="0", prompt="cat", model_id="m")

    assert fields.to_form() == {"prompt": "cat", "model_id": "m", "safety_check": "true", "seed": "0"}
    assert parse(**fields.to_form()) == fields


@pytest.mark.parametrize("text", ["", "a/b", "x" * 65, "ü", "a b", "..%2f"])
def test_job_ids_are_safe_in_paths_and_logs(text: str) -> None:
    """They name folders."""
    with pytest.raises(ValidationError):
        wire.check_job_id(text)


def test_data_urls_go_there_and_back() -> None:
    """And what is none is told from what is broken."""
    assert wire.decode_data_url(wire.data_url(b"\x89PNG")) == b"\x89PNG"
    assert wire.decode_data_url("https://example/x.png") is None
    assert wire.decode_data_url("data:text/plain;base64," + base64.b64encode(b"x").decode()) is None
    with pytest.raises(ValueError, match=r".*"):
        wire.decode_data_url("data:image/png;base64,%%%")
