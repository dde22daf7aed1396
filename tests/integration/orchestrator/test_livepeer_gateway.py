"""PyPI livepeer-gateway 1.0.0, the one packaged peer of the orchestrator protocol, reads our orchestrator."""

import asyncio
import json
import subprocess
import time
from pathlib import Path

import pytest

from fourfold.protocol import livepeer_pb2 as pb

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venvs" / "livepeer-gateway" / "bin" / "python"
MODEL = "stabilityai/stable-diffusion-x4-upscaler"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def _installed():
    """Skip where the package is not installed."""
    if not PYTHON.exists():
        pytest.skip("livepeer-gateway is not installed: scripts/sdk_livepeer_gateway.sh, which `make test` runs")


@pytest.fixture
def ask(_installed):
    """Run the package in its own process and environment; return what it read."""

    async def run(url):
        client = Path(__file__).with_name("livepeer_gateway_client.py")
        process = await asyncio.create_subprocess_exec(
            str(PYTHON), str(client), url, MODEL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), 60)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, err.decode()
        return json.loads(out)

    return run


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_it_reads_price_token_capabilities_and_hardware(start, our_worker, ask, host):
    """By address and by name: it pins our certificate and takes the certificate's first name as authority."""
    async with start(our_worker.url) as running:
        read = await ask(running.url.replace("127.0.0.1", host))
        for_model, listed = read["for_model"], read["listed"]

        assert for_model["price"] == [6357828, 1]
        assert for_model["models"] == {MODEL: [True, 1, 0, "1.2.3"]}
        assert (for_model["bitstring"], for_model["mandatories"]) == ([0x44005FFF], [4096])
        assert for_model["version"].startswith("0.9.1-fourfold.")
        assert (for_model["token_bytes"], len(for_model["session_id"])) == (32, 32)
        assert 1700 < for_model["expiration"] - time.time() <= 1800
        assert for_model["session_id"] != listed["session_id"]
        assert listed["prices"] == [[6357828, 1, 30, MODEL]]
        assert listed["hardware"] == [["upscale", MODEL, {"0": "H200"}]]
        assert read["chosen"][1] == for_model["transcoder"] == running.url


async def test_it_understands_why_it_is_turned_away(start, our_worker, ask):
    """The status and the text of a draining orchestrator reach its caller."""
    async with start(our_worker.url) as running:
        running.app.drain()
        read = await ask(running.url)

        assert "UNAVAILABLE: shutting down; ask another orchestrator" in read["error"]


def _described(message):
    """Return of each field, by name, its number, its type and whether it repeats; also of the messages inside."""
    fields = {field.name: [field.number, field.type, field.is_repeated] for field in message.fields}
    found = {message.full_name: fields}
    for nested in message.nested_types:
        found |= _described(nested)
    return found


def test_our_messages_are_its_messages(_installed):
    """Each field of ours has the number and the type that it has there; a wrong number is read as another field."""
    script = Path(__file__).with_name("livepeer_gateway_fields.py")
    said = subprocess.run([PYTHON, script], capture_output=True, text=True, check=True, timeout=60).stdout
    theirs = json.loads(said)
    ours = {}
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        ours |= _described(message)
    [service] = pb.DESCRIPTOR.services_by_name.values()

    their_part = {
        name: {field: theirs["messages"][name].get(field) for field in fields} for name, fields in ours.items()
    }
    assert their_part == ours
    for method in service.methods:
        expected = theirs["services"][service.full_name][method.name]
        assert expected == [method.input_type.full_name, method.output_type.full_name]
