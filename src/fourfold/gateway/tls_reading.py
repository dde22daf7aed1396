"""Read TLS by what has arrived, not by its records of 16 KiB.

The HTTP library hands on one record a read, and each read passes through all of its layers: a fifth of what a gateway
spends on a picture. This stands between it and its own connections and adds the records that lie decrypted already.
"""

import ssl
from typing import Any

import httpx2


def read_by_arrival(transport: httpx2.AsyncHTTPTransport) -> None:
    """Let the connections that *transport* opens from now on read all that has arrived, within what is asked for.

    It reaches into the library, which has no argument for this; ``tests/unit/gateway/test_tls_reading.py`` fails where
    that changes.
    """
    pool: Any = transport._pool
    pool._network_backend = _Backend(pool._network_backend)


class _Wrapped:
    """Something of the library's, with one method changed."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Backend(_Wrapped):
    """Opens connections."""

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> "_Plain":
        """Connect; the TLS that is started on it reads by arrival."""
        return _Plain(await self._inner.connect_tcp(*args, **kwargs))


class _Plain(_Wrapped):
    """A connection before its handshake."""

    async def start_tls(self, *args: Any, **kwargs: Any) -> "_Tls":
        """Shake hands."""
        return _Tls(await self._inner.start_tls(*args, **kwargs))


class _Tls(_Wrapped):
    """A connection after its handshake."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._ssl: ssl.SSLObject = inner.get_extra_info("ssl_object")

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what there is, *max_bytes* at most; wait for the first of it."""
        data: bytes = await self._inner.read(max_bytes, timeout)
        if not data or len(data) == max_bytes:
            return data
        pieces, left = [data], max_bytes - len(data)
        try:
            while left and (more := self._ssl.read(left)):
                pieces.append(more)
                left -= len(more)
        except ssl.SSLError:
            pass  # the rest of a record is still on its way; a broken one shows again at the next read
        return b"".join(pieces)
