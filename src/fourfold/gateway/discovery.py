"""Which orchestrators offer which models now: asked in the background, so that no request waits for it.

Every orchestrator has a task of its own; a dead one never delays the others. What is remembered of an orchestrator
beyond its quotes is little: how fast it was, how many of our jobs it has, and until when it stands behind the others
because a worker of its failed. A lone orchestrator loses nothing by that.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from fourfold.errors import Blame, FourfoldError, ModelUnavailableError, NoOrchestratorError, UnreachableError
from fourfold.gateway.orchestrator_url import OrchestratorUrl, parse_orchestrator_url
from fourfold.gateway.pinning import Pins
from fourfold.gateway.ports import Clock, SystemClock
from fourfold.gateway.quotes import Quote, ask, is_ours
from fourfold.gateway.selection import Offer
from fourfold.protocol.livepeer_pb2 import AuthToken
from fourfold.protocol.units import Pixels

log = logging.getLogger(__name__)

_PENALTY_S: Final = 30.0
_EVERY_MODEL: Final = ""
#: Part of a token's life at whose end it is replaced before use, as go-livepeer does.
_LAST_PART: Final = 0.1
#: Pause before an orchestrator that did not answer is asked once more, and then forgotten until it answers again.
_SECOND_LOOK_S: Final = 1.0
#: A gateway that has just started may have started before its orchestrators: it looks this often without a long pause,
_EAGER_ROUNDS: Final = 30
_EARLY_LOOK_S: Final = 0.1  #: but with one that grows by this, as the orchestrator beside it will be there in a moment.
#: Weight of the newest job in the mean speed of an orchestrator.
_NEWEST_WEIGHT: Final = 0.3


@dataclass(slots=True)
class _Peer:
    """One configured orchestrator."""

    url: OrchestratorUrl
    quotes: dict[str, Quote] = field(default_factory=dict)
    quoted_at_s: float = 0.0  #: wall clock
    rounds: int = 0  #: how often it was asked, whatever came
    failures: int = 0  #: in a row
    trouble: str | None = None  #: why the last round failed; None = it did not
    penalised_until_s: dict[str, float] = field(default_factory=dict)  #: monotonic clock, by model or `_EVERY_MODEL`
    s_per_megapixel: dict[str, float] = field(default_factory=dict)
    open_jobs: dict[str, int] = field(default_factory=dict)
    speaks_ours: bool = False  #: an answer of its showed our additions
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Discovery:
    """Keeps offers fresh while :meth:`run` runs.

    Raises: ConfigError if one of *orchestrators* is no https address.
    """

    def __init__(
        self,
        orchestrators: Sequence[str],
        *,
        pins: Pins,
        interval_s: float,
        timeout_s: float,
        clock: Clock | None = None,
    ) -> None:
        urls = dict.fromkeys(parse_orchestrator_url(text) for text in orchestrators)
        self._peers = {str(url): _Peer(url) for url in urls}
        self._pins = pins
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._clock = clock or SystemClock()
        #: Set when the first offer with room was seen, and never cleared: from then on the gateway is ready.
        self.first_offer = asyncio.Event()
        #: Set when every orchestrator has answered or failed once.
        self.first_round = asyncio.Event()
        #: Every model id that was ever on offer: it stays a known one when its orchestrator leaves.
        self.seen_models: set[str] = set()
        self._last_offered_at_s: dict[str, float] = {}
        if not self._peers:
            self.first_round.set()

    async def run(self) -> None:
        """Ask every orchestrator again and again, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name, peer in self._peers.items():
                tasks.create_task(self._keep_fresh(peer), name=f"discover-{name}")

    def __len__(self) -> int:
        """Return how many orchestrators are configured."""
        return len(self._peers)

    def offers(self, model_id: str | None = None) -> list[Offer]:
        """Return the offers known now, of one model or of all."""
        now_s = self._clock.monotonic()
        offers: dict[tuple[OrchestratorUrl, str], Offer] = {}
        for name, peer in self._peers.items():
            for quote in peer.quotes.values():
                if model_id is not None and quote.model_id != model_id:
                    continue
                offer = Offer(
                    orchestrator=name,
                    url=str(quote.url),
                    model_id=quote.model_id,
                    price=quote.price,
                    warm=quote.warm,
                    capacity=quote.capacity,
                    is_ours=peer.speaks_ours or is_ours(quote.version),
                    open_jobs=max(peer.open_jobs.get(quote.model_id, 0), quote.capacity_in_use),
                    s_per_megapixel=peer.s_per_megapixel.get(quote.model_id, 0.0),
                    is_penalised=any(
                        now_s < peer.penalised_until_s.get(of, 0.0) for of in (quote.model_id, _EVERY_MODEL)
                    ),
                )
                # An orchestrator that was configured under two names is one orchestrator.
                offers.setdefault((quote.url, quote.model_id), offer)
        return list(offers.values())

    def offered_models(self) -> list[str]:
        """Return the ids of the models on offer now, sorted."""
        return sorted({model_id for peer in self._peers.values() for model_id in peer.quotes})

    def offered_lately(self, model_id: str | None, *, within_s: float) -> bool:
        """Return whether *model_id* (None: any) was on offer less than *within_s* ago: it may be about to come back."""
        moments = self._last_offered_at_s
        last_s = moments.get(model_id) if model_id else max(moments.values(), default=None)
        return last_s is not None and self._clock.monotonic() - last_s < within_s

    def troubles(self) -> dict[str, str]:
        """Return, for each orchestrator without an offer, why."""
        return {
            name: "not asked yet" if not peer.rounds else (peer.trouble or "offers no upscale model")
            for name, peer in self._peers.items()
            if not peer.quotes
        }

    async def auth_token(self, offer: Offer, *, renew: bool = False) -> AuthToken:
        """Return a token for a job at *offer*: the one of the last quote, or a fresh one.

        Args: *renew*: the orchestrator refused the one of the last quote.
        Raises: UnreachableError, WorkerFailedError: there is no fresh one. NoOrchestratorError: the model is gone.
        """
        peer = self._peers[offer.orchestrator]
        quote = peer.quotes.get(offer.model_id)
        if renew or quote is None or self._is_ending(quote, peer):
            await self._refresh(peer)
            quote = peer.quotes.get(offer.model_id)
        if quote is None:
            raise NoOrchestratorError(f"{offer.orchestrator} no longer offers {offer.model_id!r}")
        return quote.auth_token

    @contextmanager
    def occupying(self, offer: Offer) -> Iterator[None]:
        """Count a job as open at *offer* inside the block."""
        open_jobs = self._peers[offer.orchestrator].open_jobs
        open_jobs[offer.model_id] = open_jobs.get(offer.model_id, 0) + 1
        try:
            yield
        finally:
            open_jobs[offer.model_id] -= 1

    def note_success(self, offer: Offer, *, seconds: float, input_pixels: Pixels, is_ours: bool) -> None:
        """Remember how fast *offer* was, that it works, and whether it speaks our additions."""
        peer = self._peers[offer.orchestrator]
        peer.speaks_ours = peer.speaks_ours or is_ours
        measured = seconds / max(input_pixels / 1_000_000, 1e-6)
        before = peer.s_per_megapixel.get(offer.model_id, measured)
        peer.s_per_megapixel[offer.model_id] = before + _NEWEST_WEIGHT * (measured - before)
        for of in (offer.model_id, _EVERY_MODEL):
            peer.penalised_until_s.pop(of, None)

    def note_failure(self, offer: Offer, error: FourfoldError) -> None:
        """Let a worker's fault count against *offer*'s orchestrator for a short while; nobody else's does.

        One that cannot load the model counts against it for that model alone.
        """
        peer = self._peers[offer.orchestrator]
        if error.blame is Blame.WORKER:
            of = offer.model_id if isinstance(error, ModelUnavailableError) else _EVERY_MODEL
            peer.penalised_until_s[of] = self._clock.monotonic() + _PENALTY_S
        if isinstance(error, UnreachableError | NoOrchestratorError | ModelUnavailableError):
            peer.wake.set()

    def look_again(self) -> None:
        """Ask every orchestrator now rather than at its next round."""
        for peer in self._peers.values():
            peer.wake.set()

    async def _keep_fresh(self, peer: _Peer) -> None:
        while True:
            peer.wake.clear()
            try:
                await self._refresh(peer)
            except FourfoldError:
                pass  # noted in the peer
            except Exception:  # a bug in reading one orchestrator's answer must not end discovery of all
                log.exception("discovery_failed", extra={"orchestrator": str(peer.url)})
            if all(p.rounds for p in self._peers.values()):
                self.first_round.set()
            pause_s = self._interval_s
            if peer.rounds < _EAGER_ROUNDS and not self.first_offer.is_set():
                pause_s = min(_EARLY_LOOK_S * peer.rounds, _SECOND_LOOK_S, self._interval_s)
            elif peer.failures == 1:
                pause_s = min(_SECOND_LOOK_S, self._interval_s)
            try:
                async with asyncio.timeout(pause_s):
                    await peer.wake.wait()
                # Many jobs may fail at once; they need one look together, not one each.
                await asyncio.sleep(min(_SECOND_LOOK_S / 10, self._interval_s))
            except TimeoutError:
                pass

    async def _refresh(self, peer: _Peer) -> None:
        """Ask *peer*; callers at the same time share one question."""
        round_before = peer.rounds
        async with peer.lock:
            if peer.rounds != round_before and peer.trouble is None:
                return
            try:
                quotes = await ask(peer.url, pins=self._pins, timeout_s=self._timeout_s)
            except FourfoldError as exc:
                self._note_silence(peer, exc)
                raise
            finally:
                peer.rounds += 1
            self._note_quotes(peer, quotes)

    def _note_quotes(self, peer: _Peer, quotes: dict[str, Quote]) -> None:
        if set(quotes) != set(peer.quotes) or peer.trouble is not None:
            log.info("orchestrator_offers", extra={"orchestrator": str(peer.url), "models": sorted(quotes)})
        peer.quotes, peer.quoted_at_s = quotes, self._clock.time()
        peer.failures, peer.trouble = 0, None
        self.seen_models.update(quotes)
        now_s = self._clock.monotonic()
        self._last_offered_at_s.update(dict.fromkeys(quotes, now_s))
        if any(quote.capacity for quote in quotes.values()):
            self.first_offer.set()

    def _note_silence(self, peer: _Peer, error: FourfoldError) -> None:
        peer.failures += 1
        # Once may be chance: a certificate in change, a packet lost. Twice in a row is an orchestrator that is gone.
        if peer.failures >= 2 or not peer.quotes:
            if peer.quotes or peer.failures == 1:
                log.warning("orchestrator_lost", extra={"orchestrator": str(peer.url), "reason": error.message})
            peer.quotes = {}
        peer.trouble = error.message

    def _is_ending(self, quote: Quote, peer: _Peer) -> bool:
        """Return whether the quote's token is in the last tenth of its life."""
        life_s = quote.auth_token.expiration - peer.quoted_at_s
        return self._clock.time() > quote.auth_token.expiration - _LAST_PART * max(life_s, 0.0)
