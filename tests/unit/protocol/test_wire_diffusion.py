"""The fields that Livepeer's API does not have: read, checked, and sent on only where a client gave them."""

import json

import pytest

from fourfold.errors import InvalidParameterError, ValidationError
from fourfold.protocol.wire import RunFacts, UpscaleFields, parse_fields, read_run_facts

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
        ("guidance_scale", "nan", ValidationError),
        ("guidance_scale", "1_0", ValidationError),
        ("guidance_scale", "٣", ValidationError),
        ("guidance_scale", "100.1", InvalidParameterError),
        ("guidance_scale", "1e400", InvalidParameterError),
        ("guidance_scale", "-1", InvalidParameterError),
        ("noise_level", "20.5", ValidationError),
        ("noise_level", "nan", ValidationError),
        ("num_inference_steps", "0", InvalidParameterError),
        ("num_inference_steps", "151", InvalidParameterError),
        ("seed", "[1, 2]", ValidationError),
        ("seed", "1,2", ValidationError),
        ("noise_level", "351", InvalidParameterError),
        ("noise_level", "-1", InvalidParameterError),
        ("mode", "best", InvalidParameterError),
        ("tileable", "perhaps", ValidationError),
        ("negative_prompt", "x" * 21, InvalidParameterError),
    ],
)
def test_a_wrong_one_is_refused(name: str, value: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse({name: value})


def test_the_facts_of_a_run_survive_a_hop() -> None:
    """What is not known has no header."""
    facts = RunFacts(tiles=4, mode="fast", padded_px=0, warnings=("the last 5 tokens were not used", "ü"))

    assert read_run_facts(facts.to_headers()) == facts
    assert all(value.isascii() for value in facts.to_headers().values())
    assert RunFacts().to_headers() == {}


@pytest.mark.parametrize(
    "headers",
    [
        {"Fourfold-Tiles": "-1", "Fourfold-Mode": "best", "Fourfold-Warnings": "no"},
        {"Fourfold-Tiles": "9" * 10, "Fourfold-Warnings": '{"a": 1}'},
        {"Fourfold-Tiles": "", "Fourfold-Padded": "wide", "Fourfold-Warnings": "[1, null]"},
        {"Fourfold-Warnings": "[" * 5000},
    ],
)
def test_facts_that_make_no_sense_count_as_not_said(headers: dict[str, str]) -> None:
    assert read_run_facts(headers) == RunFacts()


def test_a_talkative_worker_is_cut_short() -> None:
    facts = read_run_facts({"Fourfold-Warnings": json.dumps(["x" * 1000] * 50)})

    assert len(facts.warnings) == 16
    assert {len(warning) for warning in facts.warnings} == {300}
