"""Ask a running role whether it can take work: for the health check of a container, and for people."""

import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import httpx2

from fourfold.compose.common import reachable
from fourfold.config import GatewaySettings, OrchestratorSettings, Settings, WorkerSettings
from fourfold.errors import ConfigError, InvalidParameterError
from fourfold.protocol import routes, wire

_ANSWER_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Health:
    """What a role says of itself."""

    is_well: bool
    text: str  #: for people, one line


@dataclass(frozen=True, slots=True)
class _Question:
    """How a role is asked."""

    scheme: str
    path: str
    read: Callable[[Mapping[str, Any]], Health]


def _read_gateway(answer: Mapping[str, Any]) -> Health:
    reasons = [str(reason) for reason in answer.get("reasons", [])]
    is_ready = answer.get("status") == "ready"
    return Health(is_ready, "ready" if is_ready else "; ".join(["not ready", *reasons]))


def _read_orchestrator(answer: Mapping[str, Any]) -> Health:
    if answer.get("accepting") is not True:
        return Health(False, "accepts no jobs: it is shutting down")
    withdrawn = [str(model_id) for model_id in answer.get("withdrawn", [])]
    return Health(True, "; ".join(["accepts jobs", *(f"{model_id} cannot be had now" for model_id in withdrawn)]))


def _read_worker(answer: Mapping[str, Any]) -> Health:
    status = str(answer.get("status"))
    rows = [row for row in answer.get("models", []) if isinstance(row, dict) and "failure" in row]
    missing = [f"{row.get('model_id')} cannot be had now: {row['failure']}" for row in rows]
    return Health(status in {"OK", "IDLE"}, "; ".join([status, *missing]))


_ROLE_TO_QUESTION: Final[Mapping[str, _Question]] = MappingProxyType(
    {
        "gateway": _Question("http", routes.READYZ, _read_gateway),
        "orchestrator": _Question("https", routes.HEALTHZ, _read_orchestrator),
        "worker": _Question("http", routes.HEALTH, _read_worker),
    }
)
ROLES: Final = tuple(_ROLE_TO_QUESTION)


def base_url(role: str, settings: Settings) -> str:
    """Return where *role* listens on this machine by the *settings*. Raises: ConfigError if its port is 0."""
    own: GatewaySettings | OrchestratorSettings | WorkerSettings = getattr(settings, role)
    if not own.port:
        raise ConfigError(f"{role}.port is 0, so nobody knows where it listens; name the address with --url")
    return f"{_ROLE_TO_QUESTION[role].scheme}://{reachable(own.host)}:{own.port}"


def ask(role: str, url: str, *, timeout_s: float) -> Health:
    """Return how the *role* at the base *url* is; one that does not answer is not well.

    Its certificate is not verified: it is self-signed, and nothing secret is said.

    Raises: InvalidParameterError if *url* is none.
    """
    question = _ROLE_TO_QUESTION[role]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    asked = url.rstrip("/") + question.path
    try:
        ours = {wire.PROTOCOL_HEADER: wire.PROTOCOL_VERSION}
        reply = httpx2.get(asked, headers=ours, timeout=timeout_s, trust_env=False, verify=context)
        answer = json.loads(reply.content[:_ANSWER_BYTES])
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as exc:
        raise InvalidParameterError(
            f"expected the base URL of a {role}, {question.scheme}://host:port, got {url!r}"
        ) from exc
    except httpx2.HTTPError as exc:
        return Health(False, f"no answer from {asked} ({type(exc).__name__})")
    except ValueError:
        return Health(False, f"{asked} answers status {reply.status_code} without JSON: that is no {role}")
    if not isinstance(answer, dict):
        return Health(False, f"{asked} answers something else: that is no {role}")
    return question.read(answer)
