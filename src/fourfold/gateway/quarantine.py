"""Inputs that crash workers: what crashed workers of two orchestrators is not tried on a third. Pure."""

from collections import OrderedDict
from typing import Final

_MOST: Final = 1_000  #: inputs remembered
_SECONDS: Final = 600.0


class Quarantine:
    """Remembers the digests of such inputs for a while. Moments are seconds on any clock that does not go back."""

    def __init__(self) -> None:
        self._digest_to_until_s: OrderedDict[str, float] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether anything is remembered: only then is a digest worth its computation."""
        return bool(self._digest_to_until_s)

    def add(self, digest: str, *, now_s: float) -> None:
        """Remember *digest*; the oldest is forgotten when there are too many."""
        self._digest_to_until_s[digest] = now_s + _SECONDS
        self._digest_to_until_s.move_to_end(digest)
        if len(self._digest_to_until_s) > _MOST:
            self._digest_to_until_s.popitem(last=False)

    def holds(self, digest: str, *, now_s: float) -> bool:
        """Return whether *digest* was added lately."""
        until_s = self._digest_to_until_s.get(digest)
        if until_s is not None and until_s <= now_s:
            del self._digest_to_until_s[digest]
            return False
        return until_s is not None
