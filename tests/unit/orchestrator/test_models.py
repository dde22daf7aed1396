"""aiModels.json: what is read, and every way in which a file is refused."""

import dataclasses
import json
from decimal import Decimal

import pytest

from fourfold.errors import ConfigError
from fourfold.orchestrator.models import ModelConfig, parse_models

MODEL = "stabilityai/stable-diffusion-x4-upscaler"


def entry(**fields: object) -> dict[str, object]:
    """Return an entry with the fields every entry needs."""
    return {"pipeline": "upscale", "model_id": MODEL, **fields}


def refusal(*entries: object) -> str:
    """Return why a file of *entries* is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_models(json.dumps(entries), source="models.json")
    return str(caught.value)


def test_the_smallest_entry_means_livepeers_defaults() -> None:
    """Cold, one job at once, any gateway, the default price, the orchestrator's own worker."""
    (model,) = parse_models(json.dumps([entry()]))

    assert model == ModelConfig(MODEL)
    assert (model.warm, model.capacity, model.gateway, model.price_per_unit) == (False, 1, "default", None)
    assert (model.url, model.token, model.pixels_per_unit, model.currency) == (None, None, 1, "wei")


def test_every_field_is_read() -> None:
    """All of Livepeer's fields, `path` and `sha256`."""
    full = entry(
        url="http://10.0.0.2:8000/",
        token="s3cret",
        warm=True,
        capacity=3,
        optimization_flags={"SFAST": "true", "DEEPCACHE": False},
        gateway="0x" + "aB" * 20,
        price_per_unit=0.005,
        pixels_per_unit=1000,
        currency="USD",
    )
    own = entry(model_id="local/x", path="/weights.safetensors", sha256="ab" * 32)
    model, network = parse_models(json.dumps([full, own]))

    assert network == ModelConfig("local/x", path="/weights.safetensors", sha256="ab" * 32)
    assert model == ModelConfig(
        MODEL,
        url="http://10.0.0.2:8000",
        token="s3cret",
        warm=True,
        capacity=3,
        optimization_flags={"SFAST": "true", "DEEPCACHE": False},
        gateway="0x" + "aB" * 20,
        price_per_unit=Decimal("0.005"),
        pixels_per_unit=1000,
        currency="usd",
    )
    assert {field.name for field in dataclasses.fields(ModelConfig)} == {*full, *own}


def test_a_price_counts_as_its_digits_are_written() -> None:
    """No float lies between the file and the price."""
    text = (
        '[{"pipeline": "upscale", "model_id": "m", "price_per_unit": 1.9073484000000000000001e-08, "currency": "USD"}]'
    )
    (model,) = parse_models(text)

    assert model.price_per_unit == Decimal("1.9073484000000000000001e-08")


def test_a_token_is_not_shown() -> None:
    """A printed entry does not give its secret away."""
    assert "s3cret" not in repr(ModelConfig(MODEL, url="http://w", token="s3cret"))


def test_empty_texts_are_fields_that_are_not_set() -> None:
    """Files made for go-livepeer spell it that way."""
    (model,) = parse_models(json.dumps([entry(url="", token="", gateway="", currency="", path="")]))

    assert model == ModelConfig(MODEL)


@pytest.mark.parametrize("pixels", ["1e6", "1000000", "1000000.0"])
def test_pixels_per_unit_may_be_any_whole_number(pixels: str) -> None:
    """JSON does not tell 1e6 from 1000000."""
    text = f'[{{"pipeline": "upscale", "model_id": "m", "price_per_unit": 1, "pixels_per_unit": {pixels}}}]'

    assert parse_models(text)[0].pixels_per_unit == 1_000_000


def test_zero_is_a_price() -> None:
    """An operator may give his work away."""
    (model,) = parse_models(json.dumps([entry(price_per_unit=0)]))

    assert model.price_per_unit == Decimal(0)


def test_the_entry_and_the_field_are_named() -> None:
    """Entries count from 1, as people do."""
    reason = refusal(entry(model_id="a"), entry(model_id="b", capacity=0))

    assert reason == "models.json: entry 2 (b): capacity: expected 1 to 10000, got 0"


def test_a_price_as_text_is_refused_with_the_fix() -> None:
    """The form in Livepeer's documentation never parsed."""
    assert refusal(entry(price_per_unit="0.5e-2USD")).endswith('write "price_per_unit": 0.5e-2, "currency": "USD"')
    assert refusal(entry(price_per_unit="12 wei")).endswith('write "price_per_unit": 12, "currency": "WEI"')
    assert refusal(entry(price_per_unit="cheap")).endswith('write "price_per_unit": 0.005, "currency": "USD"')


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"pipeline": "text-to-image"}, "pipeline: unknown"),
        ({"pipeline": 7}, "pipeline: expected a text"),
        ({"model_id": ""}, "model_id: expected a model's id"),
        ({"model_id": " m"}, "model_id: expected a model's id"),
        ({"model_id": "m\n"}, "model_id: expected a model's id"),
        ({"model_id": "m" * 201}, "model_id: expected a model's id"),
        ({"url": 1}, "url: expected a text"),
        ({"url": "10.0.0.2:8000"}, "url: expected http(s)://host"),
        ({"url": "ftp://host"}, "url: expected http(s)://host"),
        ({"url": "http://"}, "url: expected http(s)://host"),
        ({"url": "http://user:pw@host"}, "url: expected http(s)://host"),
        ({"url": "http://host?x=1"}, "url: expected http(s)://host"),
        ({"url": "http://host:x"}, "url: not a URL"),
        ({"token": "abc"}, "token: belongs to a worker at `url`"),
        ({"url": "http://w", "token": "a b"}, "token: expected printable ASCII"),
        ({"url": "http://w", "token": "ä"}, "token: expected printable ASCII"),
        ({"warm": "yes"}, "warm: expected true or false"),
        ({"warm": 1}, "warm: expected true or false"),
        ({"capacity": 10_001}, "capacity: expected 1 to 10000"),
        ({"capacity": -1}, "capacity: expected 1 to 10000"),
        ({"capacity": 1.5}, "capacity: expected a whole number"),
        ({"capacity": True}, "capacity: expected a whole number"),
        ({"optimization_flags": []}, "optimization_flags: expected an object"),
        ({"optimization_flags": {"a": 1}}, "optimization_flags: expected an object"),
        ({"gateway": "0x12"}, "gateway: expected an Ethereum address"),
        ({"price_per_unit": -1}, "price_per_unit: expected 0 or more"),
        ({"price_per_unit": None}, "price_per_unit: expected a number"),
        ({"price_per_unit": True}, "price_per_unit: expected a number"),
        ({"price_per_unit": 10**60}, "price_per_unit: expected at most 40 digits"),
        ({"price_per_unit": 1, "pixels_per_unit": 0}, "pixels_per_unit: expected a positive whole number"),
        ({"price_per_unit": 1, "pixels_per_unit": 1.5}, "pixels_per_unit: expected a positive whole number"),
        ({"price_per_unit": 1, "pixels_per_unit": 2**63}, "pixels_per_unit: expected a positive whole number"),
        ({"price_per_unit": 1, "pixels_per_unit": "1"}, "pixels_per_unit: expected a number"),
        ({"price_per_unit": 1, "pixels_per_unit": True}, "pixels_per_unit: expected a number"),
        ({"price_per_unit": 1, "currency": "EUR"}, "currency: unknown: 'eur'; known are wei, eth, usd"),
        ({"price_per_unit": 1, "currency": 5}, "currency: expected a text"),
        ({"currency": "USD"}, "price_per_unit: missing, though currency"),
        ({"pixels_per_unit": 5}, "price_per_unit: missing, though currency"),
        ({"path": 5}, "path: expected a text"),
        ({"path": "/folder", "url": "http://w"}, "path: is for the orchestrator's own worker"),
        ({"path": "/a.safetensors"}, "sha256: belongs to a path that ends in .safetensors, which must have it"),
        ({"path": "/folder", "sha256": "0" * 64}, "sha256: belongs to a path that ends in .safetensors"),
        ({"sha256": "0" * 64}, "sha256: belongs to a path that ends in .safetensors"),
        ({"path": "/a.safetensors", "sha256": "12"}, "sha256: expected 64 hex digits, got '12'"),
        ({"colour": "red"}, "colour: no such field; known are model_id, pipeline"),
    ],
)
def test_a_wrong_field_is_refused(fields: dict[str, object], says: str) -> None:
    """Every check of the file's format, with its reason."""
    assert says in refusal(entry(**fields))


@pytest.mark.parametrize("missing", ["pipeline", "model_id"])
def test_a_required_field_is_required(missing: str) -> None:
    """An entry names its task and its model."""
    fields = entry()
    del fields[missing]

    assert f"{missing}: missing" in refusal(fields)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a JSON array of models"),
        ("[{]", "expected a JSON array of models"),
        ("{}", "expected a JSON array with at least one model, got {}"),
        ("[]", "expected a JSON array with at least one model, got []"),
        ("[3]", "entry 1: expected an object, got 3"),
        ('[{"pipeline": "upscale", "model_id": "m", "price_per_unit": NaN}]', "NaN is no JSON number"),
        ('[{"pipeline": "upscale", "model_id": "m", "price_per_unit": -Infinity}]', "-Infinity is no JSON number"),
        ('[{"pipeline": "upscale", "model_id": "m", "model_id": "n"}]', "'model_id' stands twice in one entry"),
        ('[{"pipeline": "upscale", "model_id": "m", "price_per_unit": 1e999999999}]', "expected at most 40 digits"),
        ('[{"pipeline": "upscale", "model_id": "m", "price_per_unit": 1e-60}]', "expected at most 40 digits"),
        ('[{"pipeline": "upscale", "model_id": "m", "price_per_unit": 1.' + "1" * 60 + "}]", "at most 40 digits"),
        (
            '[{"pipeline": "upscale", "model_id": "m", "price_per_unit": 1, "pixels_per_unit": 1e99999999}]',
            "whole number",
        ),
        ('[{"pipeline": "upscale", "model_id": "m", "price_per_unit": 1e9999999999999999999999}]', "beyond any use"),
        ('[{"pipeline": "upscale", "model_id": "m", "price_per_unit": ' + "9" * 5000 + "}]", "expected a JSON array"),
        ("[" * 100_000, "beyond any use"),
    ],
)
def test_a_text_that_is_no_list_of_entries_is_refused(text: str, says: str) -> None:
    """Broken JSON, other JSON, and numbers that would cost a lot to compute with."""
    with pytest.raises(ConfigError, match="^aiModels.json: ") as caught:
        parse_models(text)

    assert says in str(caught.value)


def test_a_model_is_warm_or_cold() -> None:
    """Two entries of one model may not contradict each other."""
    reason = refusal(entry(url="http://a", warm=True), entry(model_id="n"), entry(url="http://b"))

    assert reason.startswith(f"models.json: entries 1 and 3 ({MODEL}): warm: one is warm, the other cold")


def test_a_repeated_entry_is_refused() -> None:
    """Livepeer's reader would count its capacity twice."""
    assert "entries 1 and 2" in refusal(entry(capacity=2), entry(capacity=2))
    assert "repeat one another" in refusal(entry(url="http://a"), entry(url="http://a/"))


def test_one_model_has_one_price_for_one_gateway() -> None:
    """Livepeer's reader takes the later price without a word."""
    reason = refusal(entry(url="http://a", price_per_unit=1), entry(url="http://b", price_per_unit=2))

    assert "price_per_unit: differ for the same gateway" in reason


def test_one_model_may_have_many_workers_and_a_price_for_each_gateway() -> None:
    """What the two rules above leave allowed."""
    models = [
        entry(url="http://a", price_per_unit=1),
        entry(url="http://b", price_per_unit=1),
        entry(url="http://a", price_per_unit=2, gateway="0x" + "11" * 20),
    ]

    assert len(parse_models(json.dumps(models))) == 3


def test_a_value_made_by_hand_is_checked_too() -> None:
    """The check belongs to the value, not to the reader."""
    with pytest.raises(ValueError, match="capacity: expected 1 to 10000, got 0"):
        ModelConfig(MODEL, capacity=0)
    with pytest.raises(ValueError, match="price_per_unit: expected 0 or more, got NaN"):
        ModelConfig(MODEL, price_per_unit=Decimal("NaN"))
