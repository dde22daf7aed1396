"""Which models are in a device's memory, and which leave when a job needs the room. Pure: the clock is an argument."""

from collections.abc import Iterable
from dataclasses import dataclass

from fourfold.errors import OutOfMemoryError


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that is in memory now, or on its way there."""

    model_id: str
    bytes: int  #: the model itself and the largest of its jobs, by its card
    is_warm: bool  #: promised to be resident: leaves only when nothing else can
    jobs: int  #: jobs that hold it; while there are any it cannot leave
    last_used_s: float  #: monotonic clock, when its last job began


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do so that a job can run."""

    load: bool
    evict: tuple[str, ...] = ()  #: these leave first, in this order
    wait_for: tuple[str, ...] = ()  #: these have to finish their jobs before anything is done

    @property
    def is_free(self) -> bool:
        """Whether nothing has to be done: the model is there, and there is room."""
        return not (self.load or self.evict or self.wait_for)


def plan(wanted: str, wanted_bytes: int, residents: Iterable[Resident], *, budget_bytes: int) -> Plan:
    """Return how to have *wanted* resident, with a job that brings it to *wanted_bytes*, within *budget_bytes*.

    Idle models leave, on-demand ones before warm ones, the least recently used first; no more than needed. Only where
    they do not suffice, busy ones are waited for, in the same order.

    Raises:
        OutOfMemoryError: *wanted* alone is larger than the budget; waiting would not help.
    """
    present = {r.model_id: r for r in residents}
    if wanted_bytes > budget_bytes:
        raise OutOfMemoryError(
            f"{wanted} needs {wanted_bytes} bytes, the device's budget is {budget_bytes}; raise worker.memory_bytes"
        )
    ours = present.pop(wanted, None)
    needed = max(wanted_bytes, ours.bytes if ours is not None else 0)
    used = needed + sum(r.bytes for r in present.values())
    evict: list[str] = []
    wait_for: list[str] = []
    for resident in sorted(present.values(), key=lambda r: (r.jobs > 0, r.is_warm, r.last_used_s, r.model_id)):
        if used <= budget_bytes:
            break
        (wait_for if resident.jobs else evict).append(resident.model_id)
        used -= resident.bytes
    return Plan(load=ours is None, evict=tuple(evict), wait_for=tuple(wait_for))
