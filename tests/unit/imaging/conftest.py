"""Pictures made by Pillow, an implementation that shares nothing with ours."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

MakePicture = Callable[..., Path]


def _sibling(name: str) -> ModuleType:
    """Return a module that lies beside this one: tests are no package."""
    spec = importlib.util.spec_from_file_location(f"imaging_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def upscaling() -> ModuleType:
    """The whole way of a picture, without the processes."""
    return _sibling("upscaling")


@pytest.fixture(scope="session")
def colours() -> ModuleType:
    """Profiles, and the difference of colours."""
    return _sibling("colours")


def gradient(width: int, height: int, bands: int = 3) -> np.ndarray:
    """Return ``uint8 [height, width, bands]``, smooth, different in every band."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * 3 + y * (band + 1) * 2 + band * 40) % 256 for band in range(bands)]
    return np.stack(planes, axis=-1).astype(np.uint8)


@pytest.fixture
def make_picture(tmp_path: Path) -> MakePicture:
    """Return a function that writes a picture and returns its path."""

    def make(mode: str = "RGB", size: tuple[int, int] = (40, 30), kind: str = "png", **options: object) -> Path:
        image = Image.fromarray(gradient(*size)).convert("RGB" if mode in ("RGBA", "P") else mode.rstrip("A") or mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.fromarray(gradient(*size)[..., 0]))
        if mode == "P":
            image = image.quantize(16)
        path = tmp_path / f"{mode}-{size[0]}x{size[1]}.{kind}"
        image.save(path, "jpeg" if kind == "jpg" else kind, **options)
        return path

    return make
