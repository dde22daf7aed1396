"""Format x mode x orientation x profile, pairwise: the upscaled picture looks as the truth does, in every cell.

The truth is what the same engine makes of the picture that Pillow and LittleCMS decoded, turned and converted; both are
compared as a colour-managed viewer shows them. Half a unit of CIEDE2000, on average, is below what anybody sees.
"""

import importlib.util
import itertools
import struct
from dataclasses import astuple, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageFilter, ImageOps


def _sibling(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"imaging_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


colours, upscaling = _sibling("colours"), _sibling("upscaling")
PHOTO = Path(__file__).parents[3] / "examples" / "photo.jpg"
MODES = ("L", "LA", "RGB", "RGBA", "P", "PA", "CMYK", "L16", "RGB16", "RGBA16")
FORMAT_TO_MODES = {
    "png": ("L", "LA", "RGB", "RGBA", "P", "PA", "L16", "RGB16", "RGBA16"),
    "jpeg": ("L", "RGB", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "tiff": ("L", "RGB", "RGBA", "P", "CMYK", "L16", "RGB16", "RGBA16"),
    "avif": ("RGB", "RGBA"),
    "gif": ("P", "PA"),
}
PROFILES = ("none", "sRGB", "P3", "AdobeRGB", "grey")


@dataclass(frozen=True)
class Cell:
    kind: str
    mode: str
    orientation: int
    profile: str

    def is_legal(self) -> bool:
        if self.mode not in FORMAT_TO_MODES[self.kind]:
            return False
        if self.kind == "gif" and (self.orientation != 1 or self.profile != "none"):
            return False
        if self.mode == "CMYK":
            return self.profile == "none"
        is_grey = self.mode in ("L", "LA", "L16")
        return self.profile == "none" or (self.profile == "grey") == is_grey


def cells() -> list[Cell]:
    """Return cells such that every legal pair of values stands in one of them, greedily few."""
    legal = [c for c in itertools.starmap(Cell, itertools.product(FORMAT_TO_MODES, MODES, range(1, 9), PROFILES))]
    legal = [cell for cell in legal if cell.is_legal()]
    pairs = {cell: set(itertools.combinations(enumerate(astuple(cell)), 2)) for cell in legal}
    open_pairs = set().union(*pairs.values())
    chosen = []
    while open_pairs:
        best = max(legal, key=lambda cell: len(pairs[cell] & open_pairs))
        chosen.append(best)
        open_pairs -= pairs[best]
    return chosen


def photo() -> Image.Image:
    """Return a part of the photo."""
    with Image.open(PHOTO) as image:
        return image.convert("RGB").crop((60, 40, 108, 76))


def picture(cell: Cell) -> np.ndarray:
    """Return the samples of the cell's picture; its alpha is soft and nowhere 0."""
    rgb = np.asarray(photo())
    bands = rgb if "RGB" in cell.mode else np.asarray(Image.fromarray(rgb).convert("L"))[..., None]
    if cell.mode in ("LA", "RGBA", "RGBA16"):
        slope = np.linspace(40, 250, rgb.shape[0] * rgb.shape[1]).reshape(*rgb.shape[:2], 1).astype(np.uint8)
        bands = np.concatenate([bands, slope], axis=-1)
    if cell.mode.endswith("16"):
        rng = np.random.default_rng(1)
        return (bands.astype(np.uint16) * 257 - rng.integers(0, 100, bands.shape)).clip(0, 65535).astype(np.uint16)
    return bands


def write(cell: Cell, path: Path) -> None:
    """Write the cell's file, by Pillow where that can, else by libvips' plainest saver."""
    icc = {"sRGB": colours.srgb_profile, "grey": colours.grey_profile}.get(
        cell.profile, lambda: colours.rgb_profile(cell.profile) if cell.profile in colours.PRIMARIES else b""
    )()
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = cell.orientation
    if cell.mode.endswith("16"):
        samples = picture(cell)
        kind = "grey16" if cell.mode == "L16" else "rgb16"
        image = pyvips.Image.new_from_array(samples).copy(interpretation=kind)
        image.set_type(pyvips.GValue.gint_type, "orientation", cell.orientation)
        if icc:
            image.set_type(pyvips.GValue.blob_type, "icc-profile-data", icc)
        image.set_type(pyvips.GValue.blob_type, "exif-data", b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0"))
        getattr(image, f"{cell.kind}save")(str(path))
        return
    if cell.mode in ("P", "PA"):
        image = photo().quantize(64)
        if cell.mode == "PA":
            image.info["transparency"] = 0
    elif cell.mode == "CMYK":
        data = pyvips.Operation.call("profile_load", "cmyk")
        icc = bytes(data)
        image = photo().convert("CMYK")
    else:
        image = Image.fromarray(picture(cell).squeeze(), mode=None)
    options: dict[str, object] = {"exif": exif} if cell.kind not in ("gif",) else {}
    if cell.mode == "PA":
        options["transparency"] = 0
    if cell.kind in ("jpeg", "webp", "avif"):
        options["quality"] = 95
    if cell.kind == "webp":
        options |= {"lossless": True, "exact": True}
    if cell.kind == "avif":
        options["subsampling"] = "4:4:4"
    if cell.kind == "tiff":
        options["compression"] = "tiff_lzw"
    if icc:
        options["icc_profile"] = icc
    image.save(path, cell.kind, **options)


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        turned = ImageOps.exif_transpose(image)
        turned.info.setdefault("icc_profile", image.info.get("icc_profile"))
        if image.mode == "P" and "transparency" in image.info:
            turned.info["transparency"] = image.info["transparency"]
        return turned


def as_srgb(path: Path) -> np.ndarray:
    """Return what a colour-managed viewer shows of a file."""
    image = opened(path)
    samples = _sixteen(path)
    if samples is not None and image.mode in ("RGB", "RGBA") and not image.info.get("icc_profile"):
        return samples[..., :3] / 257
    return colours.as_srgb(image)


def _sixteen(path: Path) -> np.ndarray | None:
    """Return the samples of a 16-bit file, upright; None where it has 8 bits. (Pillow gives 8 bits of RGB.)"""
    image = pyvips.Image.new_from_file(str(path)).autorot()
    if image.format != "ushort":
        return None
    return image.numpy().reshape(image.height, image.width, image.bands).astype(float)


@pytest.mark.parametrize("cell", cells(), ids=lambda c: f"{c.kind}-{c.mode}-{c.orientation}-{c.profile}")
def test_a_picture_comes_back_as_it_was_only_larger(cell: Cell, tmp_path: Path) -> None:
    """Size, orientation, colour, alpha, depth, bands, profile and metadata."""
    source, target = tmp_path / f"in.{cell.kind}", tmp_path / "out.png"
    write(cell, source)

    done, written = upscaling.upscale(source, target)

    upright = opened(source)
    with Image.open(target) as raw:
        raw.load()
        result = raw.copy()
        exif = raw.getexif()
    size = (upright.width * 4, upright.height * 4)
    assert (result.size, (written.width, written.height)) == (size, size)
    assert exif.get(0x0112, 1) == 1
    if "exif" in done.recipe.metadata:
        assert exif.get(0x010F) == "Maker"
    # Colour: the same engine on what Pillow and LittleCMS make of it.
    small = np.rint(as_srgb(source)).clip(0, 255).astype(np.uint8)
    truth = upscaling.enlarged(small).astype(float)
    difference = colours.delta_e_2000(truth, as_srgb(target))
    if cell.mode == "PA":  # what is under full transparency is nobody's colour, and reaches three pixels far
        transparent = np.asarray(upright.convert("RGBA"))[..., 3] == 0
        spread = np.asarray(Image.fromarray(np.uint8(transparent) * 255).filter(ImageFilter.MaxFilter(7))) > 0
        difference = difference[~np.repeat(np.repeat(spread, 4, 0), 4, 1)]
    assert difference.size == 0 or difference.mean() <= 0.5
    # Depth and bands.
    depth = struct.unpack(">B", target.read_bytes()[24:25])[0]
    assert depth == (16 if cell.mode.endswith("16") else 8)
    is_grey = cell.mode in ("L", "LA", "L16")
    bands = pyvips.Image.new_from_file(str(target)).bands
    assert bands == (1 if is_grey else 3) + (cell.mode in ("LA", "RGBA", "RGBA16", "PA"))
    # Alpha.
    if cell.mode in ("LA", "RGBA"):
        alpha = np.asarray(upright.getchannel("A"))
        expected = upscaling.enlarged(np.repeat(alpha[..., None], 3, -1))[..., 0].astype(int)
        assert np.abs(np.asarray(result.getchannel("A")).astype(int) - expected).max() <= 1
    # The profile that came is the profile that goes.
    if cell.profile != "none":
        assert result.info.get("icc_profile") == upright.info.get("icc_profile")
    elif cell.mode != "CMYK":
        assert "icc_profile" not in result.info


def test_the_cells_reach_every_pair() -> None:
    """Each format, mode, orientation and profile is among them."""
    chosen = cells()
    assert len(chosen) >= 80
    assert {cell.orientation for cell in chosen} == set(range(1, 9))
    assert {cell.mode for cell in chosen} == set(MODES)
