"""What the client wants to get: format, quality, size, metadata. Pure: no codec here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Final, Self

from fourfold.errors import InvalidParameterError

SCALE: Final = 4
"""Every model makes a picture four times as wide and high; what is asked for is at most that."""

METADATA_CHOICES: Final = ("default", "keep", "strip", "copyright")
FITS: Final = ("contain", "exact")


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """A format that results are written in."""

    name: str
    media_type: str
    suffix: str  #: with its dot
    side_px: int  #: the longest side it can hold
    pixels: int  #: the most pixels we write in it: some encoders hold all of them in memory
    quality: int | None  #: the default, None: lossless
    bits: int  #: the most of one sample
    has_alpha: bool = True


FORMATS: Final[Mapping[str, OutputFormat]] = MappingProxyType(
    {
        "png": OutputFormat("png", "image/png", ".png", 2**31 - 1, 2**40, None, 16),
        "jpeg": OutputFormat("jpeg", "image/jpeg", ".jpg", 65_500, 2**40, 92, 8, has_alpha=False),
        "webp": OutputFormat("webp", "image/webp", ".webp", 16_383, 128_000_000, 90, 8),
        "avif": OutputFormat("avif", "image/avif", ".avif", 16_384, 64_000_000, 75, 12),
        "tiff": OutputFormat("tiff", "image/tiff", ".tif", 2**31 - 1, 2**40, None, 16),
    }
)


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How the result is to be written. Checks itself: InvalidParameterError names the field and the range."""

    format: str = "png"  #: png | jpeg | webp | avif | tiff
    quality: int | None = None  #: 1 .. 100, for jpeg, webp and avif; None = the format's default
    metadata: str = "default"  #: default (all but the place) | keep (all) | strip | copyright (author and rights alone)
    scale: float | None = None  #: 1 .. 4 times the input; None = 4
    width: int | None = None  #: pixels, >= 1
    height: int | None = None  #: pixels, >= 1
    fit: str = "contain"  #: contain: inside width x height, its aspect kept | exact: width x height, stretched

    def __post_init__(self) -> None:
        _choose("output_format", self.format, FORMATS)
        _choose("metadata", self.metadata, METADATA_CHOICES)
        _choose("fit", self.fit, FITS)
        if self.quality is not None:
            if not 1 <= self.quality <= 100:
                raise InvalidParameterError(f"quality must be from 1 to 100, got {self.quality}")
            if FORMATS[self.format].quality is None:
                raise InvalidParameterError(f"{self.format} is lossless and has no quality; leave it out")
        if self.scale is not None and not (math.isfinite(self.scale) and 1 <= self.scale <= SCALE):
            raise InvalidParameterError(f"scale must be from 1 to {SCALE}, got {self.scale:g}")
        for name, side in (("width", self.width), ("height", self.height)):
            if side is not None and side < 1:
                raise InvalidParameterError(f"{name} must be at least 1 pixel, got {side}")
        has_side = self.width is not None or self.height is not None
        if self.scale is not None and has_side:
            raise InvalidParameterError("scale and width or height say the same thing twice; send one of them")
        if self.fit == "exact" and (self.width is None or self.height is None):
            raise InvalidParameterError("fit=exact needs both width and height")

    @property
    def file_format(self) -> OutputFormat:
        """The format's facts."""
        return FORMATS[self.format]

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the exact (width, height) of the result for an upright input of *width* x *height*.

        Raises: InvalidParameterError if that is more than four times the input, or more than the format can hold.
        """
        most = (width * SCALE, height * SCALE)
        size = self._wanted_size(width, height)
        if size[0] > most[0] or size[1] > most[1]:
            raise InvalidParameterError(
                f"a picture of {width} x {height} becomes at most {most[0]} x {most[1]}, "
                f"asked for were {size[0]} x {size[1]}; ask for less"
            )
        known = self.file_format
        if max(size) > known.side_px or size[0] * size[1] > known.pixels:
            limit = f"{known.side_px} pixels on a side" if max(size) > known.side_px else f"{known.pixels} pixels"
            raise InvalidParameterError(
                f"{known.name} holds at most {limit}, the result would be {size[0]} x {size[1]}; "
                "choose png or tiff, or a smaller scale"
            )
        return size

    def is_plain(self, width: int, height: int) -> bool:
        """Whether an input of *width* x *height* is to become a PNG four times as large, as every worker makes it."""
        return self.format == "png" and self.output_size(width, height) == (width * SCALE, height * SCALE)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a pipe."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild what :meth:`to_json` gave."""
        return cls(**values)

    def _wanted_size(self, width: int, height: int) -> tuple[int, int]:
        if self.width is None and self.height is None:
            factor = SCALE if self.scale is None else self.scale
            return _rounded(width * factor), _rounded(height * factor)
        if self.fit == "exact":
            assert self.width is not None and self.height is not None
            return self.width, self.height
        if self.height is None or (self.width is not None and self.width * height <= self.height * width):
            assert self.width is not None
            return self.width, _rounded(height * self.width / width)
        return _rounded(width * self.height / height), self.height


def _rounded(side: float) -> int:
    return max(1, math.floor(side + 0.5))


def _choose(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise InvalidParameterError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
