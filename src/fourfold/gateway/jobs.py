"""A job: one client's wish for one image, from the first byte of the request to its end. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final


class JobState(Enum):
    """Where a job is. The last four are ends; nothing leaves them."""

    QUEUED = "queued"  #: being uploaded, prepared, or waiting for an orchestrator with room
    RUNNING = "running"  #: an orchestrator has it
    SUCCEEDED = "succeeded"  #: the result is stored
    FAILED = "failed"  #: an error was told to the client
    CANCELLED = "cancelled"  #: the client went away or asked
    EXPIRED = "expired"  #: its deadline passed


ENDED: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})

#: Each state and where it may go. RUNNING goes back to QUEUED when an attempt failed and another will follow.
LEGAL: Final[Mapping[JobState, frozenset[JobState]]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}),
    JobState.RUNNING: frozenset({JobState.QUEUED, *ENDED}),
    **{ended: frozenset() for ended in ENDED},
}


class IllegalTransitionError(ValueError):
    """The table has no such edge; the caller has a bug."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job at one moment; :func:`transition` gives the next."""

    job_id: str
    opened_at_s: float  #: on the gateway's monotonic clock
    state: JobState = JobState.QUEUED
    ended_at_s: float | None = None  #: on the same clock; set exactly in the ends
    attempts: int = 0  #: how often an orchestrator was given the job
    model_id: str | None = None  #: known once the offers were ranked
    error_code: str | None = None  #: set exactly in FAILED and EXPIRED

    @property
    def has_ended(self) -> bool:
        """Whether the job is in one of the ends."""
        return self.state in ENDED

    @property
    def seconds(self) -> float | None:
        """How long the job took, None while it is open."""
        return None if self.ended_at_s is None else self.ended_at_s - self.opened_at_s


def transition(
    job: Job, state: JobState, *, at_s: float, model_id: str | None = None, error_code: str | None = None
) -> Job:
    """Return *job* in *state*.

    Args: *at_s*, the moment, on the clock of ``opened_at_s``; *model_id*, where it has become known; *error_code*,
        for FAILED and EXPIRED and only for them.

    Raises:
        IllegalTransitionError: :data:`LEGAL` has no edge from the job's state to *state*.
        ValueError: *error_code* is missing in a state that needs it, or given in one that does not.
    """
    if state not in LEGAL[job.state]:
        raise IllegalTransitionError(f"job {job.job_id}: no edge from {job.state.name} to {state.name}")
    if (error_code is not None) != (state in {JobState.FAILED, JobState.EXPIRED}):
        raise ValueError(f"job {job.job_id}: error_code {error_code!r} does not go with {state.name}")
    return replace(
        job,
        state=state,
        ended_at_s=at_s if state in ENDED else None,
        attempts=job.attempts + (state is JobState.RUNNING),
        model_id=model_id or job.model_id,
        error_code=error_code,
    )
