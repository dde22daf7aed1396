"""The thinnest path through the orchestrator: ask, post, get a picture."""

from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol import wire
from fourfold.protocol.capabilities import demand

MODEL = "stabilityai/stable-diffusion-x4-upscaler"


async def test_get_orchestrator_without_capabilities_lists_prices_and_hardware(start, livepeer_runner):
    """The first form of the call names every model, its price and what it runs on."""
    async with start(livepeer_runner.url) as running:
        info = await running.ask()

        assert running.url == info.transcoder
        assert list(info.capabilities.bitstring) == [0x44005FFF]
        assert list(info.capabilities.mandatories) == [4096]
        assert [(p.pricePerUnit, p.pixelsPerUnit, p.capability, p.constraint) for p in info.capabilities_prices] == [
            (6357828, 1, 30, MODEL)
        ]
        assert info.hardware[0].gpu_info["0"].name == "H200"
        assert not info.HasField("price_info")


async def test_get_orchestrator_for_a_model_gives_its_price_and_a_token(start, livepeer_runner):
    """The second form of the call gives what a job needs."""
    async with start(livepeer_runner.url) as running:
        info = await running.ask(pb.OrchestratorRequest(capabilities=demand(MODEL)))

        assert (info.price_info.pricePerUnit, info.price_info.pixelsPerUnit) == (6357828, 1)
        assert info.auth_token.token and info.auth_token.session_id
        assert list(info.capabilities_prices) == []
        assert info.capabilities.constraints.PerCapability[30].models[MODEL].warm


async def test_a_job_of_ours_gives_the_picture_itself(start, livepeer_runner, make_png):
    """With Fourfold-Protocol the answer is the worker's PNG, untouched, with the facts in headers."""
    async with start(livepeer_runner.url) as running:
        reply = await running.upscale(seed="0")

        assert reply.status_code == 200, reply.text
        assert make_png(32, 24) == reply.content
        assert tuple(
            reply.headers[name] for name in ("Content-Type", wire.SEED_HEADER, wire.NSFW_HEADER, wire.SAFETY_HEADER)
        ) == ("image/png", "0", "false", "clean")
        assert (MODEL, "48", str(48 * 6357828)) == tuple(
            reply.headers[name] for name in (wire.MODEL_HEADER, wire.INPUT_PIXELS_HEADER, wire.FEE_HEADER)
        )
        running.assert_nothing_held()


async def test_a_livepeer_gateway_gets_a_url_that_serves_the_picture(start, livepeer_runner, make_png):
    """With Livepeer's protocol version the result is fetched from the orchestrator."""
    async with start(livepeer_runner.url) as running:
        reply = await running.upscale(ours=False)
        image = reply.json()["images"][0]
        picture = await running.client.get(image["url"])

        assert image["url"].startswith(running.url + "/stream/")
        assert {"nsfw": False, "seed": 4242, "url": image["url"]} == image
        assert (200, "image/png", make_png(32, 24)) == (
            picture.status_code,
            picture.headers["Content-Type"],
            picture.content,
        )
        running.assert_nothing_held()
