"""EXIF into and out of TIFF."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image, TiffImagePlugin

from fourfold.imaging import OutputOptions

MAKE, MODEL, ORIENTATION, EXIF_IFD, GPS_IFD, EXPOSURE, WIDTH = 0x10F, 0x110, 0x112, 0x8769, 0x8825, 0x829A, 0xA002


def camera_exif(endian: str) -> Image.Exif:
    exif = Image.Exif()
    exif.endian = endian
    exif[MAKE], exif[MODEL], exif[ORIENTATION] = "Fourfold Works", "F4", 6
    exif.get_ifd(EXIF_IFD)[EXPOSURE] = TiffImagePlugin.IFDRational(1, 125)
    exif.get_ifd(EXIF_IFD)[WIDTH] = 40
    exif.get_ifd(GPS_IFD)[1] = "N"
    return exif


def said(path: Path) -> dict[str, Any]:
    """Return what Pillow reads of the file; the pixels must be there, too."""
    with Image.open(path) as image:
        image.load()
        exif = image.getexif()
        below = exif.get_ifd(EXIF_IFD)
        return {
            "make": exif.get(MAKE), "model": exif.get(MODEL), "turned": exif.get(ORIENTATION, 1),
            "exposure": float(below.get(EXPOSURE, 0)), "width": below.get(WIDTH), "place": exif.get_ifd(GPS_IFD).get(1),
        }  # fmt: skip


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("metadata", ["default", "keep", "copyright", "strip"])
def test_a_camera_s_exif_comes_into_a_tiff(make_picture, upscaling, tmp_path: Path, metadata: str, endian: str) -> None:
    """Numbers in the file's own byte order, sizes and orientation true; the place only where all is kept."""
    source = make_picture(kind="jpg", exif=camera_exif(endian))
    _, written = upscaling.upscale(source, tmp_path / "out.tif", OutputOptions(format="tiff", metadata=metadata))

    nothing = {"make": None, "model": None, "turned": 1, "exposure": 0, "width": None, "place": None}
    full = {"make": "Fourfold Works", "model": "F4", "turned": 1, "exposure": 1 / 125, "width": 120, "place": None}
    expected = {"default": full, "keep": full | {"place": "N"}, "copyright": nothing, "strip": nothing}[metadata]
    assert said(tmp_path / "out.tif") == pytest.approx(expected)
    assert written.metadata_kept == (("exif",) if expected is not nothing else ())


@pytest.mark.parametrize("target", ["png", "tiff", "jpeg"])
def test_a_tiff_s_exif_comes_out_of_it(make_picture, upscaling, tmp_path: Path, target: str) -> None:
    """Which libvips does not read."""
    camera = make_picture(kind="jpg", exif=camera_exif("<"))
    source = tmp_path / "source.tif"
    upscaling.upscale(camera, source, OutputOptions(format="tiff", scale=1))  # Pillow itself writes only half of it
    assert said(source)["exposure"] == 1 / 125
    upscaling.upscale(source, tmp_path / "out", OutputOptions(format=target))

    found = said(tmp_path / "out")
    assert (found["make"], found["model"], found["exposure"]) == ("Fourfold Works", "F4", 1 / 125)
