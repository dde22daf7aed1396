"""Certificates of orchestrators, trusted on first use and kept in memory.

Orchestrators sign their own certificates and go-livepeer makes a new one at each start, so there is no authority to
ask: the first certificate that an address shows is the one it must show from then on. Where it changes, it is fetched
again once and the change is logged; with ``gateway.pin = "strict"`` it is refused.
"""

import asyncio
import contextlib
import hashlib
import logging
import ssl
from functools import cached_property
from typing import Final, Literal

from cryptography import x509
from cryptography.x509.oid import NameOID

from fourfold.errors import UnreachableError

log = logging.getLogger(__name__)

_ALPN: Final = ["h2", "http/1.1"]


class Certificate:
    """One certificate as an address showed it."""

    def __init__(self, der: bytes) -> None:
        self.der = der
        self.pem = ssl.DER_cert_to_PEM_cert(der)
        self.fingerprint = hashlib.sha256(der).hexdigest()

    @cached_property
    def name(self) -> str:
        """A name that the certificate is valid for: its first DNS name, else its first address, else its CN."""
        certificate = x509.load_der_x509_certificate(self.der)
        found: list[str] = []
        with contextlib.suppress(x509.ExtensionNotFound):
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            found += names.get_values_for_type(x509.DNSName)
            found += [str(address) for address in names.get_values_for_type(x509.IPAddress)]
        found += [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        return found[0].replace("*", "any") if found else "localhost"

    @cached_property
    def context(self) -> ssl.SSLContext:
        """Client settings that accept this certificate and no other, whatever name it was asked under."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        # The pin need not be a certificate authority.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=self.pem)
        return context


class Pins:
    """The certificate of every address that was spoken to."""

    def __init__(self, *, mode: Literal["memory", "strict"] = "memory", timeout_s: float) -> None:
        self._mode = mode
        self._timeout_s = timeout_s
        self._authority_to_certificate: dict[str, Certificate] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def get(self, host: str, port: int) -> Certificate:
        """Return the pinned certificate of *host*:*port*; the first caller fetches it, the others wait for that.

        Raises: UnreachableError if the address shows none in time.
        """
        authority = f"{host}:{port}"
        async with self._locks.setdefault(authority, asyncio.Lock()):
            if authority not in self._authority_to_certificate:
                self._authority_to_certificate[authority] = await self._fetch(host, port)
            return self._authority_to_certificate[authority]

    async def renew(self, host: str, port: int, used: Certificate) -> Certificate:
        """Return the certificate to use after a connection that expected *used* failed: *used* if nothing changed.

        Raises: UnreachableError if the address shows none in time, or another one while pins are strict.
        """
        authority = f"{host}:{port}"
        async with self._locks.setdefault(authority, asyncio.Lock()):
            pinned = self._authority_to_certificate.get(authority, used)
            if pinned.der != used.der:
                return pinned
            shown = await self._fetch(host, port)
            if shown.der == used.der:
                return used
            facts = {"orchestrator": authority, "was": used.fingerprint[:16], "now": shown.fingerprint[:16]}
            if self._mode == "strict":
                log.error("certificate_refused", extra=facts)
                raise UnreachableError(
                    f"{authority} shows another certificate than before and gateway.pin is strict; "
                    "restart the gateway if the change is meant"
                )
            log.warning("certificate_changed", extra=facts)
            self._authority_to_certificate[authority] = shown
            return shown

    async def _fetch(self, host: str, port: int) -> Certificate:
        """Return the certificate that *host*:*port* shows now."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(_ALPN)
        try:
            async with asyncio.timeout(self._timeout_s):
                _, writer = await asyncio.open_connection(host, port, ssl=context)
                try:
                    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                finally:
                    writer.transport.abort()
        except TimeoutError:
            raise UnreachableError(f"{host}:{port} did not answer in {self._timeout_s:g} s") from None
        except OSError as exc:
            raise UnreachableError(f"{host}:{port} cannot be reached: {exc.strerror or exc}") from exc
        return Certificate(der)
