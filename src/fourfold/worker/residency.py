"""Which models are in a device's memory, and which leave when another is needed. Pure: what the clock says is told."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fourfold.errors import NoCapacityError, OutOfMemoryError


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that is in memory now."""

    model_id: str
    bytes: int  #: the model itself and the largest tile it runs, from its card
    is_warm: bool  #: promised to be resident: leaves only when nothing else can
    jobs: int  #: jobs that run on it now; while there are any it cannot leave
    last_used_s: float  #: monotonic clock, when its last job began


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do so that a model can run."""

    load: bool
    evict: tuple[str, ...]  #: these leave first, in this order


def plan(wanted: str, wanted_bytes: int, residents: Iterable[Resident], *, budget_bytes: int) -> Plan:
    """Return how to have *wanted* resident within *budget_bytes*.

    Idle models leave, on-demand ones before warm ones, the least recently used first; no more than needed.

    Raises:
        OutOfMemoryError: *wanted* alone is larger than the budget; waiting would not help.
        NoCapacityError: it fits only once models that are running now have finished.
    """
    present: Mapping[str, Resident] = {r.model_id: r for r in residents}
    if wanted in present:
        return Plan(load=False, evict=())
    if wanted_bytes > budget_bytes:
        raise OutOfMemoryError(
            f"{wanted} needs {wanted_bytes} bytes, the device's budget is {budget_bytes}; raise worker.memory_bytes"
        )
    used = sum(r.bytes for r in present.values())
    evict: list[str] = []
    for resident in sorted(present.values(), key=lambda r: (r.is_warm, r.last_used_s, r.model_id)):
        if used + wanted_bytes <= budget_bytes:
            break
        if resident.jobs == 0:
            evict.append(resident.model_id)
            used -= resident.bytes
    if used + wanted_bytes > budget_bytes:
        raise NoCapacityError(f"{wanted} fits once a running model has finished; try again soon")
    return Plan(load=True, evict=tuple(evict))
