"""The absolute address under which a client finds its result. Pure."""

import re
from typing import Final

from fourfold.protocol.routes import STREAM

#: What a Host header may be if it is to stand in a URL: a name or an address, and a port.
_HOST: Final = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?\Z"
)


def result_url(key: str, *, public_url: str | None, scheme: str, host: str, listening: tuple[str, int]) -> str:
    """Return the URL of the result *key*.

    Args: *public_url*, the operator's word, which goes before everything; *scheme* and *host*, the request's own
        (clients choose the latter freely, so it is used only where it has the shape of one); *listening*, the address
        that the request came in at.
    """
    if public_url is not None:
        return f"{public_url.rstrip('/')}{STREAM}/{key}"
    match = _HOST.match(host)
    if match is None or int(match[1] or 80) > 65535:
        address, port = listening
        host = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return f"{scheme}://{host}{STREAM}/{key}"
