"""A dozen cells of the matrix with the default model: what it makes of a picture does not depend on the picture's form.

The truth is what the model makes of the canonical PNG; each form of the same picture must come to it.
"""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

from fourfold.compose.worker import local_worker
from fourfold.config import Settings
from fourfold.imaging import OutputOptions
from fourfold.worker.orders import Upscaled, WorkOrder

pytestmark = pytest.mark.slow

MODEL = "fourfold/realesrgan-x4plus"
PHOTO = Path(__file__).parents[2] / "examples" / "photo.jpg"
P3 = bytes(pyvips.Operation.call("profile_load", "p3"))
TURNS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def photo() -> Image.Image:
    with Image.open(PHOTO) as image:
        return image.convert("RGB").crop((60, 40, 108, 76))


def forms() -> Iterator[tuple[str, bytes, float]]:
    """Yield a name, the file, and the mean difference that its form alone may bring, of 255 levels."""
    image = photo()

    def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        return stream.getvalue()

    yield "png", saved(image, "png"), 0.0
    yield "tiff", saved(image, "tiff", compression="tiff_lzw"), 0.0
    yield "webp", saved(image, "webp", lossless=True), 0.0
    yield "jpeg", saved(image, "jpeg", quality=100, subsampling=0), 1.5
    yield "avif", saved(image, "avif", quality=100, subsampling="4:4:4"), 1.5
    for tag, turn in TURNS.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        yield f"png-orientation-{tag}", saved(image.transpose(turn), "png", exif=exif), 0.0
    converted = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(P3)), renderingIntent=1
    )
    assert converted is not None
    yield "png-display-p3", saved(converted, "png", icc_profile=P3), 2.0
    opaque = image.copy()
    opaque.putalpha(255)
    yield "png-opaque-alpha", saved(opaque, "png"), 0.0
    soft = image.copy()
    soft.putalpha(200)
    yield "png-soft-alpha", saved(soft, "png"), 0.0
    deep = pyvips.Image.new_from_array(np.asarray(image).astype(np.uint16) * 257).copy(interpretation="rgb16")
    yield "png-16-bit", bytes(deep.pngsave_buffer()), 3.0  # float32 instead of bfloat16


def shown(path: Path) -> np.ndarray:
    """Return the result as a colour-managed viewer shows it."""
    with Image.open(path) as image:
        rgb: Image.Image | None = image.convert("RGB")
        icc = image.info.get("icc_profile")
    assert rgb is not None
    if icc:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        rgb = ImageCms.profileToProfile(rgb, profile, ImageCms.createProfile("sRGB"), renderingIntent=1)
    return np.asarray(rgb).astype(float)


async def _upscale_all(folder: Path) -> dict[str, tuple[Upscaled, np.ndarray]]:
    made = {}
    async with local_worker(Settings.model_validate({"worker": {"threads": 2}}), MODEL) as worker:
        for name, data, _ in forms():
            (folder / name).write_bytes(data)
            order = WorkOrder(name, folder / name, MODEL, output=OutputOptions(), safety_check=False)
            with worker.admit(name) as place:
                done = await worker.upscale(order, place)
                made[name] = done, shown(done.path)
    return made


def test_every_form_of_a_picture_comes_to_the_same_result(tmp_path: Path) -> None:
    """Twelve forms, one picture."""
    made = asyncio.run(_upscale_all(tmp_path))

    truth = made["png"][1]
    assert len(made) == 12
    for name, _, allowed in forms():
        done, pixels = made[name]
        assert (done.width, done.height) == (192, 144)
        assert np.abs(pixels - truth).mean() <= allowed, name
        assert done.fidelity.detail_ratio is not None and done.fidelity.detail_ratio > 1.6
