"""What came in, and what it takes to undo that it was brought to canonical form. No codec here."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from fourfold.imaging.canvas import Canvas


@dataclass(frozen=True, slots=True)
class Intake:
    """The picture as it came: for the reply that says what was done to it."""

    format: str = ""
    width: int = 0  #: upright, pixels
    height: int = 0  #: upright, pixels
    bits: int = 8  #: of one sample
    colour: str = "rgb"  #: "rgb" | "grey" | "cmyk" | "lab"
    frames: int = 1
    orientation: int = 1  #: the tag's value, 1 .. 8; 1 = it was upright
    profile: str | None = None  #: the embedded profile's own name
    xres: float = 0.0  #: pixels a millimetre in print, across; 0 = not said
    yres: float = 0.0  #: the same, down
    clipped: float = 0.0  #: share of the pixels whose colour sRGB does not have, 0 .. 1
    warnings: tuple[str, ...] = ()  #: what of the file could not be kept
    alpha: str = "none"  #: "none" | "opaque" (and dropped) | "soft" | "hard" (only 0 and full)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What :func:`prepare` took away and :func:`finish` puts back."""

    grey: bool = False  #: the picture has one colour band; it comes back with one
    alpha: Canvas | None = None  #: its transparency, one band; of the input's size, or extended on every side
    is_hard: bool = False  #: the transparency knows only 0 and full; its edges are to stay crisp
    profile: Path | None = None  #: the profile to be embedded
    converts: bool = False  #: the pixels are to be converted from sRGB to *profile*
    exif: Path | None = None
    xmp: Path | None = None
    iptc: Path | None = None
    wrap_px: int = 0  #: the canonical picture was extended by this much of its opposite edges, on every side
    intake: Intake = field(default_factory=Intake, compare=False)

    @property
    def is_identity(self) -> bool:
        """Whether nothing was taken away: the picture was in canonical form."""
        return self == Recipe()

    @property
    def is_all_pixels(self) -> bool:
        """Whether there is nothing to put back, not even a resolution: the worker's own bytes are the result."""
        return self.is_identity and not self.intake.xres

    @property
    def metadata(self) -> dict[str, Path]:
        """The blocks of metadata that came with the picture, by their names."""
        blocks = {"exif": self.exif, "xmp": self.xmp, "iptc": self.iptc}
        return {name: path for name, path in blocks.items() if path is not None}

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a pipe."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("profile", "exif", "xmp", "iptc"):
            values[name] = str(values[name]) if values[name] else None
        values["alpha"] = self.alpha.to_json() if self.alpha else None
        values["intake"] = {f.name: getattr(self.intake, f.name) for f in fields(self.intake)}
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Rebuild what :meth:`to_json` gave."""
        values = dict(values)
        for name in ("profile", "exif", "xmp", "iptc"):
            values[name] = Path(values[name]) if values[name] else None
        values["alpha"] = Canvas.from_json(values["alpha"]) if values["alpha"] else None
        intake = values["intake"]
        values["intake"] = Intake(**{**intake, "warnings": tuple(intake["warnings"])})
        return cls(**values)
