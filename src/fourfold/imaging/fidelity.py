"""What the reply says was done to the picture, and how near the result stays to it. Pure: no codec here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

from fourfold.imaging.recipe import Recipe

#: Of the pixels; fewer with colours outside sRGB are not worth a word.
_TOLD: Final = 0.0001


@dataclass(frozen=True, slots=True)
class Measures:
    """How a result compares with its input, before anything is put back onto it."""

    lr_psnr_db: float | None = None  #: of the result, averaged down to the input's size, against the input; <= 99
    detail_ratio: float | None = None  #: fine structure in it, compared with a bicubic enlargement; None: flat picture
    bits: int = 8  #: of one sample of the result

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a pipe."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class Written:
    """What the writing of a result did."""

    width: int
    height: int
    bits: int
    metadata_kept: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a pipe."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild what :meth:`to_json` gave."""
        lists = {name: tuple(values[name]) for name in ("metadata_kept", "warnings")}
        return cls(**{**values, **lists})


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The ``fidelity`` object of a reply."""

    input: dict[str, Any] = field(default_factory=dict)  #: format, width, height, bits, colour, frames
    output: dict[str, Any] = field(default_factory=dict)  #: format, width, height, bits
    oriented: int | None = None  #: the orientation tag that was applied, None where the picture was upright
    profile: str | None = None  #: the embedded profile's name
    colour: str = "unchanged"  #: "unchanged" | "through sRGB and back" | "converted to sRGB"
    clipped_share: float = 0.0  #: of the pixels: their colours are outside sRGB and became the nearest in it
    alpha: str = "none"  #: none | opaque (dropped) | soft | hard | flattened
    padded_px: int = 0  #: repeated around the picture for the model, and cropped again
    mode: str | None = None  #: of a diffusion model: exact, or fast, which is another picture
    tiles: int | None = None  #: pieces that the picture was computed in, where the worker says so
    resampled: bool = False  #: whether the final size is not four times the input's
    metadata_kept: tuple[str, ...] = ()
    metadata_removed: tuple[str, ...] = ()
    lr_psnr_db: float | None = None
    detail_ratio: float | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values: the object as clients see it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def describe(
    recipe: Recipe, written: Written, measures: Measures, *, format_name: str, notes: Mapping[str, Any] | None = None
) -> Fidelity:
    """Return what is to be said of a finished picture.

    Args: *notes*, what the engine said of its run, as far as it is known: ``tiles``, ``mode``, ``warnings``,
            and by how many pixels (``padded_px``) it extended a picture that *recipe* says was not.
    """
    intake, notes = recipe.intake, notes or {}
    colour = "unchanged"
    if intake.colour in ("cmyk", "lab") or (intake.profile and recipe.profile is None):
        colour = "converted to sRGB"
    elif recipe.converts:
        colour = "through sRGB and back"
    warnings = [*intake.warnings, *written.warnings]
    if intake.clipped >= _TOLD:
        share = f"{intake.clipped:.1%}" if intake.clipped >= 0.001 else "less than 0.1%"
        warnings.append(
            f"{share} of the pixels had colours outside sRGB, which no model knows; they became the nearest in it"
        )
    if intake.frames > 1:
        warnings.append(f"only the first of {intake.frames} frames was upscaled")
    if intake.bits > written.bits:
        warnings.append(f"{intake.bits} bits of a sample became {written.bits}")
    engine_warnings = notes.get("warnings", ())
    tiles, mode, padded_px = notes.get("tiles"), notes.get("mode"), notes.get("padded_px")
    alpha = "flattened" if recipe.alpha is not None and format_name == "jpeg" else intake.alpha
    return Fidelity(
        input={name: getattr(intake, name) for name in ("format", "width", "height", "bits", "colour", "frames")},
        output={"format": format_name, "width": written.width, "height": written.height, "bits": written.bits},
        oriented=intake.orientation if intake.orientation != 1 else None,
        profile=intake.profile,
        colour=colour,
        clipped_share=round(intake.clipped, 5),
        alpha=alpha,
        padded_px=padded_px if isinstance(padded_px, int) else recipe.wrap_px,
        mode=mode if isinstance(mode, str) else None,
        tiles=tiles if isinstance(tiles, int) else None,
        resampled=(written.width, written.height) != (4 * intake.width, 4 * intake.height),
        metadata_kept=written.metadata_kept,
        metadata_removed=tuple(name for name in recipe.metadata if name not in written.metadata_kept),
        lr_psnr_db=None if measures.lr_psnr_db is None else round(measures.lr_psnr_db, 2),
        detail_ratio=None if measures.detail_ratio is None else round(measures.detail_ratio, 2),
        warnings=(*warnings, *(str(w) for w in engine_warnings)),
    )
