"""The fields that Livepeer's API does not have: read, checked, and sent on only where a client gave them."""

import pytest

from fourfold.errors import InvalidParameterError, ValidationError
from fourfold.protocol.wire import UpscaleFields, parse_fields

GIVEN = {"negative_prompt": "dark, blurry", "guidance_scale": "4.5", "noise_level": "0", "mode": "fast"}


def parse(form: dict[str, str]) -> UpscaleFields:
    return parse_fields(form, max_prompt_chars=20, max_steps=150)


def test_they_survive_a_hop() -> None:
    """What one part reads, the next one reads again."""
    fields = parse({"prompt": "cat", **GIVEN})

    assert (fields.guidance_scale, fields.noise_level, fields.mode) == (4.5, 0, "fast")
    assert parse(fields.to_form()) == fields


def test_absent_ones_are_never_sent() -> None:
    """A Livepeer peer then sees its own fields only; an empty one counts as absent."""
    form = parse({"prompt": "cat", **dict.fromkeys(GIVEN, "")}).to_form()

    assert GIVEN.keys().isdisjoint(form)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("guidance_scale", "high", ValidationError),
        ("guidance_scale", "nan", InvalidParameterError),
        ("guidance_scale", "-1", InvalidParameterError),
        ("noise_level", "20.5", ValidationError),
        ("noise_level", "351", InvalidParameterError),
        ("noise_level", "-1", InvalidParameterError),
        ("mode", "best", InvalidParameterError),
        ("negative_prompt", "x" * 21, InvalidParameterError),
    ],
)
def test_a_wrong_one_is_refused(name: str, value: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse({name: value})
