"""What an orchestrator is given: the client's picture in canonical form, and extended where its peer will not do that.

The fee is for the picture that is sent. Our workers extend a tileable picture themselves, by what their model sees;
Livepeer's know nothing of that, so there the edges are sent, and paid for, as well.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fourfold.config import LimitSettings
from fourfold.gateway.ports import Codec, Prepared
from fourfold.protocol.units import Pixels
from fourfold.protocol.wire import UpscaleFields

#: What a tileable picture is extended by here: the most that any model sees around a pixel, whichever will run.
WRAP_PX: Final = 96


@dataclass(frozen=True, slots=True)
class Sent:
    """A picture and the fields that go with it."""

    prepared: Prepared
    fields: UpscaleFields

    @property
    def pixels(self) -> Pixels:
        """What the fee is for."""
        return Pixels(self.prepared.width * self.prepared.height)


async def as_it_is(codec: Codec, source: Path, folder: Path, limits: LimitSettings, fields: UpscaleFields) -> Sent:
    """Bring the upload *source* to canonical form. Raises: as ``Codec.prepare``."""
    # Transparency is upscaled here, so it is extended here.
    px = WRAP_PX if fields.tileable else 0
    return Sent(await codec.prepare(source, folder, limits, alpha_wrap_px=px), fields)


async def extended(codec: Codec, source: Path, folder: Path, limits: LimitSettings, fields: UpscaleFields) -> Sent:
    """Bring the tileable upload *source* to canonical form with its opposite edges around it, files in *folder*.

    Raises: as ``Codec.prepare``; ImageTooLargeError where only the edges make it too large.
    """
    folder.mkdir(exist_ok=True)
    return Sent(await codec.prepare(source, folder, limits, wrap_px=WRAP_PX), replace(fields, tileable=False))
