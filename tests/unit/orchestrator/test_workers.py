"""Connected workers without a network: what entries make them, how their health is judged, what is advertised."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import httpx2
import pytest

from fourfold.errors import ModelUnavailableError, NoCapacityError, OutOfMemoryError, UnreachableError
from fourfold.orchestrator import worker_call
from fourfold.orchestrator.admission import Tokens
from fourfold.orchestrator.models import ModelConfig, own_models
from fourfold.orchestrator.offering import Offering
from fourfold.orchestrator.pricing import PriceDefaults, price_list
from fourfold.orchestrator.workers import ExternalEndpoint, Task, Workers, external_endpoints
from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol import wire
from fourfold.protocol.capabilities import demand, offered_models

GATEWAY = "0x" + "11" * 20
EVERYTHING = pb.OrchestratorRequest()


@dataclass
class Endpoint:
    url: str | None = "http://worker"
    token: str | None = None
    models: tuple[str, ...] = ("m",)
    capacity: int = 1


class Network:
    """What a client meets: health as set, everything else as a Livepeer runner on a CPU."""

    def __init__(self) -> None:
        self.health: httpx2.Response | Exception = httpx2.Response(200, json={"status": "OK"})
        self.checks = 0

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path != "/health":
            return httpx2.Response(404)
        self.checks += 1
        if isinstance(self.health, Exception):
            raise self.health
        return self.health


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """Put a network that the test controls in the place of the real one."""
    own = Network()

    @contextlib.asynccontextmanager
    async def open_client() -> AsyncIterator[httpx2.AsyncClient]:
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(own)) as client:
            yield client

    monkeypatch.setattr(worker_call, "open_client", open_client)
    return own


def workers_of(*endpoints: Endpoint | ExternalEndpoint) -> Workers:
    """Return workers that are checked all the time."""
    return Workers(endpoints, check_s=0.001, timeout_s=5.0, revive_s=0.05)


async def checked(network: Network, times: int) -> None:
    """Wait until that many more checks have been made, and the last of them judged."""
    wanted = network.checks + times + 1
    async with asyncio.timeout(5):
        while network.checks < wanted:
            await asyncio.sleep(0.001)


def test_entries_with_a_url_make_external_workers() -> None:
    """Entries of one url are one worker, with all its models and the largest of its capacities."""
    models = [
        ModelConfig("a", url="http://one", capacity=2),
        ModelConfig("b", url="http://one", token="t", capacity=3),
        ModelConfig("a", url="http://two"),
        ModelConfig("a", url="http://one", gateway=GATEWAY, price_per_unit=Decimal(1)),
        ModelConfig("c"),
    ]

    assert external_endpoints(models) == (
        ExternalEndpoint("http://one", "t", ("a", "b"), 3),
        ExternalEndpoint("http://two", None, ("a",), 1),
    )
    assert "token" not in repr(external_endpoints(models)[0])


def test_entries_without_a_url_are_our_own_workers() -> None:
    """Unless they only set a price for a model that somebody else runs."""
    external = ModelConfig("a", url="http://one")
    price_only = ModelConfig("a", gateway=GATEWAY, price_per_unit=Decimal(1))
    both = ModelConfig("a")
    private = ModelConfig("b", gateway=GATEWAY, price_per_unit=Decimal(1))

    assert own_models([external, price_only]) == ()
    assert own_models([external, both, private]) == (both, private)


async def test_silence_of_an_idle_worker_counts_and_of_a_busy_one_does_not(network: Network) -> None:
    """Livepeer's runner cannot answer while it works (livepeer_upscale.md 2.2)."""
    async with workers_of(Endpoint()) as workers:
        await asyncio.wait_for(workers.wait_ready("m"), 5)
        worker = workers.workers[0]
        with workers.reserve("m"):
            network.health = httpx2.ReadTimeout("silent")
            await checked(network, 5)
            assert worker.is_ready
        await checked(network, 3)

        assert not worker.is_ready
        network.health = httpx2.Response(200, json={"status": "IDLE"})
        await asyncio.wait_for(workers.wait_ready("m"), 5)


async def test_one_lost_answer_does_not_take_a_worker_down(network: Network) -> None:
    """Two in a row do."""
    async with workers_of(Endpoint()) as workers:
        await asyncio.wait_for(workers.wait_ready("m"), 5)
        worker = workers.workers[0]
        worker.strikes = 0
        network.health = httpx2.ReadTimeout("lost")
        await workers._check(worker)
        assert worker.strikes >= 1
        network.health = httpx2.Response(200, json={"status": "OK"})
        await workers._check(worker)

        assert (worker.is_ready, worker.strikes) == (True, 0)


async def test_a_refused_connection_takes_a_worker_down_at_once(network: Network) -> None:
    """Also a busy one: its process is gone."""
    async with workers_of(Endpoint()) as workers:
        await asyncio.wait_for(workers.wait_ready("m"), 5)
        with workers.reserve("m"):
            network.health = httpx2.ConnectError("refused")
            await checked(network, 1)

            assert workers.workers[0].status == "DOWN"


async def test_a_worker_that_moved_is_not_ready_before_it_was_asked(network: Network) -> None:
    """What was known of its last address says nothing about the new one."""
    endpoint = Endpoint()
    async with workers_of(endpoint) as workers:
        await asyncio.wait_for(workers.wait_ready("m"), 5)
        endpoint.url = "http://elsewhere"
        assert not workers.workers[0].is_ready
        await asyncio.wait_for(workers.wait_ready("m"), 5)
        endpoint.url = None
        assert not workers.workers[0].is_ready
        await asyncio.sleep(0.01)
        assert workers.workers[0].status == "DOWN"


async def test_a_bug_in_a_check_does_not_end_the_checks(
    network: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One strange answer must not leave a worker unwatched."""
    async with workers_of(Endpoint()) as workers:
        await asyncio.wait_for(workers.wait_ready("m"), 5)
        network.health = RuntimeError("bug")
        await checked(network, 2)
        network.health = httpx2.Response(200, json={"status": "OK"})
        await checked(network, 2)

        assert workers.workers[0].is_ready
        assert "worker_check_failed" in {record.message for record in caplog.records}


def task(tmp_path: Path) -> Task:
    """Return something to do."""
    (tmp_path / "upload").write_bytes(b"x")
    fields = wire.UpscaleFields("m", prompt="", safety_check=True, seed=None, num_inference_steps=None)
    return Task("r", tmp_path / "upload", fields, tmp_path / "x.png", asyncio.Event(), lambda done, total: None)


async def test_a_worker_that_vanished_after_admission_is_unreachable(network: Network, tmp_path: Path) -> None:
    """And is waited for, but not for ever."""
    endpoint = Endpoint()
    async with workers_of(endpoint) as workers:
        await asyncio.wait_for(workers.wait_ready("m"), 5)
        with workers.reserve("m") as slot:
            endpoint.url = None
            with pytest.raises(UnreachableError, match="restarting"):
                await workers.run(slot, task(tmp_path))

        assert workers.workers[0].in_use == 0


async def test_a_worker_that_is_too_small_is_not_asked_again(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is one that is full: the same order would meet the same end."""
    attempts = []

    async def fail(*args: object, **options: object) -> None:
        attempts.append(args)
        raise failure

    monkeypatch.setattr(worker_call, "upscale", fail)
    async with workers_of(Endpoint()) as workers:
        await asyncio.wait_for(workers.wait_ready("m"), 5)
        for failure in (OutOfMemoryError("too small"), NoCapacityError("full")):
            with pytest.raises(type(failure)), workers.reserve("m") as slot:
                await workers.run(slot, task(tmp_path))

    assert len(attempts) == 2


def of_ours(**model_to_failure: str | None) -> httpx2.Response:
    """Return what a worker of ours says of its models."""
    rows = [
        {"model_id": model_id, "loaded": False} | ({} if failure is None else {"failure": failure})
        for model_id, failure in model_to_failure.items()
    ]
    return httpx2.Response(200, json={"status": "IDLE", "models": rows}, headers={wire.PROTOCOL_HEADER: "1"})


def offering_of(workers: Workers, *model_ids: str) -> Offering:
    models = [ModelConfig(model_id, warm=True) for model_id in model_ids]
    tokens = Tokens(ttl_s=60.0, clock=lambda: 1.0, random=bytes)
    return Offering(
        models,
        prices=price_list(models, PriceDefaults(price_usd=1e-8, usd_per_eth=3000.0)),
        workers=workers,
        tokens=tokens,
    )


async def test_what_no_worker_can_load_is_withdrawn_until_one_can(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    """From the list, its prices and its hardware; both edges are logged once, and jobs are refused meanwhile."""
    caplog.set_level("INFO", logger="fourfold")
    network.health = of_ours(m="damaged", n=None)
    async with workers_of(Endpoint(models=("m", "n", "other"))) as workers:
        offering = offering_of(workers, "m", "n", "other")
        await checked(network, 2)
        info = offering.answer(EVERYTHING, url="https://o")
        asked = offering.answer(pb.OrchestratorRequest(capabilities=demand("m")), url="https://o")
        assert set(offered_models(info.capabilities)) == {"n"}
        assert [price.constraint for price in info.capabilities_prices] == ["n"]
        assert [hardware.model_id for hardware in info.hardware] == ["n"]
        assert not asked.price_info.pixelsPerUnit
        assert set(offered_models(offering.capabilities())) == {"m", "n", "other"}  # what may be asked for stays
        with pytest.raises(ModelUnavailableError, match="cannot be loaded here"), workers.reserve("m"):
            pass

        network.health = httpx2.ConnectError("refused")  # its last word counts until it says another
        await checked(network, 2)
        assert set(offered_models(offering.answer(EVERYTHING, url="").capabilities)) == {"n"}
        network.health = of_ours(m=None, n=None, other=None)
        await asyncio.wait_for(workers.wait_ready("m"), 5)
        assert set(offered_models(offering.answer(EVERYTHING, url="").capabilities)) == {
            "m",
            "n",
            "other",
        }

    told = [(r.message, r.model_id, getattr(r, "why", "")) for r in caplog.records if r.message.startswith("model_")]
    assert told == [
        ("model_withdrawn", "m", "damaged"),
        ("model_withdrawn", "other", "the worker does not run it"),
        ("model_offered_again", "m", ""),
        ("model_offered_again", "other", ""),
    ]


async def test_a_model_stays_on_offer_while_one_worker_can_load_it(network: Network) -> None:
    """And that one gets the jobs, however busy it is."""
    async with workers_of(Endpoint(), Endpoint(capacity=2)) as workers:
        await asyncio.wait_for(workers.wait_ready("m"), 5)
        ill, well = workers.workers
        workers._note_failures(ill, {"m": "damaged"})
        assert not workers.is_withdrawn("m")
        offer = offered_models(offering_of(workers, "m").capabilities())["m"]
        assert (offer.capacity, offer.warm) == (2, True)
        with workers.reserve("m") as first, workers.reserve("m") as second:
            assert first.worker is second.worker is well
            with pytest.raises(NoCapacityError), workers.reserve("m"):
                pass


async def test_a_worker_that_fails_to_load_a_model_is_not_asked_again(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its model is withdrawn at once; of a worker that is not ours nobody would tell when it is back."""

    async def fail(*_: object, **__: object) -> None:
        attempts.append(1)
        raise ModelUnavailableError("damaged")

    monkeypatch.setattr(worker_call, "upscale", fail)
    for is_ours in (True, False):
        attempts: list[int] = []
        network.health = of_ours(m=None) if is_ours else httpx2.Response(200, json={"status": "OK"})
        async with Workers([Endpoint()], check_s=60.0, timeout_s=5.0, revive_s=0.05) as workers:
            await asyncio.wait_for(workers.wait_ready("m"), 5)
            with pytest.raises(ModelUnavailableError), workers.reserve("m") as slot:
                await workers.run(slot, task(tmp_path))

            assert (len(attempts), workers.is_withdrawn("m")) == (1, is_ours)


async def test_a_model_that_nobody_serves_has_no_room(network: Network) -> None:
    """Whatever the others have."""
    async with workers_of(Endpoint()) as workers:
        await asyncio.wait_for(workers.wait_ready("m"), 5)
        with pytest.raises(NoCapacityError, match="no worker for other"), workers.reserve("other"):
            pass


async def test_strange_hardware_is_left_out(network: Network) -> None:
    """What a worker says of its devices is copied only where it is what it should be."""
    models = [ModelConfig("m"), ModelConfig("private", gateway=GATEWAY, price_per_unit=Decimal(1))]
    prices = price_list(models, PriceDefaults(price_usd=1e-8, usd_per_eth=3000.0))
    tokens = Tokens(ttl_s=60.0, clock=lambda: 1.0, random=bytes)
    workers = workers_of(Endpoint())
    workers.workers[0].gpus = {
        "0": {"id": 5, "name": "A", "major": "9", "minor": -1, "memory_total": 2**63, "memory_free": True},
        "1": "no object",
    }
    info = Offering(models, prices=prices, workers=workers, tokens=tokens).answer(
        pb.OrchestratorRequest(), url="https://o"
    )

    assert dict(info.hardware[0].gpu_info) == {"0": pb.GPUComputeInfo(name="A"), "1": pb.GPUComputeInfo()}
    assert [price.constraint for price in info.capabilities_prices] == ["m"]
