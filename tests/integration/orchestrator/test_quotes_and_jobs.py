"""The path through the orchestrator: ask for a quote, post a job, get a picture, in both dialects."""

import base64
from dataclasses import dataclass
from decimal import Decimal

from fourfold.orchestrator.models import ModelConfig
from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol import wire
from fourfold.protocol.capabilities import demand, incompatibility, offered_models

MODEL = "stabilityai/stable-diffusion-x4-upscaler"
SENDER = bytes(range(20))


async def test_get_orchestrator_without_capabilities_lists_prices_and_hardware(start, livepeer_runner):
    """The first form of the call names every model, its price and what it runs on."""
    async with start(livepeer_runner.url) as running:
        info = await running.ask()

        assert info.transcoder == running.url
        assert list(info.capabilities.bitstring) == [0x44005FFF]
        assert list(info.capabilities.mandatories) == [4096]
        (price,) = info.capabilities_prices
        assert (price.pricePerUnit, price.pixelsPerUnit, price.capability, price.constraint) == (6357828, 1, 30, MODEL)
        (hardware,) = info.hardware
        assert (hardware.pipeline, hardware.model_id) == ("upscale", MODEL)
        gpu = hardware.gpu_info["0"]
        assert (gpu.id, gpu.name, gpu.major, gpu.memory_total, gpu.memory_free) == ("GPU-1", "H200", 9, 10, 7)
        assert info.auth_token.token
        assert not info.HasField("price_info")


async def test_get_orchestrator_for_a_model_gives_its_price_and_a_token(start, livepeer_runner):
    """The second form of the call gives what a job needs, and nothing is signed off-chain."""
    async with start(livepeer_runner.url) as running:
        info = await running.ask(pb.OrchestratorRequest(capabilities=demand(MODEL)))

        assert (info.price_info.pricePerUnit, info.price_info.pixelsPerUnit) == (6357828, 1)
        assert info.auth_token.session_id
        assert (len(info.capabilities_prices), len(info.hardware)) == (0, 0)
        assert incompatibility(demand(MODEL, min_version="0.9.1"), info.capabilities) is None
        offer = offered_models(info.capabilities)[MODEL]
        assert (offer.warm, offer.capacity, offer.capacity_in_use, offer.runner_version) == (True, 1, 0, "0.0.0")


async def test_a_model_that_is_not_sold_has_no_price(start, livepeer_runner):
    """The answer still says what is."""
    async with start(livepeer_runner.url) as running:
        info = await running.ask(pb.OrchestratorRequest(capabilities=demand("another/model")))

        assert not info.HasField("price_info")
        assert list(offered_models(info.capabilities)) == [MODEL]


async def test_several_models_cost_their_sum_and_a_gateway_its_own_price(start, livepeer_runner):
    """As go-livepeer sums; an address in the request picks the price made for it."""
    models = [
        ModelConfig("a", url=livepeer_runner.url, price_per_unit=Decimal(10)),
        ModelConfig("b", url=livepeer_runner.url, price_per_unit=Decimal(5)),
        ModelConfig("b", price_per_unit=Decimal(1), gateway="0x" + SENDER.hex()),
    ]
    async with start(models=models) as running:
        both = demand("a")
        both.constraints.PerCapability[30].models["b"].SetInParent()
        info = await running.ask(pb.OrchestratorRequest(capabilities=both))
        own = await running.ask(pb.OrchestratorRequest(capabilities=both, address=SENDER, sig=b"s" * 65))
        listed = await running.ask(pb.OrchestratorRequest(address=SENDER))

        assert (info.price_info.pricePerUnit, info.price_info.pixelsPerUnit) == (15, 1)
        assert own.price_info.pricePerUnit == 11
        assert [(p.constraint, p.pricePerUnit) for p in listed.capabilities_prices] == [("a", 10), ("b", 1)]
        assert info.capabilities.capacities[30] == 1  # one worker, whatever the number of its models


async def test_a_job_of_ours_gives_the_picture_itself(start, our_worker, make_png):
    """With Fourfold-Protocol the answer is the worker's PNG, untouched, with the facts in headers."""
    async with start(our_worker.url) as running:
        reply = await running.upscale(seed="0", headers={wire.REQUEST_ID_HEADER: "request-1"})

        assert (reply.status_code, reply.content) == (200, make_png(32, 24))
        facts = {
            "Content-Type": "image/png",
            wire.SEED_HEADER: "0",
            wire.NSFW_HEADER: "true",
            wire.SAFETY_HEADER: "flagged",
            wire.MODEL_HEADER: MODEL,
            wire.INPUT_PIXELS_HEADER: "48",
            wire.FEE_HEADER: str(48 * 6357828),
            wire.REQUEST_ID_HEADER: "request-1",
        }
        assert {name: reply.headers[name] for name in facts} == facts
        assert int(reply.headers[wire.DURATION_HEADER]) >= 0
        await running.until_nothing_held()


async def test_our_worker_is_told_everything(start, our_worker, make_png):
    """The image's bytes untouched, the fields as they came, our headers, its token."""
    async with start(our_worker.url) as running:
        image = make_png(9, 7)
        await running.upscale(
            image,
            prompt="",
            seed="7",
            safety_check="false",
            num_inference_steps="3",
            headers={wire.REQUEST_ID_HEADER: "request-1", wire.JOB_HEADER: "job-1"},
        )
        (job,) = our_worker.jobs

        assert job.image == image
        assert job.fields == {
            "prompt": "",
            "model_id": MODEL,
            "safety_check": "false",
            "seed": "7",
            "num_inference_steps": "3",
        }
        assert job.headers["authorization"] == "Bearer secret"
        assert (job.headers["fourfold-protocol"], job.headers["x-request-id"]) == ("1", "request-1")
        # An attempt's id is new and nobody else's: the gateway's would still be open at the worker after a lost
        # connection, and whoever knows an id may cancel it.
        assert job.headers["fourfold-job"] not in ("", "job-1")


async def test_a_livepeer_runner_gets_what_it_understands(start, livepeer_runner, make_png):
    """An empty prompt is one space; absent fields stay absent; its data URL becomes raw bytes for a gateway of ours."""
    async with start(livepeer_runner.url) as running:
        reply = await running.upscale()
        (job,) = livepeer_runner.jobs

        assert (reply.status_code, reply.content) == (200, make_png(32, 24))
        assert job.fields == {"prompt": " ", "model_id": MODEL, "safety_check": "true"}
        assert (reply.headers[wire.SEED_HEADER], reply.headers[wire.SAFETY_HEADER]) == ("4242", "clean")


async def test_a_livepeer_gateway_gets_a_url_that_serves_the_picture(start, our_worker, make_png):
    """With Livepeer's protocol version the result is fetched from the orchestrator, as often as wanted."""
    async with start(our_worker.url) as running:
        reply = await running.upscale(ours=False)
        image = reply.json()["images"][0]
        picture = await running.client.get(image["url"])
        head = await running.client.head(image["url"])

        assert reply.headers["Content-Type"] == "application/json"
        assert reply.text.endswith("]}\n")
        assert image == {"nsfw": True, "seed": 77, "url": image["url"]}
        assert image["url"].startswith(running.url + "/stream/")
        assert (picture.status_code, picture.content) == (200, make_png(32, 24))
        assert (picture.headers["Content-Type"], picture.headers["Access-Control-Allow-Origin"]) == ("image/png", "*")
        assert (head.status_code, head.content, head.headers["Content-Length"]) == (
            200,
            b"",
            str(len(make_png(32, 24))),
        )
        await running.until_nothing_held()


async def test_an_old_gateway_gets_the_picture_inside_the_answer(start, our_worker, make_png):
    """Without Livepeer's protocol version, as up to v0.7.9-ai.3."""
    async with start(our_worker.url) as running:
        reply = await running.upscale(ours=False, headers={"Authorization": ""})
        image = reply.json()["images"][0]
        head, _, data = image["url"].partition(",")

        assert head == "data:image/png;base64"
        assert base64.b64decode(data) == make_png(32, 24)
        await running.until_nothing_held()


async def test_the_configured_address_stands_in_every_url(start, our_worker):
    """For an orchestrator behind another name than callers see."""
    async with start(our_worker.url, service_url="https://orch.example.org:8935/") as running:
        info = await running.ask()
        reply = await running.upscale(ours=False)

        assert info.transcoder == "https://orch.example.org:8935"
        assert reply.json()["images"][0]["url"].startswith("https://orch.example.org:8935/stream/")


async def test_what_is_not_there_is_not_found(start, our_worker):
    """Results that nobody stored, paths that nobody serves, methods that nobody answers: JSON each time."""
    async with start(our_worker.url) as running:
        result = await running.client.get(f"{running.url}/stream/{'0' * 32}/{'0' * 32}.png")
        path = await running.client.post(running.url + "/upscale/")  # nor does Livepeer's; not a redirect
        method = await running.client.get(running.url + "/upscale")

        assert (result.status_code, path.status_code, method.status_code) == (404, 404, 405)
        assert result.headers["Fourfold-Error"] == "not_found"
        assert all(reply.json()["detail"]["msg"] for reply in (result, path, method))


async def test_health_and_metrics(start, our_worker):
    """For those who watch."""
    async with start(our_worker.url) as running:
        await running.upscale()
        await running.upscale(segment="*")
        health = await running.client.get(running.url + "/healthz")
        metrics = (await running.client.get(running.url + "/metrics")).text

        assert (health.status_code, health.json()) == (200, {"status": "OK", "accepting": True, "withdrawn": []})
        assert f'fourfold_jobs_total{{model_id="{MODEL}",outcome="succeeded",role="orchestrator"}} 1.0' in metrics
        assert f'fourfold_jobs_total{{model_id="{MODEL}",outcome="refused",role="orchestrator"}} 1.0' in metrics
        assert 'fourfold_errors_total{blame="gateway",code="invalid_credentials",role="orchestrator"} 1.0' in metrics
        assert f'fourfold_input_pixels_total{{model_id="{MODEL}",role="orchestrator"}} 48.0' in metrics
        assert 'fourfold_jobs_in_flight{role="orchestrator"} 0.0' in metrics
        assert 'fourfold_jobs_queued{role="orchestrator"} 0.0' in metrics
        assert f'fourfold_job_seconds_count{{model_id="{MODEL}",role="orchestrator"}} 1.0' in metrics
        assert 'fourfold_peers{role="orchestrator",state="up"} 1.0' in metrics


async def test_a_model_that_a_client_made_up_is_no_label(start, our_worker):
    """Anybody can send a name; Prometheus keeps each one that it is told for ever."""
    async with start(our_worker.url) as running:
        for number in range(3):
            reply = await running.upscale(model_id=f"made-up/{number}")
            assert reply.status_code != 200
        metrics = (await running.client.get(running.url + "/metrics")).text

        assert "made-up" not in metrics
        assert 'fourfold_jobs_total{model_id="",outcome="refused",role="orchestrator"} 3.0' in metrics


async def test_the_counters_of_a_worker_come_through_its_own_orchestrator_alone(start, our_worker):
    """Somebody else's worker is asked where it is; an own one that is down is told from one without counters."""

    @dataclass
    class Own:
        url: str | None
        token: str | None = "secret"
        models: tuple[str, ...] = (MODEL,)
        capacity: int = 1

    async with start(our_worker.url) as running:
        foreign = await running.client.get(running.url + "/metrics/worker")
    own = Own(our_worker.url)
    async with start(endpoints=[own], models=[ModelConfig(MODEL)]) as running:
        told = await running.client.get(running.url + "/metrics/worker")
        own.url = None
        down = await running.client.get(running.url + "/metrics/worker")
        metrics = (await running.client.get(running.url + "/metrics")).text

    assert (foreign.status_code, foreign.headers["Fourfold-Error"]) == (404, "not_found")
    assert (told.status_code, told.headers["Fourfold-Error"]) == (502, "worker_failed")  # the stand-in has none
    assert (down.status_code, down.headers["Fourfold-Error"]) == (502, "unreachable")
    assert 'fourfold_errors_total{blame="network",code="unreachable",role="orchestrator"} 1.0' in metrics


async def test_a_request_id_is_made_where_none_or_a_wrong_one_came(start, our_worker):
    """What goes into our log is bounded and printable."""
    async with start(our_worker.url) as running:
        made = [
            (await running.client.get(running.url + "/healthz", headers=headers)).headers[wire.REQUEST_ID_HEADER]
            for headers in ({}, {wire.REQUEST_ID_HEADER: "x" * 129}, {wire.REQUEST_ID_HEADER: "a b"})
        ]

        assert all(len(one) == 32 for one in made)
        assert len(set(made)) == 3


async def test_every_request_id_that_a_gateway_takes_over_is_kept(start, our_worker):
    """Else one job would have two names, in two logs."""
    theirs = {wire.REQUEST_ID_HEADER: "Root=1-5759e988:" + "a/b+c=@~._" * 11}
    async with start(our_worker.url) as running:
        reply = await running.client.get(running.url + "/healthz", headers=theirs)

        assert reply.headers[wire.REQUEST_ID_HEADER] == theirs[wire.REQUEST_ID_HEADER]
