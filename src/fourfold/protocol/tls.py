"""The orchestrator's own certificate: self-signed, made once, kept in a folder across restarts.

Livepeer's gateways do not verify it and Python ones pin it at first use, so what counts is that it stays the same
and that its names fit (``ssl_target_name_override`` takes the first DNS name).
Source: go-livepeer ``server/cert.go``, which makes a new one at every start.
"""

import datetime as dt
import ipaddress
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fourfold.errors import ConfigError

log = logging.getLogger(__name__)

_CERTIFICATE: Final = "certificate.pem"
_KEY: Final = "key.pem"
_VALID_FOR: Final = dt.timedelta(days=365)
_RENEW_BEFORE: Final = dt.timedelta(days=30)
_BACKDATED: Final = dt.timedelta(days=1)  #: for peers whose clock is behind

_IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where the certificate and its key lie, both PEM."""

    certificate: Path
    key: Path  #: mode 0600


def ensure_certificate(
    folder: Path, host: str, *, addresses: Iterable[str] = (), now: dt.datetime | None = None
) -> CertificateFiles:
    """Return the certificate kept in *folder*, made anew if it is missing, damaged, about to expire or for other names.

    Args: *host*, the name or address under which peers reach this service. *addresses*, further IP addresses; the
        loopback ones are always included. *now*, an aware time, for tests.

    Raises: ConfigError if *host* is no host name or *folder* cannot be written.
    """
    now = dt.datetime.now(dt.UTC) if now is None else now
    names, ips = _names(host, addresses)
    files = CertificateFiles(folder / _CERTIFICATE, folder / _KEY)
    reason = _why_unusable(files, names, ips, now)
    if reason is None:
        return files
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(key, names, ips, now)
        pem = serialization.Encoding.PEM
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        _write(files.key, secret, 0o600)
        _write(files.certificate, certificate.public_bytes(pem), 0o644)
    except OSError as exc:
        raise ConfigError(
            f"cannot keep the TLS certificate in {folder}: {exc.strerror}; choose another folder"
        ) from exc
    log.info("certificate_made", extra={"reason": reason, "host": host})
    return files


def _names(host: str, addresses: Iterable[str]) -> tuple[list[str], list[_IpAddress]]:
    """Return the DNS names (the service's first) and IP addresses of the certificate."""
    names, ips = [], []
    for text in (host.strip("[]"), *addresses):
        try:
            ip = ipaddress.ip_address(text)
        except ValueError:
            names.append(_dns_name(text))
        else:
            if not ip.is_unspecified:
                ips.append(ip)
    names.append("localhost")
    ips += [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    return list(dict.fromkeys(names)), list(dict.fromkeys(ips))


def _dns_name(host: str) -> str:
    """Return *host* as a certificate writes it. Raises: ConfigError if it is no host name."""
    try:
        return host.encode("idna").decode("ascii").lower()
    except UnicodeError as exc:
        raise ConfigError(f"expected a host name or an IP address in service_addr, got {host!r}") from exc


def _sign(
    key: ec.EllipticCurvePrivateKey, names: list[str], ips: list[_IpAddress], now: dt.datetime
) -> x509.Certificate:
    """Return a certificate for *names* and *ips* signed by its own *key*."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, (names[0])[:64])])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _VALID_FOR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([*map(x509.DNSName, names), *map(x509.IPAddress, ips)]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _why_unusable(files: CertificateFiles, names: list[str], ips: list[_IpAddress], now: dt.datetime) -> str | None:
    """Return why the files cannot be used as they are, None if they can."""
    try:
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError, TypeError, x509.ExtensionNotFound):
        return "damaged"
    if key.public_key() != certificate.public_key():
        return "damaged"
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc - _RENEW_BEFORE:
        return "expired"
    if san.get_values_for_type(x509.DNSName) != names or san.get_values_for_type(x509.IPAddress) != ips:
        return "host_changed"
    if files.key.stat().st_mode & 0o077:
        return "key_was_readable"
    return None


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace *path* in one step; the file never exists with wider permissions than *mode*."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    partial.replace(path)
