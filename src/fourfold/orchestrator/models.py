"""``ModelConfig``: one entry of aiModels.json, with Livepeer's field names, checked. Pure: the text is an argument.

A file that a check refuses is refused as a whole, with the entry's number, the field and what to write instead.
Source: go-livepeer ``core/ai.go`` ParseAIModelConfigs, and ``docs ai/orchestrators/models-config``. Stricter here:
unknown keys, repeated keys and repeated entries are errors, and so is a price that cannot mean anything.
"""

import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from fourfold.errors import ConfigError
from fourfold.protocol.wire import PIPELINE

CURRENCIES: Final = ("wei", "eth", "usd")
ANY_GATEWAY: Final = "default"

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}\Z")
_STRING_PRICE: Final = re.compile(r"\s*([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*\Z")
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}\Z")
_NETWORK_SUFFIX: Final = ".safetensors"
_MAX_CAPACITY: Final = 10_000
_MAX_DIGITS: Final = 40  #: of a price, before and after the point: beyond any money, and cheap to compute with
_INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model that is sold, its price and the worker that runs it."""

    model_id: str
    pipeline: str = PIPELINE
    url: str | None = None  #: a worker's base URL; None = the orchestrator's own worker
    token: str | None = field(default=None, repr=False)  #: bearer token of the worker at *url*
    warm: bool = False  #: loaded at start and kept
    capacity: int = 1  #: jobs at once
    optimization_flags: Mapping[str, str | bool] = field(default_factory=dict)  #: handed to the worker as it starts
    gateway: str = ANY_GATEWAY  #: whom the price is for: an Ethereum address, or "default"
    price_per_unit: Decimal | None = None  #: None = the orchestrator's default price; 0 = free
    pixels_per_unit: int = 1  #: input pixels that *price_per_unit* buys
    currency: str = "wei"  #: of *price_per_unit*: wei, eth or usd
    path: str | None = None  #: a folder or file with the model's weights (not in Livepeer)
    sha256: str | None = None  #: of that file's content, where it is a network of the operator's own (not in Livepeer)

    def __post_init__(self) -> None:
        for name, check in _VALUE_CHECKS.items():
            reason = check(getattr(self, name))
            if reason is not None:
                raise ValueError(f"{name}: {reason}")
        if self.token is not None and self.url is None:
            raise ValueError("token: belongs to a worker at `url`, and there is none; remove it or add the url")
        if self.path is not None and self.url is not None:
            raise ValueError("path: is for the orchestrator's own worker; the one at `url` knows its own; remove one")
        is_network = self.path is not None and self.path.lower().endswith(_NETWORK_SUFFIX)
        if is_network != (self.sha256 is not None):
            raise ValueError(
                f"sha256: belongs to a path that ends in {_NETWORK_SUFFIX}, which must have it; "
                f"path is {self.path!r}, sha256 is {self.sha256!r}"
            )
        if self.price_per_unit is None and (self.pixels_per_unit != 1 or self.currency != "wei"):
            raise ValueError(
                "price_per_unit: missing, though currency or pixels_per_unit is set; add it, or remove both"
            )


def parse_models(text: str, *, source: str = "aiModels.json") -> tuple[ModelConfig, ...]:
    """Return the entries of an aiModels.json.

    Args: *source*, the file's name, for messages.
    Raises: ConfigError naming *source*, the entry (counted from 1), the field and the reason.
    """
    try:
        entries = json.loads(
            text, parse_float=Decimal, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats
        )
    except (ValueError, InvalidOperation, RecursionError) as exc:
        reason = str(exc) if isinstance(exc, ValueError) else "a number or a nesting beyond any use"
        raise ConfigError(f"{source}: expected a JSON array of models: {reason}") from exc
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{source}: expected a JSON array with at least one model, got {_shown(entries)}")
    models = []
    for number, entry in enumerate(entries, start=1):
        try:
            models.append(_parse_entry(entry))
        except ValueError as exc:
            name = entry.get("model_id") if isinstance(entry, dict) else None
            label = f" ({name})" if isinstance(name, str) else ""
            raise ConfigError(f"{source}: entry {number}{label}: {exc}") from exc
    _check_together(models, source)
    return tuple(models)


def _parse_entry(entry: object) -> ModelConfig:
    """Return one entry. Raises: ValueError naming the field and the reason."""
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, got {_shown(entry)}")
    known = [f.name for f in fields(ModelConfig)]
    unknown = [key for key in entry if key not in known]
    if unknown:
        raise ValueError(f"{unknown[0]}: no such field; known are {', '.join(known)}")
    for required in ("pipeline", "model_id"):
        if required not in entry:
            raise ValueError(f"{required}: missing")
    values: dict[str, Any] = {}
    for name, value in entry.items():
        reason = _type_mismatch(name, value)
        if reason is not None:
            raise ValueError(f"{name}: {reason}")
        values[name] = value
    # Files made for go-livepeer spell "not set" as an empty text.
    for name in ("url", "token", "path", "sha256", "gateway", "currency"):
        if values.get(name) == "":
            del values[name]
    if "url" in values:
        values["url"] = values["url"].rstrip("/")
    if "currency" in values:
        values["currency"] = values["currency"].lower()
    if "price_per_unit" in values:
        values["price_per_unit"] = Decimal(values["price_per_unit"])
    if isinstance(values.get("pixels_per_unit"), Decimal) and values["pixels_per_unit"].is_finite():
        values["pixels_per_unit"] = _whole(values["pixels_per_unit"])
    return ModelConfig(**values)


def _whole(number: Decimal) -> int | Decimal:
    """Return a number such as 1e6 as the integer it is, any other as it came."""
    return int(number) if abs(number.adjusted()) <= _MAX_DIGITS and number == int(number) else number


def _type_mismatch(name: str, value: object) -> str | None:
    """Return why *value* is of the wrong JSON type for *name*, None if it is of the right one."""
    if name == "price_per_unit" and isinstance(value, str):
        match = _STRING_PRICE.match(value)
        number, unit = (match[1], match[2].upper() or "USD") if match else ("0.005", "USD")
        return f'expected a number, got the text {value!r}; write "price_per_unit": {number}, "currency": "{unit}"'
    if name in ("price_per_unit", "pixels_per_unit"):
        is_number = isinstance(value, int | Decimal) and not isinstance(value, bool)
        return None if is_number else f"expected a number, got {_shown(value)}"
    if name == "capacity":
        return None if type(value) is int else f"expected a whole number, got {_shown(value)}"
    if name == "warm":
        return None if isinstance(value, bool) else f"expected true or false, got {_shown(value)}"
    if name == "optimization_flags":
        fits = isinstance(value, dict) and all(isinstance(flag, str | bool) for flag in value.values())
        return None if fits else "expected an object of texts and booleans"
    return None if isinstance(value, str) else f"expected a text, got {_shown(value)}"


def _check_pipeline(pipeline: str) -> str | None:
    return None if pipeline == PIPELINE else f"unknown: {pipeline!r}; Fourfold serves {PIPELINE!r} only"


def _check_model_id(model_id: str) -> str | None:
    printable = model_id.isprintable() and model_id.strip() == model_id
    return None if model_id and printable and len(model_id) <= 200 else f"expected a model's id, got {model_id!r}"


def _check_url(url: str | None) -> str | None:
    if url is None:
        return None
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
    except ValueError:
        return f"not a URL: {url!r}"
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        return f"expected http(s)://host[:port][/path], got {url!r}"
    return None


def _check_token(token: str | None) -> str | None:
    fits = token is None or (token.isascii() and token.isprintable() and " " not in token)
    return None if fits else "expected printable ASCII without spaces, as a header carries it"


def _check_capacity(capacity: int) -> str | None:
    return None if 1 <= capacity <= _MAX_CAPACITY else f"expected 1 to {_MAX_CAPACITY}, got {capacity}"


def _check_gateway(gateway: str) -> str | None:
    fits = gateway == ANY_GATEWAY or _ADDRESS.match(gateway)
    return None if fits else f'expected an Ethereum address (0x and 40 hex digits) or "{ANY_GATEWAY}", got {gateway!r}'


def _check_price(price: Decimal | None) -> str | None:
    if price is None:
        return None
    if not price.is_finite() or price < 0:
        return f"expected 0 or more, got {price}"
    exponent = price.as_tuple().exponent
    if abs(price.adjusted()) > _MAX_DIGITS or (isinstance(exponent, int) and exponent < -_MAX_DIGITS):
        return f"expected at most {_MAX_DIGITS} digits before and after the point, got {str(price)[:60]}"
    return None


def _check_pixels(pixels: object) -> str | None:
    fits = type(pixels) is int and 1 <= pixels <= _INT64_MAX
    return None if fits else f"expected a positive whole number, got {str(pixels)[:60]}"


def _check_sha256(sha256: str | None) -> str | None:
    fits = sha256 is None or _SHA256.match(sha256)
    return None if fits else f"expected 64 hex digits, got {sha256!r}"


def _check_currency(currency: str) -> str | None:
    return None if currency in CURRENCIES else f"unknown: {currency!r}; known are {', '.join(CURRENCIES)}"


_VALUE_CHECKS: Final[Mapping[str, Any]] = {
    "pipeline": _check_pipeline,
    "model_id": _check_model_id,
    "url": _check_url,
    "token": _check_token,
    "capacity": _check_capacity,
    "gateway": _check_gateway,
    "price_per_unit": _check_price,
    "pixels_per_unit": _check_pixels,
    "currency": _check_currency,
    "sha256": _check_sha256,
}


def _check_together(models: Sequence[ModelConfig], source: str) -> None:
    """Refuse entries that contradict or repeat one another."""
    for number, model in enumerate(models, start=1):
        for earlier, other in enumerate(models[: number - 1], start=1):
            if model.model_id != other.model_id:
                continue
            pair = f"{source}: entries {earlier} and {number} ({model.model_id})"
            if model.warm != other.warm:
                raise ConfigError(f"{pair}: warm: one is warm, the other cold; a model is one or the other")
            if model.gateway.lower() != other.gateway.lower():
                continue
            if model.url == other.url:
                raise ConfigError(f"{pair}: repeat one another; remove one, and set `capacity` to run more jobs")
            if _price(model) != _price(other):
                raise ConfigError(f"{pair}: price_per_unit: differ for the same gateway; a model has one price")


def _price(model: ModelConfig) -> tuple[Decimal | None, int, str]:
    return model.price_per_unit, model.pixels_per_unit, model.currency


def _refuse_constant(name: str) -> object:
    """Refuse NaN and the infinities, which JSON does not have and Python reads."""
    raise ValueError(f"{name} is no JSON number")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; a key that stands twice would silently be the later one."""
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"{key!r} stands twice in one entry")
        seen[key] = value
    return seen


def _shown(value: object) -> str:
    """Return *value* as a short text for a message."""
    return json.dumps(value, default=str)[:60]


def own_models(models: Sequence[ModelConfig]) -> tuple[ModelConfig, ...]:
    """Return the entries that the orchestrator's own worker serves: those without url.

    An entry without url that only sets one gateway's price, for a model that has a worker by url, is not among them.
    """
    elsewhere = {model.model_id for model in models if model.url is not None}
    return tuple(
        model
        for model in models
        if model.url is None and (model.gateway == ANY_GATEWAY or model.model_id not in elsewhere)
    )
