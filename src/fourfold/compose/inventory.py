"""What models there are for this installation, known or pulled, and where each one's weights are."""

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fourfold.compose.common import loadable_cards, own_networks
from fourfold.config import WorkerSettings
from fourfold.engine import registry
from fourfold.engine.base import EngineCard
from fourfold.engine.hub_pins import Pin, pins
from fourfold.engine.networks import LocalNetwork
from fourfold.engine.weights import locate
from fourfold.errors import ModelUnavailableError


@dataclass(frozen=True, slots=True)
class Item:
    """One model."""

    model_id: str
    aliases: tuple[str, ...]
    title: str
    scale: int | None  #: None: it makes no pictures
    guided_by_prompt: bool
    weights_licence: str
    installed: bool  #: whether it can be loaded here
    source: str  #: package, hub, folder, file or none
    size: int | None  #: bytes of its files; None where they are not here
    revision: str | None = None  #: of a pulled one, as it was asked for
    commit: str | None = None  #: what that was

    def to_json(self) -> dict[str, Any]:
        """Return plain values, by the names that the command documents."""
        values = asdict(self)
        return {("size_bytes" if name == "size" else name): value for name, value in values.items()}


def inventory(settings: WorkerSettings) -> list[Item]:
    """Return every model that is known here, and what else was pulled, as the safety checker."""
    pulled = {pin.model_id: pin for pin in pins()} if importlib.util.find_spec("huggingface_hub") else {}
    loadable = loadable_cards(settings)
    known = registry.cards()
    items = [_known(card, card.model_id in loadable, settings.model_paths, pulled) for card in known.values()]
    items += [_own(model_id, network, loadable.get(model_id)) for model_id, network in own_networks(settings).items()]
    return items + [
        Item(pin.model_id, (), "pulled; no model to ask for", None, False, pin.licence, True, "hub", pin.size)
        for pin in pulled.values()
        if pin.model_id not in known
    ]


def _known(card: EngineCard, installed: bool, paths: Mapping[str, Path], pulled: Mapping[str, Pin]) -> Item:
    pin = None if card.model_id in paths else pulled.get(card.model_id)
    source, size = "none", None
    if card.weights:
        source, size = "package", _package_bytes(card)
    elif card.model_id in paths:
        source = "folder"
    elif pin is not None:
        source, size = "hub", pin.size
    elif installed and card.weights_licence != "none":
        source = "hub"  # in its cache, by another program
    return Item(
        card.model_id,
        card.aliases,
        card.title,
        card.scale,
        card.guided_by_prompt,
        card.weights_licence,
        installed,
        source,
        size,
        pin.revision if pin else None,
        pin.commit if pin else None,
    )


def _own(model_id: str, network: LocalNetwork, card: EngineCard | None) -> Item:
    if card is None:
        why = registry.why_not_loadable(model_id, networks={model_id: network})
        return Item(model_id, (), f"not usable: {why}", None, False, network.licence, False, "file", None)
    size = network.path.stat().st_size
    return Item(model_id, (), card.title, card.scale, False, card.weights_licence, True, "file", size)


def _package_bytes(card: EngineCard) -> int | None:
    try:
        return sum(locate(file).stat().st_size for file in card.weights)
    except (ModelUnavailableError, OSError):
        return None
