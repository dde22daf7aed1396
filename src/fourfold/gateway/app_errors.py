"""The one mapping from an error to a response at seam 1.

``detail`` is an object, never a string (Livepeer's SDKs crash on that), beside go-livepeer's own ``error``; a 422 has
FastAPI's list form instead. Every error is JSON and says whether sending the request again may help.
"""

from collections.abc import Mapping
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fourfold.errors import Blame, FourfoldError, NotFoundError, ValidationError
from fourfold.telemetry import Metrics, request_id

#: Seconds after which the same request may succeed.
_CODE_TO_RETRY_AFTER_S: Final = {"queue_full": 2, "no_orchestrator": 10, "model_unavailable": 10, "price_above_max": 60}
_RETRY_AFTER_S: Final = 5
_TEMPORARY: Final = frozenset({429, 503})


def error_response(error: FourfoldError) -> Response:
    """Return the response that tells a client of *error*."""
    headers = {}
    if error.http_status in _TEMPORARY:
        headers["Retry-After"] = str(_CODE_TO_RETRY_AFTER_S.get(error.code, _RETRY_AFTER_S))
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    detail = error.detail if isinstance(error, ValidationError) else {"msg": error.message}
    return _response(error.http_status, error.code, error.message, detail, headers, retryable=error.retryable)


def refusal(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response to a request that is wrong in terms of HTTP itself, which no FourfoldError stands for."""
    return _response(status, code, message, {"msg": message}, headers)


def _response(
    status: int, code: str, message: str, detail: Any, headers: Mapping[str, str] | None, *, retryable: bool = False
) -> Response:
    error = {"message": message, "code": code, "request_id": request_id.get(), "retryable": retryable}
    return JSONResponse({"detail": detail, "error": error}, status, headers)


def handlers(metrics: Metrics) -> dict[Any, Any]:
    """Return Starlette's exception handlers; each failure that a client is told of is counted once, here."""

    async def known(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, FourfoldError)
        metrics.count_error(exc)
        return error_response(exc)

    async def http(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        if exc.status_code == 404:
            return await known(request, NotFoundError(f"nothing is at {request.url.path[:200]}"))
        code = "method_not_allowed" if exc.status_code == 405 else "http_error"
        metrics.count_refusal(code, Blame.CLIENT)
        message = exc.detail
        if exc.status_code == 405 and exc.headers:
            message = f"{request.method} is not for this address; use {exc.headers.get('Allow', '')}"
        return refusal(exc.status_code, code, message, exc.headers)

    async def unexpected(request: Request, _: Exception) -> Response:
        # The cause goes to the log, by the edge, and not to the client.
        return await known(request, FourfoldError("an internal error; the gateway's log has it under this request_id"))

    return {FourfoldError: known, HTTPException: http, Exception: unexpected}
