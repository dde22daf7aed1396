"""Names and small values that cross a wire: headers, ports, the request's fields and their rules. No I/O."""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from fourfold.errors import InvalidParameterError, ValidationError

PIPELINE: Final = "upscale"
UPSCALE_CAPABILITY: Final = 30

# Livepeer's headers (seam 2).
SEGMENT_HEADER: Final = "Livepeer-Segment"
PAYMENT_HEADER: Final = "Livepeer-Payment"
AI_WORKER_PROTOCOL: Final = "Livepeer-AI-Worker-1.0"

# Ours. A Livepeer peer never sends the first; its absence always gives Livepeer's behaviour.
PROTOCOL_HEADER: Final = "Fourfold-Protocol"
PROTOCOL_VERSION: Final = "1"
JOB_HEADER: Final = "Fourfold-Job"
SEED_HEADER: Final = "Fourfold-Seed"
NSFW_HEADER: Final = "Fourfold-Nsfw"
SAFETY_HEADER: Final = "Fourfold-Safety"
ERROR_HEADER: Final = "Fourfold-Error"
MODEL_HEADER: Final = "Fourfold-Model"
INPUT_PIXELS_HEADER: Final = "Fourfold-Input-Pixels"
FEE_HEADER: Final = "Fourfold-Fee-Wei"
DURATION_HEADER: Final = "Fourfold-Duration-Ms"
#: What was done to the picture, one JSON object.
FIDELITY_HEADER: Final = "Fourfold-Fidelity"
#: To a worker: the most bits of a sample that its caller can pass on, 8 or 16.
BITS_HEADER: Final = "Fourfold-Bits"
#: From a worker, handed on to the client: see `RunFacts`.
TILES_HEADER: Final = "Fourfold-Tiles"
PADDED_HEADER: Final = "Fourfold-Padded"
MODE_HEADER: Final = "Fourfold-Mode"
WARNINGS_HEADER: Final = "Fourfold-Warnings"  #: a JSON array of texts, ASCII
REQUEST_ID_HEADER: Final = "X-Request-ID"

SAFETY_CLEAN: Final = "clean"
SAFETY_FLAGGED: Final = "flagged"
SAFETY_NOT_CHECKED: Final = "not-checked"

#: JavaScript clients reject larger integers (2^53 - 1).
MAX_WIRE_SEED: Final = 2**53 - 1

#: Of a diffusion model: how noisy it may be told the picture is, how much the prompt counts, and how it may be sampled.
MAX_NOISE_LEVEL: Final = 350
MAX_GUIDANCE_SCALE: Final = 100
MODES: Final = ("exact", "fast")

_MOST_WARNINGS: Final = 16
_WARNING_CHARS: Final = 300

_DECIMAL: Final = re.compile(r"[+-]?[0-9]{1,30}\Z")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?\Z")
_TRUE: Final = frozenset({"true", "1", "t", "yes", "y", "on"})
_FALSE: Final = frozenset({"false", "0", "f", "no", "n", "off"})
_JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:+/=@~-]{1,128}\Z")


@dataclass(frozen=True, slots=True)
class UpscaleFields:
    """The text fields of ``POST /upscale``, as the client meant them."""

    model_id: str  #: "" = the receiver's default
    prompt: str
    safety_check: bool
    seed: int | None  #: None = draw one; 0 is a seed
    num_inference_steps: int | None
    # What Livepeer's API does not have: absent unless a client asks for it, so that its peers never see it otherwise.
    negative_prompt: str | None = None
    guidance_scale: float | None = None  #: 0 .. 100
    noise_level: int | None = None  #: 0 .. 350
    mode: str | None = None  #: exact or fast
    tileable: bool = False  #: opposite edges are to fit together in the result as they do in the picture

    def to_form(self) -> dict[str, str]:
        """Return the fields as form values, in Livepeer's order; absent ones stay absent."""
        form = {"prompt": self.prompt, "model_id": self.model_id}
        form["safety_check"] = "true" if self.safety_check else "false"
        if self.seed is not None:
            form["seed"] = str(self.seed)
        if self.num_inference_steps is not None:
            form["num_inference_steps"] = str(self.num_inference_steps)
        for name in ("negative_prompt", "guidance_scale", "noise_level", "mode"):
            if (value := getattr(self, name)) is not None:
                form[name] = str(value)
        return form | ({"tileable": "true"} if self.tileable else {})


#: The text fields that :func:`parse_fields` reads.
FIELD_NAMES: Final = frozenset(field.name for field in fields(UpscaleFields))


def parse_fields(form: Mapping[str, str], *, max_prompt_chars: int, max_steps: int) -> UpscaleFields:
    """Read the request's fields; empty optional ones count as absent, unknown ones are ignored.

    Raises:
        ValidationError: a number or a boolean is malformed.
        InvalidParameterError: a value is well-formed but outside its range.
    """
    prompt = form.get("prompt", "")
    safety_check = read_boolean(form, "safety_check", default=True)
    seed = read_integer(form, "seed")
    steps = read_integer(form, "num_inference_steps")
    if len(prompt) > max_prompt_chars:
        raise InvalidParameterError(f"prompt may have {max_prompt_chars} characters, got {len(prompt)}; shorten it")
    if seed is not None and not 0 <= seed <= MAX_WIRE_SEED:
        raise InvalidParameterError(f"seed must be from 0 to {MAX_WIRE_SEED} (2^53 - 1), got {seed}")
    if steps is not None and not 1 <= steps <= max_steps:
        raise InvalidParameterError(f"num_inference_steps must be from 1 to {max_steps}, got {steps}")
    negative_prompt = form.get("negative_prompt") or None
    if negative_prompt is not None and len(negative_prompt) > max_prompt_chars:
        raise InvalidParameterError(
            f"negative_prompt may have {max_prompt_chars} characters, got {len(negative_prompt)}"
        )
    guidance, noise_level = read_number(form, "guidance_scale"), read_integer(form, "noise_level")
    if guidance is not None and not 0 <= guidance <= MAX_GUIDANCE_SCALE:
        raise InvalidParameterError(f"guidance_scale must be from 0 to {MAX_GUIDANCE_SCALE}, got {guidance}")
    if noise_level is not None and not 0 <= noise_level <= MAX_NOISE_LEVEL:
        raise InvalidParameterError(f"noise_level must be from 0 to {MAX_NOISE_LEVEL}, got {noise_level}")
    mode = form.get("mode", "").strip().lower() or None
    if mode not in (None, *MODES):
        raise InvalidParameterError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    return UpscaleFields(
        model_id=form.get("model_id", "").strip(),
        prompt=prompt,
        safety_check=safety_check,
        seed=seed,
        num_inference_steps=steps,
        negative_prompt=negative_prompt,
        guidance_scale=guidance,
        noise_level=noise_level,
        mode=mode,
        tileable=read_boolean(form, "tileable", default=False),
    )


def read_boolean(form: Mapping[str, str], name: str, *, default: bool) -> bool:
    """Return the field as a boolean, *default* where it is absent or empty. Raises: ValidationError."""
    text = form.get(name, "").strip().lower()
    if text and text not in _TRUE | _FALSE:
        raise ValidationError("Input should be a valid boolean: true or false", field=name, kind="bool_parsing")
    return text in _TRUE if text else default


def read_number(form: Mapping[str, str], name: str) -> float | None:
    """Return the field as a float, None where it is absent or empty. Raises: ValidationError."""
    text = form.get(name, "").strip()
    if not text:
        return None
    if not _NUMBER.match(text):
        raise ValidationError("Input should be a valid number", field=name, kind="float_parsing")
    return float(text)


def read_integer(form: Mapping[str, str], name: str) -> int | None:
    """Return the field as an integer, None where it is absent or empty. Raises: ValidationError."""
    text = form.get(name, "").strip()
    if not text:
        return None
    if not _DECIMAL.match(text):
        raise ValidationError("Input should be a valid integer", field=name, kind="int_parsing")
    return int(text)


def read_seed(text: str) -> int | None:
    """Return the seed that a peer names in a header, None where that is none."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_WIRE_SEED))
    return int(text) if is_number and is_seed(int(text)) else None


def is_seed(value: object) -> bool:
    """Whether a peer's *value* is a seed that every client can read."""
    return type(value) is int and 0 <= value <= MAX_WIRE_SEED


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a worker of ours says about how it computed a picture; each hop hands it on in headers."""

    tiles: int | None = None  #: pieces that it was computed in
    mode: str | None = None  #: of a diffusion model: exact or fast
    padded_px: int | None = None  #: on every side, for a tileable result; None: it was not asked for, or not understood
    warnings: tuple[str, ...] = ()  #: for people: what of the wishes could not be met

    def to_headers(self) -> dict[str, str]:
        """Return the headers; what is not known has none."""
        headers = {} if self.tiles is None else {TILES_HEADER: str(self.tiles)}
        headers |= {} if self.mode is None else {MODE_HEADER: self.mode}
        headers |= {} if self.padded_px is None else {PADDED_HEADER: str(self.padded_px)}
        return headers | ({WARNINGS_HEADER: json.dumps(self.warnings)} if self.warnings else {})


def read_run_facts(headers: Mapping[str, str]) -> RunFacts:
    """Return what the headers of a picture say; what is malformed counts as not said, what is too long is cut.

    Args: *headers*, a mapping that does not care for case.
    """
    try:
        told = json.loads(headers.get(WARNINGS_HEADER, "[]"))
    except (ValueError, RecursionError):
        told = []
    warnings = [text[:_WARNING_CHARS] for text in told if isinstance(text, str)] if isinstance(told, list) else []
    return RunFacts(
        tiles=_count(headers.get(TILES_HEADER, "")),
        mode=mode if (mode := headers.get(MODE_HEADER)) in MODES else None,
        padded_px=_count(headers.get(PADDED_HEADER, "")),
        warnings=tuple(warnings[:_MOST_WARNINGS]),
    )


def _count(text: str) -> int | None:
    """Return the number of at most nine digits that *text* is, None if it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else None


def check_job_id(text: str) -> str:
    """Return *text* if it can be a job id: 1 to 64 of ``A-Z a-z 0-9 _ -``. Raises: ValidationError otherwise."""
    if not _JOB_ID.match(text):
        raise ValidationError("expected 1 to 64 characters of A-Z a-z 0-9 _ -", field=JOB_HEADER, kind="string_pattern")
    return text


def data_url(png: bytes) -> str:
    """Return *png* as the data URL that Livepeer's peers expect of a worker."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def is_request_id(text: str) -> bool:
    """Whether a caller's ``X-Request-ID`` is taken over: each hop decides alike, so that one id names all of a job."""
    return _REQUEST_ID.match(text) is not None


def decode_data_url(url: str) -> bytes | None:
    """Return the bytes of a base64 image data URL; None if *url* is none, ValueError if its base64 is broken."""
    head, comma, payload = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        return None
    return base64.b64decode(payload, validate=True)
