"""The public API's description, OpenAPI 3.1: written by hand, checked in as ``docs/openapi.json``. Pure.

By hand because the form is read as it arrives, which no framework can derive, and because a description that a
framework's next release changes is no contract. A test holds it against the routes.
"""

from typing import Any, Final

from fourfold import __version__
from fourfold.config import LimitSettings
from fourfold.errors import FourfoldError, walk
from fourfold.imaging import FORMATS, METADATA_CHOICES
from fourfold.protocol import routes, wire

_LIMITS: Final = LimitSettings()


def document() -> dict[str, Any]:
    """Return the description."""
    paths: dict[str, Any] = {
        path: {"post": _upscale(path), "options": _options()} for path in (routes.UPSCALE, *routes.UPSCALE_ALIASES)
    }
    paths[routes.STREAM + "/{group}/{name}"] = {"get": _stream("get"), "head": _stream("head"), "options": _options()}
    paths[routes.MODELS] = {"get": _info("listModels", "What is on offer now, and for how much", "Models")}
    paths[routes.HEALTHZ] = {"get": _info("healthz", "Whether the gateway runs", "Status")}
    paths[routes.LIVEZ] = {"get": _info("livez", "Whether the gateway runs", "Status")}
    paths[routes.READYZ] = {"get": _ready()}
    paths[routes.METRICS] = {
        "get": {
            "operationId": "metrics",
            "summary": "Counters in Prometheus' text format",
            "tags": ["operation"],
            "responses": {"200": {"description": "The counters", "content": {"text/plain": {"schema": _text()}}}},
        }
    }
    paths["/openapi.json"] = {"get": _info("openapi", "This description", "Anything")}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Fourfold gateway",
            "version": __version__,
            "summary": "Give an image, get it back four times as wide and high.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": "generate"}, {"name": "results"}, {"name": "operation"}],
        "paths": paths,
        "components": {"schemas": _schemas(), "responses": _error_responses(), "headers": _headers()},
    }


def _upscale(path: str) -> dict[str, Any]:
    operation = "genUpscale" + "".join(part.title() for part in path.split("/")[1:-1])
    statuses = sorted({cls.http_status for cls in _errors_told()})
    answer_headers = (
        wire.REQUEST_ID_HEADER,
        wire.MODEL_HEADER,
        wire.SEED_HEADER,
        wire.SAFETY_HEADER,
        wire.INPUT_PIXELS_HEADER,
        wire.FEE_HEADER,
        wire.DURATION_HEADER,
        wire.MODE_HEADER,
        wire.WARNINGS_HEADER,
        wire.FIDELITY_HEADER,
    )
    return {
        "operationId": operation,
        "summary": "Upscale an image by four",
        "description": "The answer comes when the image is done. Closing the connection cancels the job. A client "
        "whose Accept names an image type, and prefers it to JSON, gets the image itself and the facts in headers.",
        "tags": ["generate"],
        "parameters": [
            {
                "name": wire.REQUEST_ID_HEADER,
                "in": "header",
                "description": "Your own id for the request, 1 to 128 characters; comes back and stands in the logs",
                "schema": _text(),
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/UpscaleForm"}}},
        },
        "responses": {
            "200": {
                "description": "The image is done",
                "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in answer_headers},
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/ImageResponse"}},
                    **_pictures(),
                },
            },
            **{str(status): {"$ref": f"#/components/responses/Error{status}"} for status in statuses},
        },
    }


def _stream(method: str) -> dict[str, Any]:
    pictures = _pictures() if method == "get" else {}
    parameters = [
        {"name": "group", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"}},
        {
            "name": "name",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": "^[0-9a-f]{32}\\.(png|jpg|webp|avif|tif)$"},
        },
    ]
    responses: dict[str, Any] = {
        "200": {"description": "The result", "content": pictures},
        "304": {"description": "You have it already (If-None-Match)"},
        "404": {"$ref": "#/components/responses/Error404"},
    }
    if method == "get":
        responses["206"] = {"description": "The part asked for (Range)", "content": pictures}
        responses["416"] = {"description": "The range begins beyond the end", "content": _json("Error")}
    return {
        "operationId": f"{method}Result",
        "summary": "A result, for as long as it is kept",
        "tags": ["results"],
        "parameters": parameters,
        "responses": dict(sorted(responses.items())),
    }


def _info(operation: str, summary: str, schema: str) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "tags": ["operation"],
        "responses": {"200": {"description": summary, "content": _json(schema)}},
    }


def _ready() -> dict[str, Any]:
    described = _info("readyz", "Whether a job could be taken now", "Ready")
    described["responses"]["503"] = {"description": "Not now, and why", "content": _json("Ready")}
    return described


def _options() -> dict[str, Any]:
    return {"summary": "CORS preflight", "tags": ["operation"], "responses": {"204": {"description": "Allowed"}}}


def _pictures() -> dict[str, Any]:
    return {known.media_type: {"schema": {"type": "string", "format": "binary"}} for known in FORMATS.values()}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _text(**more: Any) -> dict[str, Any]:
    return {"type": "string", **more}


def _integer(**more: Any) -> dict[str, Any]:
    return {"type": "integer", **more}


def _object(properties: dict[str, Any], *, required: list[str] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required or list(properties)}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"oneOf": [schema, {"type": "null"}]}


def _errors_told() -> list[type[FourfoldError]]:
    """Return the classes that a client can be told of: those at the tree's leaves, and the root for bugs."""
    told = [cls for cls in walk() if cls is FourfoldError or not cls.__subclasses__()]
    return [cls for cls in told if cls.http_status != 499]


def _error_responses() -> dict[str, Any]:
    status_to_codes: dict[int, list[str]] = {}
    for cls in _errors_told():
        status_to_codes.setdefault(cls.http_status, []).append(cls.code)
    responses = {}
    for status, codes in sorted(status_to_codes.items()):
        response: dict[str, Any] = {
            "description": "`error.code` is one of: " + ", ".join(sorted(codes)),
            "headers": {wire.REQUEST_ID_HEADER: {"$ref": f"#/components/headers/{wire.REQUEST_ID_HEADER}"}},
            "content": _json("HTTPValidationError" if status == 422 else "Error"),
        }
        if status in {429, 503}:
            response["headers"]["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
        responses[f"Error{status}"] = response
    return responses


def _headers() -> dict[str, Any]:
    described = {
        wire.REQUEST_ID_HEADER: ("Names this request in the logs", _text()),
        wire.MODEL_HEADER: ("The model that ran", _text()),
        wire.SEED_HEADER: ("The seed that ran", _integer(minimum=0)),
        wire.SAFETY_HEADER: (
            "What the safety check found",
            _text(enum=[wire.SAFETY_CLEAN, wire.SAFETY_FLAGGED, wire.SAFETY_NOT_CHECKED]),
        ),
        wire.INPUT_PIXELS_HEADER: ("Pixels of the image that was sent, upright", _integer(minimum=1)),
        wire.FEE_HEADER: ("What the job cost, wei", _integer(minimum=0)),
        wire.DURATION_HEADER: ("From the request's head to the answer, milliseconds", _integer(minimum=0)),
        wire.MODE_HEADER: ("How a diffusion model was sampled; absent for others", _text(enum=list(wire.MODES))),
        wire.WARNINGS_HEADER: ("The answer's `fidelity.warnings` as a JSON array; absent if there are none", _text()),
        wire.FIDELITY_HEADER: ("The answer's `fidelity` as one line of JSON", _text()),
        "Retry-After": ("Seconds after which to try again", _integer(minimum=1)),
    }
    return {name: {"description": text, "schema": schema} for name, (text, schema) in described.items()}


def _schemas() -> dict[str, Any]:
    error = _object(
        {
            "message": _text(description="For people"),
            "code": _text(description="Stable; what programs go by"),
            "request_id": _text(),
            "retryable": {"type": "boolean", "description": "Whether the same request may succeed later"},
        }
    )
    located = _object({"type": _text(), "loc": {"type": "array", "items": _text()}, "msg": _text(), "input": {}})
    licence = _object({"code": _text(), "weights": _text()})
    offer = _object(
        {
            "price_per_unit": _integer(description="wei"),
            "pixels_per_unit": _integer(minimum=1),
            "wei_per_input_pixel": {"type": "number"},
            "usd_per_input_pixel": {"type": "number", "description": "At the gateway's rate"},
            "warm": {"type": "boolean"},
            "capacity": _integer(description="Jobs at once"),
        }
    )
    model = _object(
        {
            "model_id": _text(),
            "title": _nullable(_text()),
            "scale": _nullable(_integer()),
            "guided_by_prompt": _nullable({"type": "boolean"}),
            "default_steps": _nullable(_integer()),
            "licence": _nullable(licence),
            "warm": {"type": "boolean"},
            "capacity": _integer(),
            "offers": {"type": "array", "items": offer},
        }
    )
    limits = ("upload_bytes", "input_pixels", "side_px", "prompt_chars", "num_inference_steps")
    image = _object({"nsfw": {"type": "boolean"}, "seed": _integer(), "url": _text(format="uri")})
    return {
        "UpscaleForm": _form(),
        "ImageResponse": _object(
            {"images": {"type": "array", "items": image, "minItems": 1, "maxItems": 1}, "fidelity": _fidelity()},
            required=["images"],
        ),
        "Error": _object({"detail": _object({"msg": _text()}), "error": error}),
        "HTTPValidationError": _object({"detail": {"type": "array", "items": located}, "error": error}),
        "Models": _object(
            {
                "default_model": _nullable(_text()),
                "models": {"type": "array", "items": model},
                "aliases": {"type": "object", "additionalProperties": _text()},
                "limits": _object({name: _integer() for name in limits}),
            }
        ),
        "Status": _object({"status": _text()}),
        "Ready": _object(
            {
                "status": _text(enum=["ready", "not ready"]),
                "reasons": {"type": "array", "items": _text()},
                "models": {"type": "object", "additionalProperties": _text(enum=["warm", "cold"])},
            }
        ),
        "Anything": {"type": "object"},
    }


def _fidelity() -> dict[str, Any]:
    """Describe what was done to the image."""
    texts = {"type": "array", "items": _text()}
    side = {"format": _text(), "width": _integer(), "height": _integer(), "bits": _integer()}
    return _object(
        {
            "input": _object({**side, "colour": _text(), "frames": _integer()}),
            "output": _object(side),
            "oriented": _nullable(_integer(description="The orientation tag that was applied")),
            "profile": _nullable(_text(description="The embedded profile's name")),
            "colour": _text(enum=["unchanged", "through sRGB and back", "converted to sRGB"]),
            "clipped_share": {
                "type": "number",
                "description": "Of the pixels, 0 to 1: their colours are outside sRGB and became the nearest in it",
            },
            "alpha": _text(enum=["none", "opaque", "soft", "hard", "flattened"]),
            "padded_px": _integer(description="Wrapped around the image for the model, and cropped again"),
            "mode": _nullable(
                _text(enum=list(wire.MODES), description="Of a diffusion model; fast gives another picture")
            ),
            "tiles": _nullable(_integer(description="Pieces that it was computed in")),
            "resampled": {"type": "boolean", "description": "Whether the final size is not four times the image's"},
            "metadata_kept": texts,
            "metadata_removed": texts,
            "lr_psnr_db": _nullable({"type": "number", "description": "The result averaged down, against the image"}),
            "detail_ratio": _nullable(
                {"type": "number", "description": "Fine structure against a bicubic enlargement"}
            ),
            "warnings": texts,
        }
    )


def _form() -> dict[str, Any]:
    fields = {
        "image": {
            "type": "string",
            "contentMediaType": "application/octet-stream",
            "description": "The image's file; its bytes count, not its name or type. At most (unless the operator set "
            f"other limits) {_LIMITS.upload_bytes} bytes, {_LIMITS.input_pixels} pixels, {_LIMITS.side_px} on a side",
        },
        "prompt": _text(
            default="",
            maxLength=_LIMITS.prompt_chars,
            description="What the picture shows; only for models that are guided by a prompt",
        ),
        "model_id": _text(default="", description="Empty: the gateway's default, see /models"),
        "safety_check": {"type": "boolean", "default": True, "description": "Whether to look for unsafe content"},
        "seed": _integer(minimum=0, maximum=wire.MAX_WIRE_SEED, description="Absent: a random one"),
        "num_inference_steps": _integer(
            minimum=1, maximum=_LIMITS.steps, description="Only for models that work in steps"
        ),
        "negative_prompt": _text(
            maxLength=_LIMITS.prompt_chars, description="What the picture should not show; only for diffusion models"
        ),
        "guidance_scale": {
            "type": "number",
            "minimum": 0,
            "maximum": wire.MAX_GUIDANCE_SCALE,
            "description": "How much the prompt is emphasised; only for diffusion models",
        },
        "noise_level": _integer(
            minimum=0,
            maximum=wire.MAX_NOISE_LEVEL,
            description="How noisy the image is taken to be, higher invents more; only for diffusion models",
        ),
        "mode": _text(
            enum=list(wire.MODES),
            description="exact: the model's own sampler; fast: another one, fewer steps; only for diffusion models",
        ),
        "output_format": _text(enum=list(FORMATS), default="png", description="How the result is written"),
        "quality": _integer(minimum=1, maximum=100, description="Only for jpeg, webp and avif"),
        "metadata": _text(
            enum=list(METADATA_CHOICES),
            default="default",
            description="EXIF, XMP and IPTC: all but the place (default), all, none, or author and rights alone",
        ),
        "scale": {"type": "number", "minimum": 1, "maximum": 4, "description": "Final size relative to the image: 4"},
        "width": _integer(minimum=1, description="Final width, at most four times the image's"),
        "height": _integer(minimum=1, description="Final height, at most four times the image's"),
        "fit": _text(
            enum=["contain", "exact"],
            default="contain",
            description="contain: within width x height, the aspect kept; exact: stretched to it",
        ),
        "tileable": {
            "type": "boolean",
            "default": False,
            "description": "The image fits to itself, and is to fit afterwards. The fee is for the image; where a "
            "Livepeer worker runs, it is sent with edges around it, fidelity.padded_px on every side, which the fee "
            "and Fourfold-Input-Pixels then count as well",
        },
    }
    return _object(fields, required=["image"])
