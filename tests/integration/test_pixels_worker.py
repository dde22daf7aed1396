"""The worker's depth: sixteen bits for who can take them, eight for Livepeer's peers."""

import base64
import io
from collections.abc import Iterator

import httpx2
import numpy as np
import pytest
import pyvips

from fourfold.testing.processes import running

FAST = "fourfold/lanczos"
OURS = {"Fourfold-Protocol": "1"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """An HTTP client of a worker with one fast model."""
    folder = tmp_path_factory.mktemp("worker")
    config = folder / "fourfold.toml"
    config.write_text(f"[worker]\nthreads = 1\nmodels = ['{FAST}']\n[worker.limits]\ninput_pixels = 800\n")
    arguments = ("--config", str(config), "--data-dir", str(folder / "data"), "--port", "0")
    with running("worker", *arguments) as command, httpx2.Client(base_url=command.ready["url"], timeout=60) as client:
        yield client


def post(client: httpx2.Client, headers: dict[str, str]) -> httpx2.Response:
    ramp = np.linspace(20_000, 24_000, 32 * 24).astype(np.uint16).reshape(24, 32, 1).repeat(3, -1)
    data = bytes(pyvips.Image.new_from_array(ramp).copy(interpretation="rgb16").pngsave_buffer())
    stream = io.BytesIO(data)
    form = {"prompt": "a ramp", "safety_check": "false"}
    return client.post("/upscale", data=form, files={"image": ("a.png", stream)}, headers=headers)


@pytest.mark.parametrize(
    ("headers", "depth"), [(OURS, "ushort"), (OURS | {"Fourfold-Bits": "8"}, "uchar"), ({}, "uchar")]
)
def test_depth_is_what_the_caller_can_take(client: httpx2.Client, headers: dict[str, str], depth: str) -> None:
    """Ours; ours on behalf of a Livepeer gateway; a Livepeer orchestrator."""
    reply = post(client, headers)

    data = reply.content
    if not headers:
        url = reply.json()["images"][0]["url"]
        data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    image = pyvips.Image.new_from_buffer(data, "")
    assert (reply.status_code, image.format, image.width) == (200, depth, 128)
    assert headers == {} or reply.headers["Fourfold-Tiles"] == "1"


@pytest.mark.parametrize(("side", "status"), [(20, 200), (28, 413)])
def test_a_tileable_picture_is_extended_here(client: httpx2.Client, side: int, status: int) -> None:
    """By what the model sees, and said so; what is too large with that around it is refused as any other that is."""
    data = bytes(pyvips.Image.black(side, side, bands=3).copy(interpretation="srgb").pngsave_buffer())
    form = {"prompt": "", "safety_check": "false", "tileable": "true"}

    reply = client.post("/upscale", data=form, files={"image": ("a.png", io.BytesIO(data))}, headers=OURS)

    assert reply.status_code == status, reply.text
    if status == 200:
        assert reply.headers["Fourfold-Padded"] == "3"
        assert pyvips.Image.new_from_buffer(reply.content, "").width == 4 * side
    else:
        assert reply.headers["Fourfold-Error"] == "image_too_large" and "tileable" in reply.text
