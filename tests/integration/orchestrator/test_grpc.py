"""gRPC on the shared port: real grpcio clients against Hypercorn with TLS."""

import asyncio
import base64
import ssl

import grpc
import grpc.aio
import httpx2
import pytest

from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol import routes

MODEL = "stabilityai/stable-diffusion-x4-upscaler"


async def call(running, *requests, path=routes.GRPC_PING, raw=False, compression=None):
    """Send *requests* one after another on one connection; return value or (status, details) of each.

    Nothing of grpcio leaves this function: a call or an error that is still referred to keeps its connection open,
    and an open connection keeps the server's shutdown waiting.
    """
    credentials = grpc.ssl_channel_credentials(running.certificate.read_bytes())
    outcomes = []
    async with grpc.aio.secure_channel(running.authority, credentials, compression=compression) as channel:
        for request in requests:
            to, message = request if isinstance(request, tuple) else (path, request)
            method = channel.unary_unary(to)
            data = message if raw else pb.PingPong(value=message).SerializeToString()
            try:
                outcomes.append(pb.PingPong.FromString(await method(data, timeout=5)).value)
            except grpc.aio.AioRpcError as error:
                outcomes.append((error.code(), error.details()))
    return outcomes


async def test_ping_gives_the_value_back(start, our_worker):
    """go-livepeer's start-up check of its own port."""
    async with start(our_worker.url) as running:
        assert await call(running, b"\0\x01ping", b"") == [b"\0\x01ping", b""]


async def test_calls_and_pictures_share_the_port(start, our_worker):
    """At the same time."""
    async with start(our_worker.url) as running:
        values = [bytes([n]) for n in range(50)]
        outcomes, picture = await asyncio.gather(call(running, *values), running.upscale())

        assert outcomes == values
        assert picture.status_code == 200


async def test_an_unknown_method_is_unimplemented_and_the_connection_lives_on(start, our_worker):
    """EndTranscodingSession is one that a gateway may call."""
    async with start(our_worker.url) as running:
        unknown = "/net.Orchestrator/EndTranscodingSession"
        (code, details), value = await call(running, (unknown, b"x"), b"still here")

        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert unknown in details
        assert value == b"still here"


async def test_a_request_that_is_no_protobuf_is_invalid(start, our_worker):
    """With what was expected."""
    async with start(our_worker.url) as running:
        ((code, details),) = await call(running, b"\xff\xff\xff", raw=True)

        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "net.PingPong" in details


async def test_a_compressed_request_is_refused(start, our_worker):
    """It says how to send it instead."""
    async with start(our_worker.url) as running:
        ((code, details),) = await call(running, b"x" * 1000, compression=grpc.Compression.Gzip)

        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "identity" in details


async def test_a_request_of_any_size_is_answered(start, our_worker):
    """Too large is a status, not a broken connection."""
    async with start(our_worker.url) as running:
        fits, (code, _), again = await call(running, b"x" * 200_000, b"x" * 3_000_000, b"y")

        assert (len(fits), again) == (200_000, b"y")
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_client_that_pins_by_name_learns_the_address_it_used(start, our_worker):
    """It takes the first DNS name of the certificate as its authority; our URL must not be made of that."""
    async with start(our_worker.url) as running:
        info = await running.ask(name="localhost")

        assert info.transcoder == running.url


async def test_a_draining_orchestrator_is_unavailable(start, our_worker):
    """Gateways look elsewhere; Livepeer's ones take a full one's text as no reason to suspend it."""
    async with start(our_worker.url) as running:
        segment = await running.segment()
        running.app.drain()
        ((code, _),) = await call(running, b"", path=routes.GRPC_GET_ORCHESTRATOR, raw=True)
        ours = await running.upscale(segment=segment)
        livepeers = await running.upscale(segment=segment, ours=False)

        assert code is grpc.StatusCode.UNAVAILABLE
        assert (ours.status_code, ours.headers["Fourfold-Error"]) == (503, "shutting_down")
        assert (livepeers.status_code, livepeers.text) == (503, "insufficient capacity\n")
        health = (await running.client.get(running.url + "/healthz")).json()
        assert health == {"status": "OK", "accepting": False, "withdrawn": []}


@pytest.mark.parametrize(("http2", "signature_bytes"), [(False, 65), (False, 100), (True, 65)])
async def test_the_largest_payment_passes(start, our_worker, http2, signature_bytes, make_png):
    """600 tickets are the most that a recipient takes, 58 KiB; over HTTP/1.1 there is room for more."""
    payment = pb.Payment(sender=b"s" * 20)
    for nonce in range(600):
        payment.ticket_sender_params.add(sender_nonce=nonce + 1, sig=b"s" * signature_bytes)
    header = base64.b64encode(payment.SerializeToString()).decode()
    assert len(header) > (64 if signature_bytes > 65 else 55) * 1024
    async with start(our_worker.url) as running:
        context = ssl.create_default_context(cafile=str(running.certificate))
        async with httpx2.AsyncClient(verify=context, http2=http2, trust_env=False, timeout=20) as client:
            reply = await client.post(
                running.url + "/upscale",
                headers={
                    "Livepeer-Segment": await running.segment(),
                    "Livepeer-Payment": header,
                    "Fourfold-Protocol": "1",
                },
                data={"prompt": "x", "model_id": MODEL},
                files={"image": ("x.png", make_png(), "image/png")},
            )

        assert (reply.status_code, reply.http_version) == (200, "HTTP/2" if http2 else "HTTP/1.1")
