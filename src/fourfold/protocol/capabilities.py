"""What an orchestrator can do and what a job needs, as Livepeer writes them: bits, capacities, models. Pure.

A capability is a bit. Gateways ask for Livepeer's transcoding defaults besides the one they need, so an orchestrator
advertises those too; bit 12 (auth token) is mandatory: a gateway that does not speak it is refused.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol.wire import UPSCALE_CAPABILITY

_WORD_BITS: Final = 64
#: The transcoding bits that every go-livepeer gateway asks for.
DEFAULT_BITS: Final = frozenset({*range(13), 14, 26})
#: Auth token: sessions without one are refused.
MANDATORY_BITS: Final = frozenset({12})
#: The go-livepeer release whose wire this is; gateways compare it with the least version they accept.
LIVEPEER_VERSION: Final = "0.9.1"

_VERSION: Final = re.compile(r"v?(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?(?:[-+].*)?\Z")


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """One model of the upscale capability, as an orchestrator advertises it."""

    model_id: str
    warm: bool  #: loaded and kept
    capacity: int  #: jobs at once; 0 = none of its workers answers now
    capacity_in_use: int = 0
    runner_version: str = ""  #: "" = unknown


def to_bitstring(bits: Iterable[int]) -> list[int]:
    """Return *bits* as 64-bit words, bit 0 lowest in the first; no bits give no words."""
    words: list[int] = []
    for bit in bits:
        word, position = divmod(bit, _WORD_BITS)
        words.extend([0] * (word + 1 - len(words)))
        words[word] |= 1 << position
    return words


def from_bitstring(words: Iterable[int]) -> frozenset[int]:
    """Return the bits that are set in *words*; the inverse of :func:`to_bitstring`."""
    bits = set()
    for index, word in enumerate(words):
        while word:
            lowest = word & -word
            bits.add(index * _WORD_BITS + lowest.bit_length() - 1)
            word ^= lowest
    return frozenset(bits)


def offer(
    models: Iterable[ModelOffer], *, capacity: int | None = None, version: str = LIVEPEER_VERSION
) -> pb.Capabilities:
    """Return what an orchestrator with these *models* says of itself.

    Args: *capacity*, its jobs at once, of any model; None = the models share no worker, so the sum of theirs.
    """
    capabilities = pb.Capabilities(
        bitstring=to_bitstring(DEFAULT_BITS | {UPSCALE_CAPABILITY}),
        mandatories=to_bitstring(MANDATORY_BITS),
        version=version,
    )
    for bit in DEFAULT_BITS:
        capabilities.capacities[bit] = 1
    constraint = capabilities.constraints.PerCapability[UPSCALE_CAPABILITY]
    total = 0
    for model in models:
        total += model.capacity
        entry = constraint.models[model.model_id]
        entry.warm = model.warm
        entry.capacity = model.capacity
        entry.capacityInUse = model.capacity_in_use
        entry.runnerVersion = model.runner_version
    capabilities.capacities[UPSCALE_CAPABILITY] = total if capacity is None else capacity
    return capabilities


def demand(model_id: str, *, min_version: str = "", min_runner_version: str = "") -> pb.Capabilities:
    """Return what a gateway asks for when it needs an upscale by *model_id*.

    The capacity of bit 30 is set because an orchestrator prices a request by walking its capacities.
    """
    capabilities = pb.Capabilities(bitstring=to_bitstring(DEFAULT_BITS | {UPSCALE_CAPABILITY}))
    for bit in DEFAULT_BITS | {UPSCALE_CAPABILITY}:
        capabilities.capacities[bit] = 1
    capabilities.constraints.minVersion = min_version
    entry = capabilities.constraints.PerCapability[UPSCALE_CAPABILITY].models[model_id]
    entry.runnerVersion = min_runner_version
    return capabilities


def offered_models(capabilities: pb.Capabilities) -> dict[str, ModelOffer]:
    """Return the models of the upscale capability by id; empty where bit 30 is not set."""
    if UPSCALE_CAPABILITY not in from_bitstring(capabilities.bitstring):
        return {}
    return {
        model_id: ModelOffer(model_id, entry.warm, entry.capacity, entry.capacityInUse, entry.runnerVersion)
        for model_id, entry in _models(capabilities, UPSCALE_CAPABILITY).items()
    }


def demanded_models(capabilities: pb.Capabilities) -> tuple[str, ...]:
    """Return the upscale models a request asks the price of; empty unless capacity 30 and a constraint are set."""
    if UPSCALE_CAPABILITY not in capabilities.capacities:
        return ()
    return tuple(_models(capabilities, UPSCALE_CAPABILITY))


def incompatibility(job: pb.Capabilities, orchestrator: pb.Capabilities) -> str | None:
    """Return why *orchestrator* cannot take *job*, None if it can.

    Source: go-livepeer ``core/capabilities.go`` CompatibleWith, in its order: version, mandatories, constraints, bits.
    """
    wanted, offered = from_bitstring(job.bitstring), from_bitstring(orchestrator.bitstring)
    minimum = job.constraints.minVersion
    if minimum and not _is_at_least(orchestrator.version, minimum):
        return f"version {orchestrator.version or 'unset'} is below the wanted {minimum}"
    missing = from_bitstring(orchestrator.mandatories) - wanted
    if missing:
        return f"the job lacks mandatory capabilities {sorted(missing)}"
    for capability in sorted(job.constraints.PerCapability):
        reason = _model_mismatch(_models(job, capability), _models(orchestrator, capability))
        if reason:
            return f"capability {capability}: {reason}"
    missing = wanted - offered
    return f"capabilities {sorted(missing)} are not offered" if missing else None


_Models = Mapping[str, pb.Capabilities.CapabilityConstraints.ModelConstraint]


def _models(capabilities: pb.Capabilities, capability: int) -> _Models:
    """Return the models of one capability without adding it to the message (protobuf maps insert on access)."""
    constraints = capabilities.constraints.PerCapability
    return constraints[capability].models if capability in constraints else {}


def _model_mismatch(wanted: _Models, offered: _Models) -> str | None:
    """Return why the *offered* models do not serve every one of the *wanted*."""
    for model_id, want in wanted.items():
        if model_id not in offered:
            return f"model {model_id!r} is not offered"
        have = offered[model_id]
        if want.warm and not have.warm:
            return f"model {model_id!r} is not warm"
        if want.runnerVersion and not _is_at_least(have.runnerVersion, want.runnerVersion):
            return f"model {model_id!r} runs on {have.runnerVersion or 'an unknown version'}, not {want.runnerVersion}"
    return None


def _is_at_least(version: str, minimum: str) -> bool:
    """Compare two semantic versions, suffixes left out; a *minimum* that is no version asks for nothing."""
    floor, have = _parts(minimum), _parts(version)
    return floor is None or (have is not None and have >= floor)


def _parts(version: str) -> tuple[int, int, int] | None:
    """Return (major, minor, patch); None for what is no version, such as "" and "undefined"."""
    match = _VERSION.match(version)
    return (int(match[1]), int(match[2] or 0), int(match[3] or 0)) if match else None
