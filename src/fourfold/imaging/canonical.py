"""Canonical form and back: upright sRGB in the middle; grey, alpha, profile and metadata kept beside it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyvips

from fourfold.imaging import alpha, colour, formats, metadata
from fourfold.imaging.canvas import Canvas
from fourfold.imaging.mapped import mapped
from fourfold.imaging.recipe import Intake, Recipe
from fourfold.imaging.values import Header

#: Larger pictures that must be read in another order than they are stored in go through a file instead of memory.
_MEMORY_SAMPLES: Final = 50_000_000


@dataclass(frozen=True, slots=True)
class Working:
    """Where and how a picture is brought to canonical form."""

    folder: Path  #: for the files that the recipe names
    wrap_px: int = 0  #: extend it by this much of its opposite edges
    alpha_wrap_px: int = 0  #: the same for its transparency alone: whoever upscales the colours extends them
    max_bits: int = 16


def to_canonical(image: Any, header: Header, working: Working, warnings: tuple[str, ...]) -> tuple[Any, Recipe]:
    """Return *image*, opened from a file with *header*, as upright sRGB, and the recipe that undoes it.

    Args: *warnings*, what opening it lost.

    Raises: pyvips.Error if the pixels are damaged; StorageFullError.
    """
    folder = working.folder
    tag = formats.orientation(image)
    blocks = metadata.extract(image, folder)
    upright = _upright(image, tag, folder)
    has_alpha = upright.hasalpha()
    plain = upright.extract_band(0, n=upright.bands - 1) if has_alpha else upright
    space = colour.space(plain)
    depth = min(colour.bits(plain), working.max_bits)
    srgb, is_converted = colour.to_srgb(plain, depth)
    profile, converts, name = colour.keep_profile(plain, folder / "profile.icc", converted=is_converted)
    if name is not None and profile is None and not is_converted:
        warnings, name = (
            (*warnings, f"the colour profile {name!r} is damaged or not for such a picture: left out"),
            None,
        )
    transparency, alpha_canvas = "none", None
    if has_alpha:
        mask = colour.at_depth(upright.extract_band(upright.bands - 1), depth)
        around_px = max(working.wrap_px, working.alpha_wrap_px)
        joined = _wrapped(srgb.bandjoin(mask), around_px, folder)
        srgb, alpha_canvas, transparency = _without_alpha(joined, depth, folder)
        srgb = _cropped(srgb, around_px - working.wrap_px)
    else:
        srgb = _wrapped(srgb, working.wrap_px, folder)
    intake = Intake(
        format=header.format,
        width=upright.width,
        height=upright.height,
        bits=colour.bits(image),
        colour=space,
        frames=header.frames,
        orientation=tag,
        profile=name,
        **metadata.told_resolution(upright),
        alpha=transparency,
        warnings=warnings,
    )
    return srgb, Recipe(
        grey=space == "grey",
        alpha=alpha_canvas,
        is_hard=transparency == "hard",
        profile=profile,
        converts=converts,
        wrap_px=working.wrap_px,
        intake=intake,
        **blocks,
    )


@contextmanager
def from_canonical(image: Any, recipe: Recipe, size: tuple[int, int], folder: Path) -> Iterator[Any]:
    """Yield the upscaled sRGB *image* at its final *size* with what *recipe* took away put back.

    Args: *folder*, for the enlarged alpha, which is gone after the block.
    """
    factor = image.width // (recipe.intake.width + 2 * recipe.wrap_px) if recipe.intake.width else 4
    image = _resized(_cropped(image, recipe.wrap_px * factor), size)
    depth = colour.bits(image)
    if recipe.grey:
        image = colour.to_grey(image)
    if recipe.profile is not None and recipe.converts:
        image = colour.from_srgb(image, recipe.profile)
    if recipe.alpha is None:
        yield image
        return
    small = recipe.alpha
    big = Canvas(folder / "alpha-big.raw", small.width * 4, small.height * 4, small.bits, 1)
    try:
        alpha.enlarge(small, big, is_hard=recipe.is_hard)
        with mapped(big) as mask:
            around_px = (small.width - recipe.intake.width) // 2 if recipe.intake.width else recipe.wrap_px
            mask = _resized(_cropped(colour.at_depth(mask, depth), around_px * 4), size)
            yield image.bandjoin(mask).copy(interpretation=image.interpretation)
    finally:
        big.path.unlink(missing_ok=True)


def _open_raw(canvas: Canvas) -> Any:
    """Return an RGB canvas of the input's size as an image that libvips reads where it needs it."""
    sample = "ushort" if canvas.bits == 16 else "uchar"
    image = pyvips.Image.rawload(str(canvas.path), canvas.width, canvas.height, canvas.bands, format=sample)
    return image.copy(interpretation="rgb16" if canvas.bits == 16 else "srgb")


def _upright(image: Any, tag: int, folder: Path) -> Any:
    """Apply the orientation tag *tag*."""
    if tag == 1:
        return image
    return _random_access(image, folder / "lying.raw").autorot()


def _wrapped(image: Any, px: int, folder: Path) -> Any:
    """Extend *image* by *px* of its opposite edges on every side."""
    if not px:
        return image
    image = _random_access(image, folder / "unwrapped.raw")
    return image.embed(px, px, image.width + 2 * px, image.height + 2 * px, extend="repeat")


def _random_access(image: Any, path: Path) -> Any:
    """Return *image* such that it can be read in any order: from memory if it is small, else from the file *path*."""
    if image.width * image.height * image.bands * (colour.bits(image) // 8) <= _MEMORY_SAMPLES:
        return image.copy_memory()
    image.rawsave(str(path))
    loaded = pyvips.Image.rawload(str(path), image.width, image.height, image.bands, format=image.format)
    loaded = loaded.copy(interpretation=image.interpretation)
    for name in ("orientation", "icc-profile-data"):
        kind = image.get_typeof(name)
        if kind:
            loaded.set_type(kind, name, image.get(name))
    return loaded


def _without_alpha(joined: Any, depth: int, folder: Path) -> tuple[Any, Canvas | None, str]:
    """Return the colours, bled outward, the alpha unless it is opaque, and what it is."""
    width, height = joined.width, joined.height
    rgba = Canvas(folder / "rgba.raw", width, height, depth, 4)
    joined.rawsave(str(rgba.path))
    colours = Canvas(folder / "colours.raw", width, height, depth)
    mask = Canvas(folder / "alpha.raw", width, height, depth, 1)
    kind = alpha.separate(rgba, colours, mask)
    rgba.path.unlink()
    return _open_raw(colours), None if kind == "opaque" else mask, kind


def _cropped(image: Any, px: int) -> Any:
    return image.crop(px, px, image.width - 2 * px, image.height - 2 * px) if px else image


def _resized(image: Any, size: tuple[int, int]) -> Any:
    """Return *image* at exactly *size*, by Lanczos-3."""
    if (image.width, image.height) == size:
        return image
    made = image.resize(size[0] / image.width, vscale=size[1] / image.height, kernel="lanczos3")
    made = made.copy(interpretation=image.interpretation)
    if (made.width, made.height) != size:  # a factor's rounding
        made = made.gravity("north-west", *size, extend="copy")
    return made
