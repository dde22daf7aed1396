"""The forward flow of a job: prepare, rank, pay, submit, check, finish, store. Here is the only loop that retries.

An error's class decides what follows: SAME, the same orchestrator with a fresh token; OTHER, the next best one, or when
all were tried, all of them a little later; NEVER, the client is told. One deadline covers everything, waiting included.
"""

import asyncio
import contextlib
import hashlib
import itertools
import logging
import secrets
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from fourfold.config import GatewaySettings
from fourfold.errors import (
    DeadlineExceededError,
    EngineCrashedError,
    FourfoldError,
    ModelUnavailableError,
    NoCapacityError,
    NoOrchestratorError,
    QueueFullError,
    UnknownModelError,
    UnreachableError,
)
from fourfold.gateway.attempts import BUSY_PAUSE_S, FIRST_PAUSE_S, LONGEST_PAUSE_S, Attempts
from fourfold.gateway.board import OpenJob
from fourfold.gateway.discovery import Discovery
from fourfold.gateway.jobs import JobState
from fourfold.gateway.line import Line
from fourfold.gateway.output_form import Wanted
from fourfold.gateway.ports import Clock, Codec, SystemClock
from fourfold.gateway.quarantine import Quarantine
from fourfold.gateway.selection import LIVEPEER_MODEL, Offer, price_ceiling, rank, resolve_model
from fourfold.gateway.sending import Sent, as_it_is, extended
from fourfold.gateway.submission import Answer, Submitter, WorkOrder
from fourfold.imaging import Fidelity, Measures, Written, describe
from fourfold.protocol.units import Pixels, Wei
from fourfold.protocol.wire import UpscaleFields
from fourfold.results.base import ResultStore
from fourfold.telemetry import Metrics

log = logging.getLogger(__name__)

SCALE: Final = 4
#: A model that was on offer this long ago may be about to come back: its worker restarts.
_COMING_BACK_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """A finished job."""

    key: str  #: of the stored result, ``<group>/<name>.<format>``
    model_id: str  #: what ran
    seed: int
    nsfw: bool
    safety: str
    input_pixels: Pixels
    fee: Wei
    fidelity: Fidelity = field(default_factory=Fidelity, compare=False)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a good attempt brought."""

    offer: Offer
    sent: Sent
    answer: Answer
    image: Path
    measures: Measures


@dataclass(slots=True)
class _Task:
    """What the attempts of one job share."""

    open_job: OpenJob
    request_id: str
    source: Path  #: the upload as it came
    folder: Path
    plain: Sent
    attempts: Attempts
    number: int  #: how many jobs came before
    extended: Sent | None = None  #: of a tileable picture, once somebody needed it

    @property
    def model_id(self) -> str:
        """What runs, wherever it does."""
        return self.plain.fields.model_id


class Dispatcher:
    """Has jobs done. A context manager: leaving it tells the last cancellations and closes the *submitter*.

    Args: *known*, the model ids of the local registry; *draw_seed*, 32 random bits for a job that names no seed.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        discovery: Discovery,
        submitter: Submitter,
        codec: Codec,
        store: ResultStore,
        metrics: Metrics,
        known: Collection[str],
        clock: Clock | None = None,
        draw_seed: Callable[[], int] = lambda: secrets.randbits(32),
    ) -> None:
        self._settings = settings
        self._discovery = discovery
        self._submitter = submitter
        self._codec = codec
        self._store = store
        self._metrics = metrics
        self._known = frozenset({*known, LIVEPEER_MODEL})
        self._clock = clock or SystemClock()
        self._draw_seed = draw_seed
        self._max_price = price_ceiling(settings.max_price_usd, usd_per_eth=settings.usd_per_eth)
        self._quarantine = Quarantine()
        self._line = Line(self._clock)
        self._numbers = itertools.count()
        self._strays: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._strays:
            await asyncio.wait(self._strays)
        await self._submitter.close()

    async def upscale(
        self,
        open_job: OpenJob,
        source: Path,
        fields: UpscaleFields,
        *,
        folder: Path,
        request_id: str,
        wanted: Wanted | None = None,
    ) -> Delivered:
        """Return the job's result.

        Args: *source*, the upload as it came; *folder*, the job's own, for files that the caller removes; *wanted*, how
            the result is to be written, None: as a PNG four times as large.
        Raises: FourfoldError; DeadlineExceededError when ``job_deadline_s`` has passed.
        """
        limit_s = self._settings.job_deadline_s
        attempts = Attempts()
        try:
            async with asyncio.timeout(limit_s):
                return await self._upscale(open_job, source, fields, folder, request_id, wanted or Wanted(), attempts)
        except TimeoutError:
            message = f"the job was not done in {limit_s:g} s; send a smaller image or try again later"
            if attempts.last_error is not None:
                message += f"; the last attempt failed with {attempts.last_error.code}: {attempts.last_error.message}"
            raise DeadlineExceededError(message) from None

    async def _upscale(
        self,
        open_job: OpenJob,
        source: Path,
        fields: UpscaleFields,
        folder: Path,
        request_id: str,
        wanted: Wanted,
        attempts: Attempts,
    ) -> Delivered:
        # 1. Canonical form: damaged and oversized pictures end here, before anybody else sees them.
        with self._timed("prepare"):
            plain = await as_it_is(self._codec, source, folder, self._settings.limits, fields)
        width, height = plain.prepared.width, plain.prepared.height
        options = wanted.options
        options.output_size(width, height)  # a size or format that cannot be is refused before anybody works
        # 2. The model, and a seed that all attempts share.
        model_id = await self._resolve_model(fields.model_id)
        seed = self._draw_seed() if fields.seed is None else fields.seed
        plain = replace(plain, fields=replace(fields, model_id=model_id, seed=seed))
        open_job.input_pixels = plain.pixels
        task = _Task(open_job, request_id, source, folder, plain, attempts, next(self._numbers))
        await self._refuse_quarantined(task)
        # 3. Have it done.
        done = await self._deliver(task)
        answer, image, recipe = done.answer, done.image, done.sent.prepared.recipe
        # 4. Put back what `prepare` took away, if anything, write it as asked for, and keep the result.
        written = Written(SCALE * width, SCALE * height, done.measures.bits)
        if not (recipe.is_all_pixels and options.is_plain(width, height)):
            with self._timed("finish", model_id):
                finished = folder / f"finished{options.file_format.suffix}"
                written = await self._codec.finish(image, recipe, finished, options)
                image = finished
        with self._timed("store", model_id):
            key = await self._store.put(image, suffix=options.file_format.suffix)
        open_job.input_pixels = pixels = done.sent.pixels
        open_job.fee = fee = done.offer.fee(pixels)
        fidelity = describe(recipe, written, done.measures, format_name=options.format, notes=asdict(answer.run))
        return Delivered(key, model_id, answer.seed, answer.nsfw, answer.safety, pixels, fee, fidelity)

    async def _resolve_model(self, requested: str) -> str:
        """Return the model that runs; waits for a first look at the network, and for a model that just left."""
        settings = self._settings
        wanted = settings.model_aliases.get(requested, requested) or settings.default_model
        has_looked = self._discovery.first_round.is_set()
        waited_s = 0.0
        while True:
            try:
                return resolve_model(
                    requested,
                    offered=self._discovery.offered_models(),
                    known=self._known | self._discovery.seen_models,
                    default_model=settings.default_model,
                    aliases=settings.model_aliases,
                )
            except (NoOrchestratorError, UnknownModelError) as exc:
                lately = self._discovery.offered_lately(wanted, within_s=_COMING_BACK_S)
                is_over = isinstance(exc, UnknownModelError) or not lately or waited_s >= settings.capacity_wait_s
                if has_looked and is_over:
                    raise
            if not has_looked:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(settings.discovery_timeout_s):
                        await self._discovery.first_round.wait()
                has_looked = True
                continue
            self._discovery.look_again()
            await self._clock.sleep(FIRST_PAUSE_S)
            waited_s += FIRST_PAUSE_S

    async def _deliver(self, task: _Task) -> _Outcome:
        """Return what the first good attempt brought."""
        attempts, model_id, pixels = task.attempts, task.model_id, task.plain.pixels
        while True:
            ranked = rank(self._discovery.offers(model_id), input_pixels=pixels, max_price=self._max_price)
            offer = next((o for o in ranked if o.orchestrator not in attempts.tried), None)
            if not ranked and isinstance(attempts.last_error, ModelUnavailableError):
                raise attempts.last_error  # the last one took it back: its files are wrong, and will be for a while
            if offer is None or self._line.is_behind(model_id, task.number):
                await self._pause(task, is_offered=bool(ranked))
                continue
            try:
                outcome = await self._attempt(task, offer)
                self._line.call(model_id)
                return outcome
            except FourfoldError as exc:
                attempts.note(offer.orchestrator, exc)
                await self._note_failure(task, offer, exc)
                if attempts.is_over:
                    raise
                self._metrics.count_error(exc)
            task.open_job.to(JobState.QUEUED)

    async def _pause(self, task: _Task, *, is_offered: bool) -> None:
        """Wait a while; for room, in line with the others. Raises: why the model cannot be had, after all pauses."""
        attempts, model_id = task.attempts, task.model_id
        # What else stops a job does not stop those behind it.
        lacks_room = is_offered and isinstance(attempts.last_error, NoCapacityError | QueueFullError | None)
        pause_s = attempts.next_pause_s(
            limit_s=self._settings.capacity_wait_s, longest_s=BUSY_PAUSE_S if lacks_room else LONGEST_PAUSE_S
        )
        if pause_s is None:
            if is_offered and attempts.last_error is None:
                raise NoCapacityError(f"jobs that came before take all the room for {model_id}; try again later")
            raise attempts.last_error or NoOrchestratorError(f"nobody offers {model_id!r} any more")
        if not is_offered:
            self._discovery.look_again()
        if lacks_room:
            attempts.waited_s -= await self._line.stand(model_id, task.number, pause_s=pause_s)
        else:
            await self._clock.sleep(pause_s)

    async def _attempt(self, task: _Task, offer: Offer) -> _Outcome:
        """Have the work done at *offer* and check what comes back."""
        target = task.folder / f"result-{task.attempts.count + 1}.png"
        task.open_job.to(JobState.RUNNING, model_id=task.model_id)
        sent = task.plain if offer.is_ours or not task.plain.fields.tileable else await self._extended(task)
        started_s = self._clock.monotonic()
        with self._discovery.occupying(offer):
            answer = await self._submit(task, offer, sent, target)
            if sent.fields.tileable and answer.run.padded_px is None:  # it runs a Livepeer runner
                sent = await self._extended(task)
                answer = await self._submit(task, offer, sent, target)
        seconds = self._clock.monotonic() - started_s
        with self._timed("verify", task.model_id):
            width, height = SCALE * sent.prepared.width, SCALE * sent.prepared.height
            original = sent.prepared.canvas or sent.prepared.path
            measures = await self._codec.verify(target, width, height, original)
        self._discovery.note_success(offer, seconds=seconds, input_pixels=sent.pixels, is_ours=answer.is_ours)
        return _Outcome(offer, sent, answer, target, measures)

    async def _submit(self, task: _Task, offer: Offer, sent: Sent, target: Path) -> Answer:
        """Give *sent* to *offer*, once, under an id of its own."""
        task.attempts.count += 1
        job_id = f"{task.open_job.job_id}-{task.attempts.count}"
        with self._timed("submit", task.model_id):
            token = await self._discovery.auth_token(offer, renew=task.attempts.wants_fresh_token)
            order = WorkOrder(job_id, task.request_id, sent.prepared.path, sent.fields)
            try:
                return await self._submitter.submit(order, offer, token, target)
            except (asyncio.CancelledError, UnreachableError):
                self._cancel_there(job_id, offer)
                raise

    async def _extended(self, task: _Task) -> Sent:
        """Return the tileable picture with its edges around it, for a peer that knows no such field."""
        if task.extended is None:
            with self._timed("prepare"):
                folder, limits = task.folder / "extended", self._settings.limits
                task.extended = await extended(self._codec, task.source, folder, limits, task.plain.fields)
        return task.extended

    async def _note_failure(self, task: _Task, offer: Offer, error: FourfoldError) -> None:
        """Remember what a failed attempt means for the orchestrator and for the input."""
        self._discovery.note_failure(offer, error)
        facts = {"job_id": task.open_job.job_id, "orchestrator": offer.orchestrator, "model_id": offer.model_id}
        log.warning("attempt_failed", extra={**facts, "code": error.code, "attempt": task.attempts.count})
        if isinstance(error, EngineCrashedError) and task.attempts.is_input_suspect:
            digest = await asyncio.to_thread(_digest, task.plain.prepared.path, offer.model_id)
            self._quarantine.add(digest, now_s=self._clock.monotonic())
            log.error("input_quarantined", extra={**facts, "digest": digest[:16]})

    async def _refuse_quarantined(self, task: _Task) -> None:
        """Raise EngineCrashedError if this input crashed two orchestrators' workers a short while ago."""
        if not self._quarantine:
            return
        digest = await asyncio.to_thread(_digest, task.plain.prepared.path, task.model_id)
        if self._quarantine.holds(digest, now_s=self._clock.monotonic()):
            raise EngineCrashedError("this image crashed two workers a short while ago; it is not tried on a third")

    def _cancel_there(self, job_id: str, offer: Offer) -> None:
        """Tell the orchestrator in the background: whoever cancelled us must not wait for that."""
        stray = asyncio.create_task(self._submitter.cancel(job_id, offer), name=f"cancel-{job_id}")
        self._strays.add(stray)
        stray.add_done_callback(self._strays.discard)

    @contextlib.contextmanager
    def _timed(self, stage: str, model_id: str = "") -> Iterator[None]:
        """Observe how long a stage takes, however it ends."""
        started_s = self._clock.monotonic()
        try:
            yield
        finally:
            self._metrics.observe_stage(stage, self._clock.monotonic() - started_s, model_id=model_id)


def _digest(image: Path, model_id: str) -> str:
    """Return what names an input: its bytes and the model."""
    with image.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(model_id.encode())
    return digest.hexdigest()
