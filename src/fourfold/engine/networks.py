"""Networks of an operator's own: ``.safetensors`` files that spandrel knows, each pinned by its SHA-256.

What such a network is, its scale, sizes and memory, is found out once by a process of its own that loads it
(``network_probe``), and remembered by content; so no role needs torch to offer one. Not here: running it.
"""

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Self

import platformdirs

from fourfold.engine.base import SCALE, EngineCard, SizeRules
from fourfold.errors import ModelUnavailableError

SUFFIX: Final = ".safetensors"
ENGINE: Final = "fourfold.engine.network_torch:load_network_engine"
_NEEDED_PACKAGES: Final = ("torch", "safetensors", "spandrel", "einops")
_MARGIN_PX: Final = 96  #: the widest that any embedded network needs; another may be set
_CORE_PX: Final = 256
_TILE_PIXELS: Final = 512 * 512
_RUNTIME_BYTES: Final = 300_000_000  #: torch itself
_MAX_BYTES: Final = 2**31
_PROBE_S: Final = 300
_PICKLES: Final = (b"PK\x03\x04", b"\x80")  #: how files of torch.save begin, new and old


@dataclass(frozen=True, slots=True)
class LocalNetwork:
    """A file that the settings name."""

    path: Path
    sha256: str  #: of its content, lower-case hex; anything else is refused
    licence: str = "unknown"  #: of its weights, as far as the operator says
    margin_px: int | None = None  #: None: a wide one

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a pipe."""
        return asdict(self) | {"path": str(self.path)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild what :meth:`to_json` gave."""
        return cls(**{**values, "path": Path(values["path"])})


Networks = Mapping[str, LocalNetwork]
"""model_id -> the file that runs it."""


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """What loading a network showed."""

    architecture: str  #: as spandrel names it
    purpose: str
    scale: int
    channels: tuple[int, int]  #: in, out
    multiple_px: int  #: both sides must be a multiple of it
    min_side_px: int
    is_square: bool  #: takes only squares
    is_tiled_inside: bool  #: needs the whole picture at once
    has_half: bool  #: computes in float16
    weight_bytes: int  #: in float32
    bytes_per_pixel: int  #: the most that was alive at once, per input pixel, in float32


def read_pinned(network: LocalNetwork) -> bytes:
    """Return the content of the network's file, which is the pinned one.

    Raises: ModelUnavailableError if it cannot be read, is no safetensors file or has another SHA-256.
    """
    path = network.path
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelUnavailableError(f"{path} is larger than {_MAX_BYTES} bytes")
        content = path.read_bytes()
    except OSError as exc:
        raise ModelUnavailableError(f"{path} cannot be read: {exc.strerror}") from exc
    if path.suffix.lower() != SUFFIX or content.startswith(_PICKLES):
        raise ModelUnavailableError(
            f"{path} is no {SUFFIX} file; a pickle (.pth, .pt, .ckpt) may run code when it is read and is refused: "
            "convert it where you trust it"
        )
    found = hashlib.sha256(content).hexdigest()
    if found != network.sha256.lower():
        raise ModelUnavailableError(
            f"{path} has sha256 {found}, expected {network.sha256}: it is another file than the one that was pinned"
        )
    return content


def network_card(model_id: str, network: LocalNetwork) -> EngineCard:
    """Return the card of *network*; the first time for a content, its probe takes some seconds.

    Raises: ModelUnavailableError if it cannot be loaded here, or does what the network does not sell.
    """
    require_packages(model_id)
    found = facts(network)
    _refuse_others(model_id, found)
    return EngineCard(
        model_id=model_id,
        title=f"{found.architecture}, from {network.path.name}",
        aliases=(),
        scale=found.scale,
        size_rules=SizeRules(),  # the engine itself pads and crops
        margin_px=_MARGIN_PX if network.margin_px is None else network.margin_px,
        core_px=_CORE_PX,
        fixed_bytes=_RUNTIME_BYTES + 2 * found.weight_bytes,  # while it is loaded the file is there, too
        running_bytes=0,
        bytes_per_input_pixel=found.bytes_per_pixel,
        tile_pixels=_TILE_PIXELS,
        guided_by_prompt=False,
        default_steps=0,
        code_licence="Apache-2.0",
        weights_licence=network.licence,
    )


def require_packages(model_id: str) -> None:
    """Raise ModelUnavailableError unless what runs such networks is installed."""
    missing = [name for name in _NEEDED_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelUnavailableError(
            f"{model_id} needs {', '.join(missing)}, not installed; run: pip install 'fourfold[networks]'"
        )


def facts(network: LocalNetwork) -> NetworkFacts:
    """Return what *network* is: remembered for its content and this spandrel, else found out by a probe.

    Raises: ModelUnavailableError if the file is not the pinned one, or the probe cannot load it.
    """
    read_pinned(network)
    remembered = platformdirs.user_cache_path("fourfold", appauthor=False) / "networks"
    path = remembered / f"{network.sha256.lower()}-{metadata.version('spandrel')}.json"
    try:
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        found = _probe(network)
    try:
        remembered.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(found)), encoding="utf-8")
    except OSError:
        pass  # then it is found out anew each time
    return found


def _probe(network: LocalNetwork) -> NetworkFacts:
    command = [sys.executable, "-m", "fourfold.engine.network_probe"]
    try:
        done = subprocess.run(
            command, input=json.dumps(network.to_json()), capture_output=True, text=True, timeout=_PROBE_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise ModelUnavailableError(f"{network.path} could not be loaded and tried within {_PROBE_S} s") from exc
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode != 0 or not last.startswith("{"):
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        prefix = "" if reason.startswith(str(network.path)) else f"{network.path} cannot be loaded: "
        raise ModelUnavailableError(prefix + reason)
    return _from_json(json.loads(last))


def _from_json(values: dict[str, Any]) -> NetworkFacts:
    return NetworkFacts(**{**values, "channels": tuple(values["channels"])})


def _refuse_others(model_id: str, found: NetworkFacts) -> None:
    what = f"{model_id} is {found.architecture}"
    if found.scale != SCALE:
        raise ModelUnavailableError(
            f"{what} of scale {found.scale}; every model here makes pictures {SCALE} times as wide"
        )
    if found.channels != (3, 3):
        raise ModelUnavailableError(f"{what} for {found.channels[0]} to {found.channels[1]} channels, expected 3 to 3")
    if found.purpose != "SR":
        raise ModelUnavailableError(f"{what}, made for {found.purpose}, expected a network for super-resolution")
    if found.is_square or found.is_tiled_inside:
        raise ModelUnavailableError(f"{what}, which takes whole pictures only; here they are computed in tiles")
