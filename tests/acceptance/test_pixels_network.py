"""Pixels through the whole network: gateway, orchestrator and worker as real processes, with the Lanczos engine."""

import io
import json
from collections.abc import Iterator

import httpx2
import numpy as np
import pytest
import pyvips
from PIL import Image

from fourfold.testing.processes import Running, running

pytestmark = pytest.mark.slow

FAST = "fourfold/lanczos"
WEI_PER_PIXEL = 7


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One network."""
    folder = tmp_path_factory.mktemp("pixels")
    entry = {"pipeline": "upscale", "model_id": FAST, "warm": True, "price_per_unit": WEI_PER_PIXEL}
    (folder / "aiModels.json").write_text(json.dumps([entry]))
    config = folder / "fourfold.toml"
    config.write_text(f"[worker]\nthreads = 1\n[orchestrator]\nmodels = '{folder / 'aiModels.json'}'\n")
    arguments = ("--config", str(config), "--data-dir", str(folder / "data"), "--port", "0", "--orchestrator-port", "0")
    with running("up", *arguments) as command:
        yield command


@pytest.fixture
def client(network: Running) -> Iterator[httpx2.Client]:
    """An HTTP client of the gateway."""
    with httpx2.Client(base_url=network.ready["gateway"], timeout=60) as client:
        yield client


def post(client: httpx2.Client, data: bytes, accept: str = "image/png", **form: str) -> httpx2.Response:
    answer = client.post("/upscale", files={"image": ("a", data)}, data=form, headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    return answer


def sixteen(bands: int) -> bytes:
    ramp = np.linspace(20_000, 24_000, 32 * 24).astype(np.uint16).reshape(24, 32, 1).repeat(bands, -1)
    image = pyvips.Image.new_from_array(ramp).copy(interpretation="grey16" if bands == 1 else "rgb16")
    return bytes(image.pngsave_buffer())


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_sixteen_bits_go_all_the_way_and_back(client: httpx2.Client, bands: int) -> None:
    """Real ones: thousands of levels between two that 8 bits would have."""
    answer = post(client, sixteen(bands))

    image = pyvips.Image.new_from_buffer(answer.content, "")
    assert (image.format, image.bands, image.width, image.height) == ("ushort", bands, 128, 96)
    assert len(np.unique(image.numpy().reshape(96, 128, -1)[..., 0])) > 3000
    said = json.loads(answer.headers["Fourfold-Fidelity"])
    assert (said["input"]["bits"], said["output"]["bits"], said["tiles"]) == (16, 16, 1)


@pytest.mark.parametrize("bands", [3, 4])
def test_a_texture_stays_seamless_through_the_network(client: httpx2.Client, bands: int) -> None:
    """Its result laid side by side has no seam, nor has its alpha; it is what the middle of nine of them would be."""
    y, x = np.mgrid[:32, :32] * (2 * np.pi / 32)
    planes = [127 + 100 * np.sin(3 * x + k) * np.cos(2 * y - k) for k in range(bands)]
    pixels = np.rint(np.stack(planes, -1)).astype(np.uint8)

    def png(samples: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(samples).save(stream, "png")
        return stream.getvalue()

    result = np.asarray(Image.open(io.BytesIO(post(client, png(pixels), tileable="true").content)))
    nine = np.asarray(Image.open(io.BytesIO(post(client, png(np.tile(pixels, (3, 3, 1)))).content)))

    assert np.array_equal(result, nine[128:256, 128:256])


def test_a_texture_costs_what_any_picture_costs(client: httpx2.Client) -> None:
    """Width x height x price, though the worker looks at more than that."""
    stream = io.BytesIO()
    Image.new("RGB", (120, 90), (20, 90, 200)).save(stream, "png")

    answer = post(client, stream.getvalue(), tileable="true")

    fee = (answer.headers["Fourfold-Input-Pixels"], answer.headers["Fourfold-Fee-Wei"])
    assert fee == (str(120 * 90), str(120 * 90 * WEI_PER_PIXEL))
    assert json.loads(answer.headers["Fourfold-Fidelity"])["padded_px"] > 0


def test_a_camera_picture_becomes_a_small_jpeg(client: httpx2.Client) -> None:
    """Turned upright, twice as large, the place taken out."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    exif.get_ifd(0x8825)[1] = "N"
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (20, 90, 200)).save(stream, "jpeg", exif=exif, quality=95)

    answer = post(client, stream.getvalue(), "image/jpeg", scale="2", quality="80")

    with Image.open(io.BytesIO(answer.content)) as result:
        assert (result.format, result.size) == ("JPEG", (60, 80))
        tags = result.getexif()
        assert (tags[0x010F], tags[0x0112]) == ("Maker", 1) and not tags.get_ifd(0x8825)
