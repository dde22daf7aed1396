"""What a client wants to get, read from the form and from ``Accept``. Pure."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fourfold.errors import InvalidParameterError
from fourfold.imaging import FORMATS, OutputOptions
from fourfold.protocol.wire import read_integer, read_number

#: The fields of the form that are read here.
OUTPUT_NAMES: Final = frozenset({"output_format", "quality", "metadata", "scale", "width", "height", "fit"})

_MEDIA_TYPE_TO_FORMAT: Final = {known.media_type: name for name, known in FORMATS.items()}
_WEIGHT: Final = re.compile(r"[0-9](?:\.[0-9]{0,12})?\Z")
_JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the result is to be written and sent."""

    options: OutputOptions = field(default_factory=OutputOptions)
    is_body: bool = False  #: the answer is the picture itself, not JSON that names its address


def parse_wanted(form: Mapping[str, str], accept: str) -> Wanted:
    """Read the optional fields; empty ones count as absent.

    Raises:
        ValidationError: a number or a boolean is malformed.
        InvalidParameterError: a value is well-formed but refused, or the form and *accept* name different formats.
    """
    named = form.get("output_format", "").strip().lower()
    is_body, accepted = _accepted(accept)
    if is_body and named and accepted and named != accepted:
        raise InvalidParameterError(f"Accept asks for {accepted} and output_format for {named}; send one of them")
    options = OutputOptions(
        format=named or accepted or "png",
        quality=read_integer(form, "quality"),
        metadata=form.get("metadata", "").strip().lower() or "default",
        scale=read_number(form, "scale"),
        width=read_integer(form, "width"),
        height=read_integer(form, "height"),
        fit=form.get("fit", "").strip().lower() or "contain",
    )
    return Wanted(options, is_body=is_body)


def _accepted(accept: str) -> tuple[bool, str]:
    """Return whether the picture itself is preferred over JSON, and its format, "" where any image will do.

    Only a client that names images gets one: ``*/*`` has always meant JSON here.
    """
    weights: dict[str, float] = {}
    for item in accept.lower().split(","):
        media_type, *parameters = (part.strip() for part in item.split(";"))
        weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        weights[media_type] = float(weight) if _WEIGHT.match(weight) else 0.0
    images = {name: weight for name, weight in weights.items() if name in _MEDIA_TYPE_TO_FORMAT or name == "image/*"}
    if not images:
        return False, ""
    best = max(images, key=lambda name: images[name])
    if not images[best] > 0 or weights.get(_JSON, -math.inf) >= images[best]:
        return False, ""
    return True, _MEDIA_TYPE_TO_FORMAT.get(best, "")
