"""Names of certificates."""

import datetime as dt
import ipaddress
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fourfold.gateway.pinning import Certificate


def certificate(common_name: str | None, names: list[x509.GeneralName] | None) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(x509.Name(attributes))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Certificate(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER))


@pytest.mark.parametrize(
    ("common_name", "names", "expected"),
    [
        ("cn", [x509.IPAddress(ipaddress.ip_address("10.0.0.1")), x509.DNSName("dns.example")], "dns.example"),
        ("cn", [x509.IPAddress(ipaddress.ip_address("10.0.0.1"))], "10.0.0.1"),
        ("cn", None, "cn"),
        (None, None, "localhost"),
        (None, [x509.DNSName("*.example")], "any.example"),
    ],
)
def test_the_name_is_one_that_the_certificate_is_valid_for(
    common_name: str | None, names: list[x509.GeneralName] | None, expected: str
) -> None:
    """Its DNS name, else its address, else its CN."""
    assert certificate(common_name, names).name == expected


def test_the_context_trusts_the_pin_and_nothing_else() -> None:
    """Verification is on, hostnames are not looked at, and one certificate is trusted."""
    context = certificate("cn", None).context

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname is False
    assert context.cert_store_stats()["x509"] == 1
