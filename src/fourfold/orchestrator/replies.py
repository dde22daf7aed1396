"""What an orchestrator answers besides pictures, as values: failures in both dialects, Livepeer's ImageResponse."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fourfold.errors import FourfoldError, ValidationError
from fourfold.protocol import wire
from fourfold.protocol.livepeer_errors import reply_to_gateway

_RETRY_AFTER: Final = {"Retry-After": "1"}


@dataclass(frozen=True, slots=True)
class Reply:
    """A short answer."""

    status: int
    content_type: str
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)


def failure(error: FourfoldError, *, ours: bool, by_worker: bool, request_id: str) -> Reply:
    """Return the answer that tells a gateway of *error*: one of *ours* by its code, Livepeer's in its own words."""
    if ours:
        return json_failure(error, request_id=request_id)
    status, text = reply_to_gateway(error, by_worker=by_worker)
    headers = {"X-Content-Type-Options": "nosniff"} | (_RETRY_AFTER if status == 503 else {})
    return Reply(status, "text/plain; charset=utf-8", text + "\n", headers)


def json_failure(error: FourfoldError, *, request_id: str) -> Reply:
    """Return *error* as JSON, its code in a header; a malformed field in FastAPI's list form."""
    headers = {wire.ERROR_HEADER: error.code} | (_RETRY_AFTER if error.http_status in (429, 503) else {})
    content: dict[str, object]
    if isinstance(error, ValidationError):
        content = {"detail": error.detail}
    else:
        facts = {"message": error.message, "code": error.code, "request_id": request_id, "retryable": error.retryable}
        content = {"detail": {"msg": error.message}, "error": facts}
    return Reply(error.http_status, "application/json", json.dumps(content), headers)


def image_response(url: str, *, seed: int, nsfw: bool) -> str:
    """Return Livepeer's ImageResponse as go-livepeer writes it: its order of keys, a newline at the end."""
    image = {"nsfw": nsfw, "seed": seed, "url": url}
    return json.dumps({"images": [image]}, separators=(",", ":")) + "\n"
