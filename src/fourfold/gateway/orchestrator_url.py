"""Addresses of orchestrators: ``https://host:port``, checked once. Pure."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from fourfold.errors import ConfigError
from fourfold.protocol.routes import ORCHESTRATOR_PORT

_UNSPECIFIED = frozenset({"0.0.0.0", "::"})


@dataclass(frozen=True, slots=True)
class OrchestratorUrl:
    """Where an orchestrator listens, for gRPC and HTTPS alike."""

    host: str  #: a name or an address, an IPv6 one without brackets
    port: int
    path: str = ""  #: a prefix before the routes, without a slash at its end

    @property
    def authority(self) -> str:
        """``host:port`` as it stands in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"https://{self.authority}{self.path}"


def parse_orchestrator_url(text: str, *, seen_at: OrchestratorUrl | None = None) -> OrchestratorUrl:
    """Read ``https://host[:port]`` or ``host:port``, Livepeer's short form; the port is 8935 where none stands.

    Args: *seen_at*: where the orchestrator was reached that named itself *text*; replaces a host that says
        "any address" (``0.0.0.0``), which Livepeer's own examples use.
    Raises: ConfigError if *text* is neither.
    """
    parts = urlsplit(text if "://" in text else f"https://{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme != "https" or not host or parts.username or parts.query or parts.fragment:
        raise ConfigError(f"expected an orchestrator as https://host:port, got {text[:200]!r}")
    if seen_at is not None and host in _UNSPECIFIED:
        host = seen_at.host
    return OrchestratorUrl(host, ORCHESTRATOR_PORT if port is None else port, parts.path.rstrip("/"))
