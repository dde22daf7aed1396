"""The operations of a codec process: from file to file, in bounded memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyvips
from numpy.typing import NDArray

from fourfold.errors import BadResultError, ImageTooLargeError, InvalidImageError, UnsupportedFormatError
from fourfold.imaging import colour, containers, formats, measure, splice, writing
from fourfold.imaging.canonical import Working, from_canonical, to_canonical
from fourfold.imaging.canvas import Canvas
from fourfold.imaging.fidelity import Measures, Written
from fourfold.imaging.mapped import mapped
from fourfold.imaging.options import OutputOptions
from fourfold.imaging.recipe import Recipe
from fourfold.imaging.values import Limits, Opened, Prepared

_PLAIN: Final = OutputOptions()
#: So many pixels at most are kept until the result is compared with them: the room that more would take for as long as
#: the model runs is worth more than decoding them again.
_KEPT_PIXELS: Final = 4_000_000
_STRIP_ROWS: Final = 64


def prepare(source: Path, folder: Path, limits: Limits, *, wrap_px: int = 0, alpha_wrap_px: int = 0) -> Prepared:
    """Bring *source* to canonical form, encoded; a file that is canonical already passes untouched.

    Every pixel is decoded, so that damage shows here and not at a worker.

    Args: *wrap_px*, extend the picture by this much of its opposite edges, for a texture that is to stay tileable;
        *alpha_wrap_px*, only its transparency, which stays here: whoever upscales the colours extends them.
    Raises: InvalidImageError, UnsupportedFormatError, ImageTooLargeError: see :func:`formats.inspect`; damaged pixels.
        StorageFullError: *folder* cannot take the copy.
    """
    image, kind, recipe = _canonical(source, limits, Working(folder, wrap_px, alpha_wrap_px=alpha_wrap_px))
    bits = 16 if image.format == "ushort" else 8
    if _is_canonical(source, kind, recipe):
        try:
            canvas = _decoded(image, folder / "canonical.raw")
        except pyvips.Error as exc:
            writing.raise_for(exc)
        return Prepared(source, image.width, image.height, recipe, bits, canvas)
    target = folder / "canonical.png"
    writing.save_hop(image, target)
    _drop(folder, keep=recipe)
    return Prepared(target, image.width, image.height, recipe, bits)


def open_canvas(source: Path, folder: Path, limits: Limits, *, wrap_px: int = 0, max_bits: int = 16) -> Opened:
    """Bring *source* to canonical form, decoded into ``folder/input.raw``. Raises: as :func:`prepare`."""
    image, _, recipe = _canonical(source, limits, Working(folder, wrap_px, max_bits=max_bits))
    try:
        canvas = measure.as_canvas(image, folder / "input.raw")
    except pyvips.Error as exc:
        writing.raise_for(exc)
    _drop(folder, keep=recipe)
    return Opened(canvas, recipe)


def encode(canvas: Canvas, recipe: Recipe, target: Path, options: OutputOptions = _PLAIN) -> Written:
    """Write the upscaled *canvas* as *options* say, with what *recipe* took away put back.

    Raises: InvalidParameterError, StorageFullError.
    """
    with mapped(canvas) as image:
        return _finish(image, recipe, target, options)


def finish(source: Path, recipe: Recipe, target: Path, options: OutputOptions = _PLAIN) -> Written:
    """Write the upscaled *source* as *options* say, with what *recipe* took away put back.

    Raises: BadResultError if *source* cannot be decoded; InvalidParameterError, StorageFullError.
    """
    try:
        kind = formats.sniff(source)
        if kind == "png" and splice.fits(recipe, options):
            return splice.splice(source, recipe, target, options)
        return _finish(_colours(formats.load(source, kind)), recipe, target, options)
    except InvalidImageError as exc:
        raise BadResultError(f"the upscaled picture cannot be read: {exc}") from exc


def verify(source: Path, width: int, height: int, original: Path | Canvas | None = None) -> Measures:
    """Decode the whole of *source*, comparing it with the canonical *original* (a file, or its pixels) if there is one.

    Raises: BadResultError if it is no sound picture of *width* x *height*.
    """
    small: Canvas | None = None
    try:
        kind = formats.sniff(source)
        containers.check(source, kind)
        image = formats.load(source, kind)
        if (image.width, image.height) != (width, height):
            raise BadResultError(f"expected {width} x {height} pixels, got {image.width} x {image.height}")
        if original is None:
            _decode_all(image)
            return Measures(bits=16 if image.format == "ushort" else 8)
        if isinstance(original, Canvas):
            return measure.measure(original, measure.ImageRows(image))
        small = measure.as_canvas(formats.load(original, formats.sniff(original)), source.with_suffix(".small.raw"))
        return measure.measure(small, measure.ImageRows(image))
    except (InvalidImageError, UnsupportedFormatError, ImageTooLargeError) as exc:
        raise BadResultError(f"expected a picture of {width} x {height} pixels: {exc}") from exc
    except pyvips.Error as exc:
        raise BadResultError("the upscaled picture is damaged or incomplete") from exc
    finally:
        if small is not None:
            small.path.unlink(missing_ok=True)


def thumbnail(canvas: Canvas, side_px: int) -> NDArray[np.uint8]:
    """Return the canvas shrunk to fit *side_px*, uint8 ``[h, w, 3]``; the aspect is kept."""
    with mapped(canvas) as image:
        small = image.thumbnail_image(side_px, height=side_px, size="down")
        if small.format == "ushort":
            small = (small >> 8).cast("uchar")
        return np.array(small.numpy(), dtype=np.uint8).reshape(small.height, small.width, 3)


def _canonical(source: Path, limits: Limits, working: Working) -> tuple[Any, str, Recipe]:
    """Open *source* and bring it to canonical form, lazily where that can be."""
    header = formats.inspect(source, limits)
    padded = (header.width + 2 * working.wrap_px) * (header.height + 2 * working.wrap_px)
    if padded > limits.input_pixels:
        raise ImageTooLargeError(
            f"an image may have {limits.input_pixels} pixels, {header.width} x {header.height} has {padded} with the "
            "edges that a tileable picture needs around it; make it smaller"
        )
    try:
        picture, warnings = formats.open_picture(source, header.format)
        image, recipe = to_canonical(picture, header, working, warnings)
        if recipe.converts or recipe.intake.colour == "cmyk":
            # From the file once more: what converts it reads it once, from top to bottom.
            share = colour.share_outside(formats.open_picture(source, header.format)[0])
            recipe = replace(recipe, intake=replace(recipe.intake, clipped=share))
    except pyvips.Error as exc:
        writing.raise_for(exc)
    return image, header.format, recipe


def _is_canonical(source: Path, kind: str, recipe: Recipe) -> bool:
    """Whether the file's own bytes may travel on: opaque upright RGB without profile or metadata, PNG or JPEG."""
    if kind not in ("png", "jpeg") or not recipe.is_identity or recipe.intake.orientation != 1:
        return False
    image, _ = formats.open_picture(source, kind)
    return image.interpretation in ("srgb", "rgb16") and image.bands == 3 and not image.get_typeof("icc-profile-data")


def _finish(image: Any, recipe: Recipe, target: Path, options: OutputOptions) -> Written:
    intake = recipe.intake
    size = (image.width, image.height)
    if intake.width:
        size = options.output_size(intake.width, intake.height)
    try:
        with from_canonical(image, recipe, size, target.parent) as finished:
            return writing.save_result(finished, recipe, target, options)
    except pyvips.Error as exc:
        writing.raise_for(exc)


def _colours(image: Any) -> Any:
    """Return a worker's picture as RGB, whatever else it came with."""
    interpretation = "rgb16" if image.format == "ushort" else "srgb"
    if image.bands > 3:
        image = image.extract_band(0, n=3)
    elif image.bands < 3:
        image = image.extract_band(0).bandjoin([image.extract_band(0)] * 2)
    return image.copy(interpretation=interpretation)


def _drop(folder: Path, *, keep: Recipe) -> None:
    """Remove the files that only the way to canonical form needed."""
    for name in ("lying.raw", "unwrapped.raw", "rgba.raw", "colours.raw"):
        (folder / name).unlink(missing_ok=True)
    if keep.alpha is None:
        (folder / "alpha.raw").unlink(missing_ok=True)


def _decoded(image: Any, path: Path) -> Canvas | None:
    """Read every pixel; keep those of a small picture at *path*. Raises: pyvips.Error where it is damaged."""
    if image.width * image.height <= _KEPT_PIXELS:
        return measure.as_canvas(image, path)
    _decode_all(image)
    return None


def _decode_all(image: Any) -> None:
    """Read every pixel and keep none. Raises: pyvips.Error where it is damaged."""
    region = pyvips.Region.new(image)
    for top in range(0, image.height, _STRIP_ROWS):
        region.fetch(0, top, image.width, min(_STRIP_ROWS, image.height - top))
