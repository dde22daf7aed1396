"""Canonical form and back: upright sRGB with three 8-bit bands in the middle, grey and alpha kept beside it."""

from pathlib import Path
from typing import Any, Final

import pyvips

from fourfold.imaging.values import Recipe

_OPAQUE: Final = 255


def to_canonical(image: Any, alpha_path: Path, *, scan_alpha: Any) -> tuple[Any, Recipe]:
    """Return *image* as upright 8-bit sRGB ``[h, w, 3]`` and the recipe that undoes it.

    Args: *alpha_path*, where a transparency that is not opaque all over is written. *scan_alpha*, opens the source
        again: the picture is read once, top to bottom, so its alpha needs a reading of its own.
    """
    image = _upright(image)
    grey = image.interpretation in ("b-w", "grey16")
    alpha: Path | None = None
    if image.hasalpha():
        if _extract_alpha(_upright(scan_alpha()), alpha_path):
            alpha = alpha_path
        image = image.extract_band(0, n=image.bands - 1)
    if image.get_typeof("icc-profile-data"):
        image = _profile_to_srgb(image)
    if image.interpretation != "srgb" or image.format != "uchar" or image.bands != 3:
        image = image.colourspace("srgb").cast("uchar")
    return image, Recipe(grey=grey, alpha=alpha)


def from_canonical(image: Any, recipe: Recipe) -> Any:
    """Put back onto the upscaled sRGB *image* what *recipe* took away."""
    if recipe.grey:
        image = image.colourspace("b-w")
    if recipe.alpha is not None:
        small = pyvips.Image.pngload(str(recipe.alpha), access="sequential")
        factor = image.width / small.width
        alpha = small.resize(factor, vscale=image.height / small.height, kernel="lanczos3")
        image = image.bandjoin(alpha.cast("uchar").gravity("north-west", image.width, image.height, extend="copy"))
    return image


def _upright(image: Any) -> Any:
    """Apply the orientation tag, if there is one."""
    if "orientation" in image.get_fields() and image.get("orientation") != 1:
        return image.copy_memory().autorot()  # turning needs random access
    return image


def _extract_alpha(image: Any, path: Path) -> bool:
    """Write the alpha band to *path*; return False, writing nothing, where it is opaque all over."""
    alpha = image.extract_band(image.bands - 1)
    if alpha.format == "ushort":
        alpha = (alpha >> 8).cast("uchar")
    alpha = alpha.cast("uchar").copy(interpretation="b-w").copy_memory()
    if alpha.min() == _OPAQUE:
        return False
    alpha.pngsave(str(path), compression=1, filter="up", strip=True)
    return True


def _profile_to_srgb(image: Any) -> Any:
    """Convert by the embedded profile, so that colours keep their appearance; a broken profile counts as none."""
    try:
        return image.icc_transform("srgb", embedded=True, intent="relative", depth=8)
    except pyvips.Error:
        return image
