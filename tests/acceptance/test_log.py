"""What a whole network writes to its log at the most talkative level: one request id, and nothing private."""

import base64
import json
import re
from pathlib import Path

import httpx2
import pytest

from fourfold.testing.pictures import png
from fourfold.testing.running_network import FAST_MODEL, running_network, wait_until

pytestmark = pytest.mark.slow

PROMPT = "a-prompt-that-nobody-else-writes"
REQUEST_ID = "request-of-the-log-test"
LOG = '[log]\nlevel = "debug"\nformat = "json"\n'


def test_the_log_of_a_job_and_of_its_failure(tmp_path: Path) -> None:
    """The id is told by gateway, orchestrator and worker; prompt, picture, token, key and result URL by nobody."""
    picture = png(40, 30, shade=77)
    headers = {"X-Request-ID": REQUEST_ID, "Authorization": "Bearer a-clients-own-secret"}
    data = {"prompt": PROMPT, "model_id": FAST_MODEL, "safety_check": "false"}
    with running_network(tmp_path, LOG, models=(FAST_MODEL,)) as network:
        url = f"{network.ready['gateway']}/upscale"
        done = httpx2.post(url, data=data, files={"image": (f"{PROMPT}.png", picture)}, headers=headers, timeout=60)
        bad = httpx2.post(url, data=data, files={"image": (PROMPT, picture[:60])}, headers=headers, timeout=60)
        odd = httpx2.post(url, data={**data, "seed": PROMPT}, files={"image": (PROMPT, picture)}, headers=headers)
        wait_until(lambda: sum(REQUEST_ID in line for line in network.log) >= 3, 10)
        key_file = (tmp_path / "data" / "orchestrator" / "tls" / "key.pem").read_text()
    result = done.json()["images"][0]["url"]
    lines = network.log

    assert (done.status_code, bad.status_code, odd.status_code) == (200, 400, 422)
    told = {json.loads(line)["role"] for line in lines if REQUEST_ID in line and line.startswith("{")}
    assert told >= {"gateway", "orchestrator", "worker"}
    private = {
        "the prompt": PROMPT,
        "the picture": base64.b64encode(picture)[40:80].decode(),
        "the picture's bytes": repr(picture[40:60])[2:-1],
        "a client's token": "a-clients-own-secret",
        "the private key": key_file.splitlines()[1][:40],
        "the result's name": result.rpartition("/")[2],
    }
    assert {name: line for name, text in private.items() for line in lines if text in line} == {}
    assert not any(re.search(r"(?i)bearer\s+\S", line) for line in lines)
    tokens = re.compile(r"[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])")  # as `secrets.token_urlsafe(32)` makes them
    assert [line for line in lines if tokens.search(line)] == []
