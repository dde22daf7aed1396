"""The forward flow against a network made of plain objects: which attempts are made, and how a job ends."""

import asyncio
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from fourfold.config import GatewaySettings
from fourfold.errors import (
    BadResultError,
    DeadlineExceededError,
    EngineCrashedError,
    FourfoldError,
    InvalidCredentialsError,
    InvalidImageError,
    InvalidParameterError,
    ModelUnavailableError,
    NoCapacityError,
    NoOrchestratorError,
    OutOfMemoryError,
    PriceAboveMaxError,
    UnknownModelError,
    UnreachableError,
    WorkerFailedError,
)
from fourfold.gateway.board import JobBoard
from fourfold.gateway.dispatch import Delivered, Dispatcher
from fourfold.gateway.jobs import Job, JobState
from fourfold.gateway.selection import Offer, price_ceiling
from fourfold.gateway.submission import Answer, WorkOrder
from fourfold.imaging import Canvas, Measures, OutputOptions, Recipe, Written
from fourfold.protocol.units import Pixels, Price, Wei
from fourfold.protocol.wire import RunFacts, UpscaleFields
from fourfold.telemetry import Metrics
from fourfold.testing.manual_clock import ManualClock

MODEL = "fourfold/realesrgan-x4plus"
FIELDS = UpscaleFields(model_id=MODEL, prompt="", safety_check=True, seed=None, num_inference_steps=None)


def offer(name: str, **more: object) -> Offer:
    url = f"https://{name}:8935"
    return replace(Offer(url, url, MODEL, Price(Wei(10), Pixels(1)), True, 1, True), **more)


@dataclass
class Network:
    """Discovery and submission in one: scripts by orchestrator, and a record of what was tried."""

    listed: list[Offer]
    #: What an orchestrator answers, attempt after attempt; an error, or None for success. Used up: success.
    script: dict[str, list[FourfoldError | None]] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)
    orders: list[WorkOrder] = field(default_factory=list)
    renewed: list[bool] = field(default_factory=list)
    blamed: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    old: set[str] = field(default_factory=set)  #: their workers know nothing of tileable pictures
    looks: int = 0
    seen_models: set[str] = field(default_factory=set)
    was_offered_lately: bool = False
    hang: bool = False
    hang_at: str = ""  #: an orchestrator that never answers
    first_round: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.first_round.set()

    def offers(self, model_id: str | None = None) -> list[Offer]:
        return [o for o in self.listed if model_id in (None, o.model_id)]

    def offered_models(self) -> list[str]:
        return sorted({o.model_id for o in self.listed})

    def offered_lately(self, model_id: str | None, *, within_s: float) -> bool:
        return self.was_offered_lately

    def look_again(self) -> None:
        self.looks += 1

    def occupying(self, _: Offer) -> nullcontext[None]:
        return nullcontext()

    async def auth_token(self, _: Offer, *, renew: bool) -> str:
        self.renewed.append(renew)
        return "token"

    def note_success(self, *_: object, **__: object) -> None: ...

    def note_failure(self, offer: Offer, error: FourfoldError) -> None:
        self.blamed.append(f"{name_of(offer)}:{error.code}")

    async def submit(self, order: WorkOrder, offer: Offer, token: str, target: Path) -> Answer:
        self.tried.append(name_of(offer))
        self.orders.append(order)
        if self.hang or name_of(offer) == self.hang_at:
            await asyncio.sleep(3600)
        script = self.script.get(name_of(offer), [])
        outcome = script.pop(0) if script else None
        if outcome is not None:
            raise outcome
        target.write_bytes(b"picture")
        padded_px = 7 if order.fields.tileable and name_of(offer) not in self.old else None
        return Answer(order.fields.seed or 0, False, "clean", True, RunFacts(padded_px=padded_px))

    async def cancel(self, job_id: str, _: Offer) -> None:
        self.cancelled.append(job_id)

    async def close(self) -> None:
        pass


def name_of(offer: Offer) -> str:
    return offer.orchestrator.removeprefix("https://").removesuffix(":8935")


@dataclass(frozen=True)
class Picture:
    """A prepared picture of 3 x 2."""

    path: Path
    is_identity: bool = True
    width: int = 3
    height: int = 2
    canvas: Canvas | None = None

    @property
    def recipe(self) -> Recipe:
        return Recipe(grey=not self.is_identity)


@dataclass
class Codec:
    is_identity: bool = True
    refuse: FourfoldError | None = None
    bad_results: int = 0
    verified: list[tuple[int, int]] = field(default_factory=list)

    async def prepare(
        self, source: Path, folder: Path, limits: object, *, wrap_px: int = 0, alpha_wrap_px: int = 0
    ) -> Picture:
        if self.refuse:
            raise self.refuse
        return Picture(source, self.is_identity, 3 + 2 * wrap_px, 2 + 2 * wrap_px)

    async def verify(self, path: Path, width: int, height: int, original: Path | Canvas) -> Measures:
        self.verified.append((width, height))
        if self.bad_results:
            self.bad_results -= 1
            raise BadResultError("too small")
        return Measures(lr_psnr_db=40.0)

    async def finish(self, image: Path, recipe: Recipe, target: Path, options: OutputOptions) -> Written:
        target.write_bytes(image.read_bytes() + b" with alpha")
        return Written(12, 8, 8)


class Store:
    def __init__(self) -> None:
        self.kept: list[bytes] = []

    async def put(self, source: Path, *, suffix: str = ".png") -> str:
        self.kept.append(source.read_bytes())
        return "g/n.png"

    def find(self, *_: str) -> None:
        return None

    async def sweep(self) -> int:
        return 0


@dataclass
class Outcome:
    job: Job
    delivered: Delivered | None
    error: FourfoldError | None
    clock: ManualClock
    store: Store


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"pixels")
    return path


class Bench:
    """Runs jobs one after another through one dispatcher."""

    def __init__(self, network: Network, codec: Codec | None = None, **settings: object) -> None:
        self.clock = ManualClock(auto=True)
        self.store = Store()
        self.board = JobBoard(max_jobs=9, metrics=Metrics("gateway"), clock=self.clock)
        self.dispatcher = Dispatcher(
            GatewaySettings(**settings),
            discovery=network,
            submitter=network,
            codec=codec or Codec(),
            store=self.store,
            metrics=Metrics("gateway"),
            known=[MODEL, "known/other"],
            clock=self.clock,
            draw_seed=lambda: 4242,
        )
        self.count = 0

    async def run(self, image: Path, fields: UpscaleFields = FIELDS) -> Outcome:
        self.count += 1
        delivered, error = None, None
        try:
            with self.board.open(f"j{self.count}") as open_job:
                delivered = await self.dispatcher.upscale(open_job, image, fields, folder=image.parent, request_id="r")
        except FourfoldError as exc:
            error = exc
        return Outcome(open_job.job, delivered, error, self.clock, self.store)


async def run(network: Network, image: Path, codec: Codec | None = None, **settings: object) -> Outcome:
    return await Bench(network, codec, **settings).run(image)


async def test_the_best_offer_does_the_job(image: Path) -> None:
    """One attempt, the fee of the offer, the worker's own bytes stored."""
    network = Network([offer("a"), offer("b", s_per_megapixel=9.0)])
    codec = Codec()

    done = await run(network, image, codec)

    assert done.delivered == Delivered("g/n.png", MODEL, 4242, False, "clean", Pixels(6), Wei(60))
    assert network.tried == ["a"]
    assert codec.verified == [(12, 8)]
    assert done.store.kept == [b"picture"]
    assert (done.job.state, done.job.attempts, done.job.model_id) == (JobState.SUCCEEDED, 1, MODEL)


async def test_what_was_taken_away_is_put_back(image: Path) -> None:
    """A recipe that is not the identity passes through `finish`."""
    done = await run(Network([offer("a")]), image, Codec(is_identity=False))

    assert done.store.kept == [b"picture with alpha"]


@pytest.mark.parametrize(
    "error", [NoCapacityError("x"), WorkerFailedError("x"), UnreachableError("x"), EngineCrashedError("x")]
)
async def test_a_failure_is_tried_elsewhere_at_once(image: Path, error: FourfoldError) -> None:
    """With the same seed, under a new id, without a pause."""
    network = Network([offer("a"), offer("b")], {"a": [error]})

    done = await run(network, image)

    assert network.tried == ["a", "b"]
    assert done.clock.sleeps == []
    assert [o.job_id for o in network.orders] == ["j1-1", "j1-2"]
    assert {o.fields.seed for o in network.orders} == {4242}
    assert done.job.state is JobState.SUCCEEDED


@pytest.mark.parametrize("seed", [0, 1, 2**53 - 1])
async def test_a_seed_that_was_asked_for_is_used(image: Path, seed: int) -> None:
    """Zero is a seed."""
    network = Network([offer("a")])
    await Bench(network).run(image, replace(FIELDS, seed=seed))

    assert network.orders[0].fields.seed == seed


async def test_a_lone_orchestrator_is_tried_again_a_little_later(image: Path) -> None:
    """A worker that was killed comes back."""
    network = Network([offer("a")], {"a": [EngineCrashedError("killed"), NoCapacityError("restarting")]})

    done = await run(network, image)

    assert network.tried == ["a", "a", "a"]
    assert done.clock.sleeps == [0.25, 0.5]
    assert done.job.state is JobState.SUCCEEDED


async def test_the_clients_own_fault_ends_the_job(image: Path) -> None:
    """NEVER means never: nobody else is asked."""
    network = Network([offer("a"), offer("b")], {"a": [InvalidParameterError("odd")]})

    done = await run(network, image)

    assert network.tried == ["a"]
    assert isinstance(done.error, InvalidParameterError)
    assert (done.job.state, done.job.error_code) == (JobState.FAILED, "invalid_parameter")


async def test_a_refused_token_is_renewed_and_the_same_one_asked_again(image: Path) -> None:
    """SAME means the same, with a fresh token."""
    network = Network([offer("a"), offer("b")], {"a": [InvalidCredentialsError("expired")]})

    done = await run(network, image)

    assert network.tried == ["a", "a"]
    assert network.renewed == [False, True]
    assert done.job.state is JobState.SUCCEEDED


async def test_renewing_has_an_end(image: Path) -> None:
    """One that refuses fresh tokens too is left for another."""
    network = Network([offer("a"), offer("b")], {"a": [InvalidCredentialsError("no")] * 9})

    await run(network, image)

    assert network.tried == ["a", "a", "a", "b"]


async def test_a_wrong_result_is_the_workers_fault(image: Path) -> None:
    """It is not given to the client; somebody else is asked."""
    network = Network([offer("a"), offer("b")])

    done = await run(network, image, Codec(bad_results=1))

    assert network.tried == ["a", "b"]
    assert network.blamed == ["a:bad_result"]
    assert done.job.state is JobState.SUCCEEDED


async def test_a_busy_network_is_waited_for_and_then_refused(image: Path) -> None:
    """With growing pauses, for `capacity_wait_s` in all."""
    network = Network([offer("a")], {"a": [NoCapacityError("full")] * 99})

    done = await run(network, image, capacity_wait_s=10.0)

    assert isinstance(done.error, NoCapacityError)
    assert done.clock.sleeps == [0.25, 0.5, *[1.0] * 9, 0.25]
    assert len(network.tried) == 13


@dataclass
class OneRoom(Network):
    """Takes a job at a time and refuses every other."""

    is_taken: bool = False
    served: list[int | None] = field(default_factory=list)

    async def submit(self, order: WorkOrder, offer: Offer, token: str, target: Path) -> Answer:
        if self.is_taken:
            raise NoCapacityError("full")
        self.is_taken = True
        for _ in range(7):
            await asyncio.sleep(0)
        self.is_taken = False
        self.served.append(order.fields.seed)
        return await super().submit(order, offer, token, target)


async def test_who_waits_is_served_in_the_order_of_arrival(image: Path) -> None:
    """A newcomer takes nobody's place, and asks for none while an older job waits."""
    network = OneRoom([offer("a")])
    bench = Bench(network)

    await asyncio.gather(*(bench.run(image, replace(FIELDS, seed=number)) for number in range(8)))

    assert network.served == list(range(8))


@dataclass
class OneIsCursed(Network):
    """Fails one job whenever it comes, and makes the others."""

    served: list[int | None] = field(default_factory=list)

    async def submit(self, order: WorkOrder, offer: Offer, token: str, target: Path) -> Answer:
        if order.fields.seed == 0:
            raise WorkerFailedError("broken")
        self.served.append(order.fields.seed)
        return await super().submit(order, offer, token, target)


async def test_a_job_that_fails_again_and_again_holds_up_nobody(image: Path) -> None:
    """It does not wait for room, so it stands in nobody's way."""
    network = OneIsCursed([offer("a")])
    bench = Bench(network)
    cursed = asyncio.create_task(bench.run(image, replace(FIELDS, seed=0)))
    while not bench.clock.sleeps:  # until it pauses
        await asyncio.sleep(0)
    done = await asyncio.gather(*(bench.run(image, replace(FIELDS, seed=number)) for number in range(1, 4)))

    assert not cursed.done()
    assert (network.served, [each.error for each in done]) == ([1, 2, 3], [None] * 3)
    assert isinstance((await cursed).error, WorkerFailedError)


async def test_a_newcomer_that_never_got_to_ask_is_told_why(image: Path) -> None:
    """There are offers; what is lacking is room."""
    bench = Bench(Network([offer("a")], {"a": [NoCapacityError("full")] * 99}), capacity_wait_s=3.0)

    older, newer = await asyncio.gather(bench.run(image), bench.run(image))

    assert isinstance(older.error, NoCapacityError) and isinstance(newer.error, NoCapacityError)


async def test_failures_have_an_end(image: Path) -> None:
    """Five of them, and the client is told the last one."""
    network = Network([offer("a")], {"a": [WorkerFailedError(str(n)) for n in range(9)]})

    done = await run(network, image)

    assert len(network.tried) == 5
    assert str(done.error) == "4"


async def test_a_connection_that_breaks_for_ever_has_an_end(image: Path) -> None:
    """Nobody's fault, so it costs waiting time; but not without limit."""
    network = Network([offer("a")], {"a": [UnreachableError("reset")] * 99})

    done = await run(network, image, capacity_wait_s=1000.0)

    assert len(network.tried) == 20
    assert isinstance(done.error, UnreachableError)


async def test_a_large_busy_network_is_waited_for_as_long_as_a_small_one(image: Path) -> None:
    """Refusals for want of room are not counted."""
    network = Network(offers_of("abcdefgh"), {name: [NoCapacityError("full")] * 99 for name in "abcdefgh"})

    done = await run(network, image, capacity_wait_s=60.0)

    assert sum(done.clock.sleeps) == 60.0
    assert isinstance(done.error, NoCapacityError)


async def test_two_crashes_end_the_job(image: Path) -> None:
    """The input is suspected; it is not tried on a third."""
    crash = EngineCrashedError("boom")
    network = Network([offer("a"), offer("b"), offer("c")], {"a": [crash], "b": [crash]})
    bench = Bench(network)

    first = await bench.run(image)
    second = await bench.run(image)

    assert network.tried == ["a", "b"]
    assert isinstance(first.error, EngineCrashedError)
    assert isinstance(second.error, EngineCrashedError) and "third" in str(second.error)


async def test_two_crashes_of_one_orchestrator_say_nothing_of_the_input(image: Path) -> None:
    """Its machine may be ill: the next request is tried again."""
    network = Network([offer("a")], {"a": [EngineCrashedError("boom")] * 2})
    bench = Bench(network)

    first = await bench.run(image)
    second = await bench.run(image)

    assert isinstance(first.error, EngineCrashedError)
    assert second.job.state is JobState.SUCCEEDED


async def test_another_input_is_not_under_suspicion(image: Path) -> None:
    """Quarantine is of bytes."""
    crash = EngineCrashedError("boom")
    bench = Bench(Network([offer("a"), offer("b")], {"a": [crash], "b": [crash]}))
    await bench.run(image)
    image.write_bytes(b"other pixels")

    assert (await bench.run(image)).job.state is JobState.SUCCEEDED


async def test_running_out_of_memory_is_tried_where_there_may_be_more(image: Path) -> None:
    """It is no crash of the input's making."""
    network = Network([offer("a"), offer("b")], {"a": [OutOfMemoryError("small")]})

    assert (await run(network, image)).job.state is JobState.SUCCEEDED
    assert network.tried == ["a", "b"]


async def test_a_deadline_covers_everything(image: Path) -> None:
    """The job expires, and the orchestrator is told."""
    network = Network([offer("a")], hang=True)
    bench = Bench(network, job_deadline_s=0.05)

    async with bench.dispatcher:
        done = await bench.run(image)

    assert isinstance(done.error, DeadlineExceededError)
    assert (done.job.state, done.job.error_code) == (JobState.EXPIRED, "deadline_exceeded")
    assert network.cancelled == ["j1-1"]


async def test_a_deadline_names_what_the_last_attempt_failed_with(image: Path) -> None:
    """Else "not done in time" hides why nobody did it."""
    network = Network([offer("a"), offer("b")], {"a": [OutOfMemoryError("too small")]}, hang_at="b")
    bench = Bench(network, job_deadline_s=0.05)

    async with bench.dispatcher:
        done = await bench.run(image)

    assert isinstance(done.error, DeadlineExceededError)
    assert str(done.error).endswith("; the last attempt failed with out_of_memory: too small")


async def test_a_cancelled_job_is_cancelled_there(image: Path) -> None:
    """Leaving the dispatcher waits until that is told."""
    network = Network([offer("a")], hang=True)
    bench = Bench(network)
    async with bench.dispatcher:
        job = asyncio.create_task(bench.run(image))
        while not network.tried:
            await asyncio.sleep(0.001)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job

    assert network.cancelled == ["j1-1"]


async def test_a_bad_picture_goes_to_nobody(image: Path) -> None:
    """It is refused before an orchestrator hears of it."""
    network = Network([offer("a")])

    done = await run(network, image, Codec(refuse=InvalidImageError("truncated")))

    assert network.tried == []
    assert isinstance(done.error, InvalidImageError)


@pytest.mark.parametrize(
    ("model_id", "error"), [("known/other", NoOrchestratorError), ("nobody/knows", UnknownModelError)]
)
async def test_a_model_that_is_not_offered(image: Path, model_id: str, error: type[FourfoldError]) -> None:
    """Known or not makes the difference between 503 and 400; neither is waited for."""
    bench = Bench(Network([offer("a")]))

    done = await bench.run(image, replace(FIELDS, model_id=model_id))

    assert type(done.error) is error
    assert MODEL in str(done.error)
    assert bench.clock.sleeps == []


async def test_a_model_that_just_left_is_waited_for(image: Path) -> None:
    """Its worker may be restarting."""
    network = Network([], was_offered_lately=True)
    bench = Bench(network)
    sleep = bench.clock.sleep

    async def sleep_and_return(seconds: float) -> None:
        await sleep(seconds)
        if len(bench.clock.sleeps) == 3:
            network.listed.append(offer("a"))

    bench.clock.sleep = sleep_and_return

    assert (await bench.run(image)).job.state is JobState.SUCCEEDED
    assert network.looks == 3


async def test_a_model_that_was_taken_back_is_not_waited_for(image: Path) -> None:
    """Its orchestrator cannot load it; where another offers it still, the job goes there."""
    for others, tried in (([], ["a"]), ([offer("b", warm=False)], ["a", "b"])):
        network = Network([offer("a"), *others], {"a": [ModelUnavailableError("damaged")]})
        bench = Bench(network, capacity_wait_s=2.0)

        def take_back(_offer: Offer, _error: FourfoldError, network: Network = network) -> None:
            network.listed = [o for o in network.listed if name_of(o) != "a"]

        network.note_failure = take_back
        done = await bench.run(image)

        assert (network.tried, bench.clock.sleeps) == (tried, [])
        assert type(done.error) is (type(None) if others else ModelUnavailableError)


async def test_a_model_that_leaves_in_the_middle_is_waited_for(image: Path) -> None:
    """And the last thing that went wrong is told in the end."""
    network = Network([offer("a")], {"a": [UnreachableError("gone")]})
    bench = Bench(network, capacity_wait_s=2.0)
    note_failure = network.note_failure

    def leave(offer: Offer, error: FourfoldError) -> None:
        note_failure(offer, error)
        network.listed.clear()

    network.note_failure = leave

    done = await bench.run(image)

    assert isinstance(done.error, UnreachableError)
    assert sum(bench.clock.sleeps) == 2.0
    assert network.looks == len(bench.clock.sleeps)


@pytest.mark.parametrize(("ceiling", "is_done"), [(3e-14, True), (2.999e-14, False)])
async def test_the_ceiling_is_exact(image: Path, ceiling: float, is_done: bool) -> None:
    """10 wei at 3000 USD per ETH is 3e-14 USD: that passes, anything less does not."""
    done = await run(Network([offer("a")]), image, max_price_usd=ceiling)

    assert (done.job.state is JobState.SUCCEEDED) == is_done
    assert is_done or isinstance(done.error, PriceAboveMaxError)


async def test_an_offer_that_is_known_is_not_kept_waiting(image: Path) -> None:
    """A first look that is still under way, at somebody who does not answer, delays only who needs it."""
    network = Network([offer("a")])
    network.first_round.clear()

    assert (await run(network, image, discovery_timeout_s=60.0)).job.state is JobState.SUCCEEDED


@pytest.mark.parametrize("model_id", [MODEL, "new/model"])
async def test_the_first_look_is_waited_for(image: Path, model_id: str) -> None:
    """Before anything is called unknown or not on offer."""
    network = Network([])
    network.first_round.clear()

    def look() -> None:
        network.listed.append(offer("a", model_id=model_id))
        network.first_round.set()

    asyncio.get_running_loop().call_later(0.02, look)

    assert (await Bench(network).run(image, replace(FIELDS, model_id=model_id))).job.state is JobState.SUCCEEDED


async def test_a_first_look_that_does_not_end(image: Path) -> None:
    """Is not waited for beyond the time of one question."""
    network = Network([])
    network.first_round.clear()

    done = await run(network, image, discovery_timeout_s=0.02)

    assert isinstance(done.error, NoOrchestratorError)


def test_the_ceiling_in_wei() -> None:
    """The price of the design, and none."""
    assert price_ceiling(1.9073484e-08, usd_per_eth=3000.0) == Price(Wei(6_357_828), Pixels(1))
    assert price_ceiling(None, usd_per_eth=3000.0) is None


async def test_aliases_and_the_operators_default(image: Path) -> None:
    """An alias is followed for a named model; a request that names none gets the default."""
    network = Network([offer("a")])
    bench = Bench(network, model_aliases={"old/name": MODEL}, default_model=MODEL)

    await bench.run(image, replace(FIELDS, model_id="old/name"))
    await bench.run(image, replace(FIELDS, model_id=""))

    assert [o.fields.model_id for o in network.orders] == [MODEL, MODEL]


def offers_of(names: Iterable[str]) -> list[Offer]:
    return [offer(name) for name in names]


async def test_everyone_is_tried_once_before_anyone_is_tried_twice(image: Path) -> None:
    """Refusals for want of room go round."""
    network = Network(offers_of("abc"), {name: [NoCapacityError("full")] for name in "abc"})

    await run(network, image)

    assert network.tried == ["a", "b", "c", "a"]


@pytest.mark.parametrize(
    ("is_ours", "old", "sent", "pixels", "padded_px"),
    [
        (True, set(), [True], 3 * 2, 7),
        (False, set(), [False], 195 * 194, 0),
        (True, {"a"}, [True, False], 195 * 194, 0),
    ],
)
async def test_a_tileable_picture_is_extended_by_whoever_can(
    image: Path, is_ours: bool, old: set[str], sent: list[bool], pixels: int, padded_px: int
) -> None:
    """By our worker, and the fee is for the picture; for a peer's worker here, and it is for what is sent."""
    network, codec = Network([offer("a", is_ours=is_ours)], old=old), Codec()

    done = await Bench(network, codec).run(image, replace(FIELDS, tileable=True))

    assert done.delivered is not None
    assert [order.fields.tileable for order in network.orders] == sent
    assert len({order.job_id for order in network.orders}) == len(sent)
    assert (done.delivered.input_pixels, done.delivered.fee) == (pixels, 10 * pixels)
    assert done.delivered.fidelity.padded_px == padded_px  # the recipe of this codec knows of none
    assert codec.verified == [(12, 8) if pixels == 6 else (4 * 195, 4 * 194)]


async def test_an_extended_picture_is_made_once(image: Path) -> None:
    """However many of Livepeer's orchestrators are asked."""
    network = Network([offer("a", is_ours=False), offer("b", is_ours=False)], script={"a": [WorkerFailedError("x")]})
    codec = Codec()
    made: list[int] = []
    prepare = codec.prepare

    async def counted(*arguments: object, **wraps: int) -> Picture:
        made.append(wraps.get("wrap_px", 0))
        return await prepare(*arguments, **wraps)

    codec.prepare = counted

    done = await Bench(network, codec).run(image, replace(FIELDS, tileable=True))

    assert done.delivered is not None
    assert (network.tried, made) == (["a", "b"], [0, 96])
