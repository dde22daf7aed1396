"""How often and how long a job is tried: what each failure means for the next attempt. Pure."""

from dataclasses import dataclass, field
from typing import Final

from fourfold.errors import EngineCrashedError, FourfoldError, NetworkError, OfferError, Retry

#: Failures of workers after which a job is given up. A full or unreachable orchestrator is none of them: that costs
#: waiting time.
MOST_FAILURES: Final = 5
#: Connections that broke or were refused after which it is given up all the same.
MOST_BREAKS: Final = 20
#: Crashes of a worker after which the input is suspected rather than the workers.
MOST_CRASHES: Final = 2
MOST_RENEWALS: Final = 2  #: fresh tokens for one orchestrator
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 4.0
BUSY_PAUSE_S: Final = 1.0  #: the longest where only room is lacking: the oldest job alone asks then


@dataclass(slots=True)
class Attempts:
    """What the attempts of one job have come to."""

    count: int = 0
    failures: int = 0
    breaks: int = 0
    pauses: int = 0
    waited_s: float = 0.0
    tried: set[str] = field(default_factory=set)  #: orchestrators that failed since the last pause
    crashed: list[str] = field(default_factory=list)  #: orchestrators, one entry for each crash
    last_error: FourfoldError | None = None
    _renewals: dict[str, int] = field(default_factory=dict)

    def note(self, orchestrator: str, error: FourfoldError) -> None:
        """Take notice that an attempt at *orchestrator* ended with *error*."""
        self.last_error = error
        renewals = self._renewals.get(orchestrator, 0)
        if error.retry is Retry.SAME and renewals < MOST_RENEWALS:
            self._renewals[orchestrator] = renewals + 1
            return
        self.tried.add(orchestrator)
        if isinstance(error, NetworkError):
            self.breaks += 1
        elif not isinstance(error, OfferError):
            self.failures += 1
        if isinstance(error, EngineCrashedError):
            self.crashed.append(orchestrator)

    @property
    def wants_fresh_token(self) -> bool:
        """Whether the next attempt is to begin with a new token."""
        return self.last_error is not None and self.last_error.retry is Retry.SAME

    @property
    def is_input_suspect(self) -> bool:
        """Whether different orchestrators lost a worker to this input: one alone may simply be ill."""
        return len(set(self.crashed)) >= MOST_CRASHES

    @property
    def is_over(self) -> bool:
        """Whether the last error is to be told to the client now."""
        if self.last_error is not None and self.last_error.retry is Retry.NEVER:
            return True
        return self.failures >= MOST_FAILURES or self.breaks >= MOST_BREAKS or len(self.crashed) >= MOST_CRASHES

    def next_pause_s(self, *, limit_s: float, longest_s: float = LONGEST_PAUSE_S) -> float | None:
        """Return how long to wait before everyone is tried again, None once the job has waited for *limit_s* in all."""
        if self.waited_s >= limit_s:
            return None
        pause_s = min(FIRST_PAUSE_S * 2.0**self.pauses, longest_s, limit_s - self.waited_s)
        self.pauses += 1
        self.waited_s += pause_s
        self.tried.clear()
        return pause_s
