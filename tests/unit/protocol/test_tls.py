"""The orchestrator's certificate: kept while it is good, made anew when it is not."""

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fourfold.errors import ConfigError
from fourfold.protocol.tls import CertificateFiles, ensure_certificate

NOW = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)


def read(files: CertificateFiles) -> x509.Certificate:
    """Return the certificate."""
    return x509.load_pem_x509_certificate(files.certificate.read_bytes())


def names(files: CertificateFiles) -> tuple[list[str], list[str]]:
    """Return its DNS names and its addresses."""
    san = read(files).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return san.get_values_for_type(x509.DNSName), [str(ip) for ip in san.get_values_for_type(x509.IPAddress)]


def test_it_is_the_certificate_that_peers_expect(tmp_path: Path) -> None:
    """EC P-256, CA:TRUE, self-signed, for the service's host first (go-livepeer server/cert.go)."""
    files = ensure_certificate(tmp_path / "tls", "orch.example.org", addresses=["192.0.2.7"], now=NOW)
    certificate = read(files)
    key = certificate.public_key()

    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert ExtendedKeyUsageOID.SERVER_AUTH in usage
    certificate.verify_directly_issued_by(certificate)
    assert names(files) == (["orch.example.org", "localhost"], ["192.0.2.7", "127.0.0.1", "::1"])
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "orch.example.org"


def test_the_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    """And so is the folder."""
    files = ensure_certificate(tmp_path / "tls", "localhost", now=NOW)

    assert files.key.stat().st_mode & 0o777 == 0o600
    assert files.key.parent.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in files.key.parent.iterdir()) == ["certificate.pem", "key.pem"]


def test_it_stays_the_same_across_restarts(tmp_path: Path) -> None:
    """Peers that pinned it go on trusting it."""
    first = read(ensure_certificate(tmp_path, "localhost", now=NOW))
    again = read(ensure_certificate(tmp_path, "localhost", now=NOW + dt.timedelta(days=300)))

    assert first == again


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", (["localhost"], ["127.0.0.1", "::1"])),
        ("0.0.0.0", (["localhost"], ["127.0.0.1", "::1"])),
        ("[2001:db8::1]", (["localhost"], ["2001:db8::1", "127.0.0.1", "::1"])),
        ("BÜCHER.example", (["xn--bcher-kva.example", "localhost"], ["127.0.0.1", "::1"])),
    ],
)
def test_any_host_gets_names_that_fit(tmp_path: Path, host: str, expected: tuple[list[str], list[str]]) -> None:
    """Addresses are no DNS names; the unspecified address is nobody's."""
    assert names(ensure_certificate(tmp_path, host, now=NOW)) == expected


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".org"])
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    """By the setting's name."""
    with pytest.raises(ConfigError, match="service_addr"):
        ensure_certificate(tmp_path, host, now=NOW)


@pytest.mark.parametrize("days", [-2, 336, 400])
def test_it_is_made_anew_before_it_expires(tmp_path: Path, days: int) -> None:
    """30 days ahead; also if the clock was once far in the future."""
    first = read(ensure_certificate(tmp_path, "localhost", now=NOW))
    then = NOW + dt.timedelta(days=days)
    second = read(ensure_certificate(tmp_path, "localhost", now=then))

    assert first != second
    assert second.not_valid_before_utc <= then < second.not_valid_after_utc


def _truncate(files: CertificateFiles) -> None:
    files.certificate.write_bytes(files.certificate.read_bytes()[:100])


def _empty_key(files: CertificateFiles) -> None:
    files.key.write_bytes(b"")


def _binary_key(files: CertificateFiles) -> None:
    files.key.write_bytes(b"\xff" * 64)


def _no_key(files: CertificateFiles) -> None:
    files.key.unlink()


def _other_key(files: CertificateFiles) -> None:
    other = ensure_certificate(files.key.parent / "other", "localhost", now=NOW)
    files.key.write_bytes(other.key.read_bytes())


def _readable_key(files: CertificateFiles) -> None:
    files.key.chmod(0o644)


def _debris(files: CertificateFiles) -> None:
    files.key.with_suffix(".partial").write_bytes(b"half a key")
    files.key.unlink()


def _no_names(files: CertificateFiles) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + dt.timedelta(days=365))
    from cryptography.hazmat.primitives import hashes, serialization

    files.certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize(
    "damage", [_truncate, _empty_key, _binary_key, _no_key, _other_key, _readable_key, _debris, _no_names]
)
def test_a_damaged_pair_is_replaced(tmp_path: Path, damage: object) -> None:
    """An orchestrator starts whatever state its folder is in."""
    files = ensure_certificate(tmp_path, "localhost", now=NOW)
    first = read(files)
    damage(files)  # type: ignore[operator]
    again = ensure_certificate(tmp_path, "localhost", now=NOW)

    assert read(again) != first
    assert again.key.stat().st_mode & 0o777 == 0o600
    assert read(ensure_certificate(tmp_path, "localhost", now=NOW)) == read(again)


def test_another_host_needs_another_certificate(tmp_path: Path) -> None:
    """Peers check the name, some of them."""
    first = read(ensure_certificate(tmp_path, "a.example", now=NOW))
    files = ensure_certificate(tmp_path, "b.example", now=NOW)

    assert read(files) != first
    assert names(files)[0] == ["b.example", "localhost"]


def test_a_folder_that_cannot_be_written_is_a_setting_to_change(tmp_path: Path) -> None:
    """Not a traceback."""
    (tmp_path / "tls").write_text("a file")

    with pytest.raises(ConfigError, match="cannot keep the TLS certificate"):
        ensure_certificate(tmp_path / "tls", "localhost", now=NOW)


def test_the_real_clock_is_used_where_none_is_given(tmp_path: Path) -> None:
    """As compose calls it."""
    assert read(ensure_certificate(tmp_path, "localhost")).not_valid_after_utc > dt.datetime.now(dt.UTC)
