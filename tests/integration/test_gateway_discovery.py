"""Offers, kept fresh over real gRPC."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fourfold.errors import ConfigError, ModelUnavailableError, NoOrchestratorError, UnreachableError, WorkerFailedError
from fourfold.gateway.discovery import Discovery
from fourfold.gateway.orchestrator_url import parse_orchestrator_url
from fourfold.gateway.pinning import Pins
from fourfold.gateway.quotes import ask
from fourfold.protocol.units import Price
from fourfold.testing.fake_orchestrator import FakeModel, FakeOrchestrator
from fourfold.testing.manual_clock import ManualClock

MODEL = "fourfold/realesrgan-x4plus"


@asynccontextmanager
async def running(discovery: Discovery) -> AsyncIterator[Discovery]:
    task = asyncio.create_task(discovery.run())
    try:
        yield discovery
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def discovery(*urls: str, interval_s: float = 0.1, timeout_s: float = 1.0, **more: object) -> Discovery:
    return Discovery(urls, pins=Pins(timeout_s=timeout_s), interval_s=interval_s, timeout_s=timeout_s, **more)


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def test_offers_carry_what_an_orchestrator_says(tmp_path: Path) -> None:
    """Exact price by the second call, warmth, capacity, where jobs go, and whose kind it is."""
    models = [FakeModel(MODEL, (12_715_657, 2), warm=True, capacity=2), FakeModel("z/cold", (7, 1000), warm=False)]
    async with FakeOrchestrator(tmp_path, models=models) as o, running(discovery(o.url)) as found:
        await found.first_offer.wait()
        warm, cold = sorted(found.offers(), key=lambda offer: offer.model_id)

    assert (warm.orchestrator, warm.url) == (o.url, o.url)
    assert warm.price == Price(12_715_657, 2)
    assert (warm.warm, warm.capacity, warm.is_ours) == (True, 2, True)
    assert (cold.model_id, cold.price, cold.warm) == ("z/cold", Price(7, 1000), False)
    assert found.offered_models() == [MODEL, "z/cold"]
    assert found.offers("z/cold") == [cold]


async def test_a_livepeer_orchestrator_without_prices(tmp_path: Path) -> None:
    """Off-chain it names none; it is not one of ours until it shows otherwise."""
    async with (
        FakeOrchestrator(tmp_path, models=[FakeModel(MODEL, None)], style="livepeer-url") as o,
        running(discovery(o.url)) as found,
    ):
        await found.first_offer.wait()
        (offer,) = found.offers()
        found.note_success(offer, seconds=1.0, input_pixels=10, is_ours=True)
        (after,) = found.offers()

    assert (offer.price, offer.wei_per_pixel, offer.is_ours) == (None, 0, False)
    assert after.is_ours


async def test_a_dead_orchestrator_delays_nobody(tmp_path: Path) -> None:
    """One hangs, one refuses connections, one works: the first offer is there at once."""
    async with FakeOrchestrator(tmp_path / "a") as good, FakeOrchestrator(tmp_path / "b") as hanging:
        hanging.quoting = "hang"
        started_s = time.monotonic()
        async with running(discovery("https://127.0.0.1:1", hanging.url, good.url, timeout_s=3.0)) as found:
            await found.first_offer.wait()
            took_s = time.monotonic() - started_s
            await until(lambda: len(found.troubles()) == 2)
            assert not found.first_round.is_set() or hanging.url in found.troubles()

    assert took_s < 2.0
    assert [offer.orchestrator for offer in found.offers()] == [good.url]


async def test_an_orchestrator_comes_and_goes(tmp_path: Path) -> None:
    """Its offers leave when it does and come back with it; its models stay known."""
    async with FakeOrchestrator(tmp_path) as o, running(discovery(o.url)) as found:
        await found.first_offer.wait()
        await o.stop()
        await until(lambda: not found.offers())
        assert found.seen_models == {MODEL}
        assert found.offered_lately(MODEL, within_s=60.0)
        assert found.offered_lately(None, within_s=60.0)
        assert not found.offered_lately("x/y", within_s=60.0)
        assert o.url in found.troubles()
        await o.start()
        await until(found.offers)
        assert found.troubles() == {}


async def test_one_missed_answer_costs_nothing(tmp_path: Path) -> None:
    """Offers stay over a single silence."""
    async with FakeOrchestrator(tmp_path) as o, running(discovery(o.url, interval_s=5.0, timeout_s=0.3)) as found:
        await found.first_offer.wait()
        o.quoting = "hang"
        found.look_again()
        await until(lambda: o.questions == 3)
        await asyncio.sleep(0.4)
        assert len(found.offers()) == 1
        o.quoting = "ok"
        found.look_again()
        await until(lambda: o.questions > 4)
        assert len(found.offers()) == 1


async def test_a_model_that_is_taken_away(tmp_path: Path) -> None:
    """The offer goes with the next round."""
    async with FakeOrchestrator(tmp_path, models=[MODEL, "a/b"]) as o, running(discovery(o.url)) as found:
        await found.first_offer.wait()
        o.models = o.models[:1]
        await until(lambda: found.offered_models() == [MODEL])
        o.quoting = "empty"
        await until(lambda: not found.offers())

    assert found.troubles() == {o.url: "offers no upscale model"}


async def test_no_room_is_no_readiness(tmp_path: Path) -> None:
    """An orchestrator whose workers are all away is known, and makes nobody ready."""
    async with (
        FakeOrchestrator(tmp_path, models=[FakeModel(MODEL, capacity=0)]) as o,
        running(discovery(o.url)) as found,
    ):
        await until(found.offers)
        assert not found.first_offer.is_set()
        o.models = [FakeModel(MODEL, capacity=1)]
        await found.first_offer.wait()


async def test_one_orchestrator_under_two_names(tmp_path: Path) -> None:
    """It counts once, where it says it is."""
    async with FakeOrchestrator(tmp_path) as o:
        other_name = o.url.replace("127.0.0.1", "localhost")
        async with running(discovery(o.url, other_name)) as found:
            await found.first_round.wait()
            await until(lambda: not found.troubles())
            assert len(found.offers()) == 1


async def test_any_address_is_where_it_was_seen(tmp_path: Path) -> None:
    """Livepeer's examples say `-serviceAddr 0.0.0.0:port`."""
    async with FakeOrchestrator(tmp_path) as o:
        o.transcoder = o.url.replace("127.0.0.1", "0.0.0.0")
        quotes = await ask(parse_orchestrator_url(o.url), pins=Pins(timeout_s=1), timeout_s=1)

    assert str(quotes[MODEL].url) == o.url


@pytest.mark.parametrize("transcoder", ["", "http://plain:80", "https://u:p@host:1", "https://"])
async def test_nonsense_is_an_error_of_the_orchestrator(tmp_path: Path, transcoder: str) -> None:
    """An address that is none makes no offer."""
    async with FakeOrchestrator(tmp_path) as o:
        o.transcoder = transcoder
        with pytest.raises(WorkerFailedError):
            await ask(parse_orchestrator_url(o.url), pins=Pins(timeout_s=1), timeout_s=1)


async def test_a_refusal_is_told_with_its_reason(tmp_path: Path) -> None:
    """The status message of the call."""
    async with FakeOrchestrator(tmp_path) as o:
        o.quoting = "fail"
        with pytest.raises(WorkerFailedError, match="insufficient sender reserve"):
            await ask(parse_orchestrator_url(o.url), pins=Pins(timeout_s=1), timeout_s=1)


@pytest.mark.parametrize("name", ["orchestrator.example", "localhost", "10.9.8.7", "127.0.0.1"])
async def test_the_certificate_may_be_for_any_name(tmp_path: Path, name: str) -> None:
    """DNS names and addresses alike: the pin is what counts."""
    async with FakeOrchestrator(tmp_path, name=name) as o:
        quotes = await ask(parse_orchestrator_url(o.url), pins=Pins(timeout_s=1), timeout_s=1)

    assert list(quotes) == [MODEL]


async def test_a_new_certificate_is_fetched_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And the change is logged."""
    async with FakeOrchestrator(tmp_path) as o:
        url, pins = parse_orchestrator_url(o.url), Pins(timeout_s=1)
        await ask(url, pins=pins, timeout_s=1)
        await o.stop()
        await o.start()
        assert list(await ask(url, pins=pins, timeout_s=1)) == [MODEL]
        assert list(await ask(url, pins=pins, timeout_s=1)) == [MODEL]

    assert [r.getMessage() for r in caplog.records].count("certificate_changed") == 1


async def test_a_new_certificate_is_refused_where_pins_are_strict(tmp_path: Path) -> None:
    """As long as the process lives."""
    async with FakeOrchestrator(tmp_path) as o:
        url, pins = parse_orchestrator_url(o.url), Pins(timeout_s=1, mode="strict")
        await ask(url, pins=pins, timeout_s=1)
        await o.stop()
        await o.start()
        for _ in range(2):
            with pytest.raises(UnreachableError, match="pin is strict"):
                await ask(url, pins=pins, timeout_s=1)


async def test_something_that_is_no_orchestrator() -> None:
    """A port that says nothing, and one that says something else."""
    ended = asyncio.Queue[None]()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.put_nowait(None)

    async def say_hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        ended.put_nowait(None)

    for handler in (say_nothing, say_hello):
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            with pytest.raises(UnreachableError):
                await ask(parse_orchestrator_url(f"127.0.0.1:{port}"), pins=Pins(timeout_s=0.2), timeout_s=0.2)
            await ended.get()


async def test_callers_share_one_question(tmp_path: Path) -> None:
    """Ten jobs whose token was refused ask for a new one once."""
    async with FakeOrchestrator(tmp_path) as o, running(discovery(o.url, interval_s=3600.0)) as found:
        await found.first_offer.wait()
        (offer,) = found.offers()
        asked = o.questions
        tokens = await asyncio.gather(*(found.auth_token(offer, renew=True) for _ in range(10)))

    assert o.questions == asked + 2
    assert len({token.session_id for token in tokens}) == 1


async def test_a_token_in_its_last_tenth_is_replaced(tmp_path: Path) -> None:
    """Before it is used, by the clock of this machine."""
    clock = ManualClock(epoch_s=time.time())
    async with (
        FakeOrchestrator(tmp_path, token_life_s=1000.0) as o,
        running(discovery(o.url, interval_s=3600.0, clock=clock)) as found,
    ):
        await found.first_offer.wait()
        (offer,) = found.offers()
        first = await found.auth_token(offer)
        clock.advance(890)
        assert await found.auth_token(offer) == first
        clock.advance(20)
        assert await found.auth_token(offer) != first


async def test_a_token_of_a_model_that_left(tmp_path: Path) -> None:
    """There is none."""
    async with FakeOrchestrator(tmp_path) as o, running(discovery(o.url, interval_s=3600.0)) as found:
        await found.first_offer.wait()
        (offer,) = found.offers()
        o.quoting = "empty"
        with pytest.raises(NoOrchestratorError, match="no longer offers"):
            await found.auth_token(offer, renew=True)


async def test_a_penalty_ends(tmp_path: Path) -> None:
    """By itself, or with the first success; only a worker's fault begins one."""
    clock = ManualClock()
    async with FakeOrchestrator(tmp_path) as o, running(discovery(o.url, clock=clock)) as found:
        await found.first_offer.wait()
        (offer,) = found.offers()

        def is_penalised() -> bool:
            return found.offers()[0].is_penalised

        found.note_failure(offer, UnreachableError("x"))
        assert not is_penalised()
        found.note_failure(offer, WorkerFailedError("x"))
        assert is_penalised()
        clock.advance(30)
        assert not is_penalised()
        found.note_failure(offer, WorkerFailedError("x"))
        found.note_success(offer, seconds=2.0, input_pixels=1_000_000, is_ours=True)
        assert not is_penalised()
        assert found.offers()[0].s_per_megapixel == 2.0
        found.note_success(offer, seconds=12.0, input_pixels=1_000_000, is_ours=True)
        assert found.offers()[0].s_per_megapixel == 5.0


async def test_a_model_that_cannot_be_loaded_counts_for_itself_alone(tmp_path: Path) -> None:
    """Jobs for the orchestrator's other models lose nothing; it is asked at once what it still offers."""
    async with (
        FakeOrchestrator(tmp_path, models=["a", "b"]) as o,
        running(discovery(o.url, interval_s=3600.0)) as found,
    ):
        await found.first_offer.wait()
        offers = {offer.model_id: offer for offer in found.offers()}
        (peer,) = found._peers.values()
        rounds = peer.rounds
        found.note_failure(offers["a"], ModelUnavailableError("x"))
        assert {offer.model_id: offer.is_penalised for offer in found.offers()} == {"a": True, "b": False}

        async with asyncio.timeout(10):
            while peer.rounds == rounds:
                await asyncio.sleep(0.01)
        found.note_success(offers["b"], seconds=1.0, input_pixels=1, is_ours=True)
        assert [offer.is_penalised for offer in found.offers("a")] == [True]
        found.note_success(offers["a"], seconds=1.0, input_pixels=1, is_ours=True)
        assert [offer.is_penalised for offer in found.offers("a")] == [False]


async def test_open_jobs_are_counted(tmp_path: Path) -> None:
    """As long as they are open."""
    async with FakeOrchestrator(tmp_path) as o, running(discovery(o.url)) as found:
        await found.first_offer.wait()
        (offer,) = found.offers()
        with found.occupying(offer), found.occupying(offer):
            assert found.offers()[0].open_jobs == 2
        assert found.offers()[0].open_jobs == 0


def test_an_address_that_is_none_is_refused_at_the_start() -> None:
    """Not at the first request."""
    with pytest.raises(ConfigError):
        discovery("http://plain:80")


async def test_nothing_configured_is_a_finished_round() -> None:
    """Nobody waits for an answer that cannot come."""
    assert discovery().first_round.is_set()
