"""Applications written with Livepeer's four SDKs work unchanged against ``fourfold up``, in success and in failure.

PyPI ``livepeer-ai`` 0.10.0 and ``livepeer`` 0.3.0, npm ``@livepeer/ai`` 0.6.2 and ``livepeer`` 3.5.0. What an SDK makes
of an answer stands in its code: a 400 and a 422 have a type of their own, everything else is ``SDKError``; a body of
another shape would end in an error of the SDK's own parser instead.
"""

import io
import json
import re
import socket
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

Application = Any  # conftest.Application; a conftest cannot be imported from

ROOT = Path(__file__).resolve().parents[3]
X4PLUS = "fourfold/realesrgan-x4plus"
COMPACT = "fourfold/realesr-animevideov3"
LANCZOS = "fourfold/lanczos"
SD_X4 = "stabilityai/stable-diffusion-x4-upscaler"
#: The SDKs that send an empty name where the application gives none, and those that send Livepeer's upscaler.
NAMELESS = ["pypi-livepeer-ai", "npm-livepeer-ai"]
NAMING = ["pypi-livepeer", "npm-livepeer"]
#: Milliseconds, as all four have it.
RETRIES = {"initial_interval": 50, "max_interval": 100, "exponent": 1.5, "max_elapsed_time": 60_000}


def download(url: str) -> Image.Image:
    """Return the picture under *url*."""
    with urllib.request.urlopen(url, timeout=30) as response:
        assert response.headers["Content-Type"] == "image/png"
        return Image.open(io.BytesIO(response.read()))


def errors_counted(gateway: str, code: str) -> int:
    """Return how many requests the gateway has answered with *code*."""
    with urllib.request.urlopen(f"{gateway}/metrics", timeout=30) as response:
        exposition = response.read().decode()
    return sum(
        int(float(line.rpartition(" ")[2]))
        for line in exposition.splitlines()
        if line.startswith("fourfold_errors_total{") and f'code="{code}"' in line
    )


def test_a_photo_comes_back_four_times_larger(application: Application, photo: Path) -> None:
    """The URL in the answer holds the photo at 4x, by the model that was named."""
    seen = application(photo, model_id=COMPACT, prompt="a tabby cat")

    assert seen["raised"] is None
    assert seen["headers"]["fourfold-model"] == COMPACT
    assert seen["headers"]["fourfold-input-pixels"] == str(64 * 48)
    assert seen["nsfw"] is False
    result = download(seen["url"])
    assert (result.format, result.size, result.mode) == ("PNG", (256, 192), "RGB")
    # The same picture: scaled back down it is the photo, but for what JPEG and the network changed. Another photo, or
    # this one shifted by 2 of its pixels, is more than 10 levels away.
    with Image.open(photo) as before:
        again = result.resize(before.size, Image.Resampling.BOX)
        difference = np.abs(np.asarray(again, dtype=float) - np.asarray(before, dtype=float)).mean()
    assert difference < 6.0


@pytest.mark.parametrize("application", NAMELESS, indirect=True)
def test_no_name_means_our_default(application: Application, photo: Path) -> None:
    """An SDK that sends an empty ``model_id`` where none is named gets the default model."""
    seen = application(photo)

    assert application.sdk.default_model == ""
    assert seen["headers"]["fourfold-model"] == X4PLUS
    assert download(seen["url"]).size == (256, 192)


@pytest.mark.parametrize("application", NAMING, indirect=True)
def test_the_default_of_an_sdk_that_nobody_offers_is_503(application: Application, photo: Path) -> None:
    """An SDK that names Livepeer's upscaler by itself is told what is on offer instead."""
    seen = application(photo)

    assert application.sdk.default_model == SD_X4
    assert (seen["raised"], seen["status"]) == ("SDKError", 503)
    assert COMPACT in seen["text"] and X4PLUS in seen["text"]


def test_a_known_model_that_nobody_offers_is_503(application: Application, photo: Path) -> None:
    """Livepeer's own upscaler, not on offer here, raises SDKError with 503, a code, Retry-After and the offers."""
    seen = application(photo, model_id=SD_X4)

    assert (seen["raised"], seen["status"]) == ("SDKError", 503)
    assert int(seen["headers"]["retry-after"]) > 0
    body = json.loads(seen["body"])
    assert body["error"]["code"] == "no_orchestrator"
    assert X4PLUS in body["detail"]["msg"]


def test_an_operator_may_map_that_model_to_one_on_offer(
    application: Application, other_gateway: str, photo: Path
) -> None:
    """With ``gateway.model_aliases`` it passes; the answer says what ran."""
    model = {} if application.sdk.default_model == SD_X4 else {"model_id": SD_X4}
    seen = application(photo, server_url=other_gateway, **model)

    assert seen["headers"]["fourfold-model"] == LANCZOS
    assert download(seen["url"]).size == (256, 192)


def test_every_form_of_upload_is_taken(application: Application, photo: Path) -> None:
    """Bytes, an open file, a blob without a name, a stream: whatever name and type the SDK gives, the bytes count."""
    for upload in application.sdk.uploads:
        seen = application(photo, upload=upload, file_name="photo.txt", model_id=LANCZOS)

        assert seen["raised"] is None, (upload, seen)
        assert download(seen["url"]).size == (256, 192)


@pytest.mark.parametrize("application", ["pypi-livepeer-ai", "pypi-livepeer"], indirect=True)
def test_the_async_method_works_too(application: Application, photo: Path) -> None:
    """``upscale_async`` gets the same answer, and raises the same error."""
    seen = application(photo, model_id=LANCZOS, is_async=True)
    refused = application(photo, model_id="nobody/s", is_async=True)

    assert download(seen["url"]).size == (256, 192)
    assert refused["raised"] == application.sdk.refusal


def test_the_fields_arrive(application: Application, photo: Path) -> None:
    """Seed 0 is a seed, and the one in the answer; without the safety check nothing is checked."""
    seen = application(photo, model_id=LANCZOS, seed=0, safety_check=False, num_inference_steps=150)

    assert seen["seed"] == 0
    assert seen["headers"]["fourfold-safety"] == "not-checked"


def test_a_damaged_image_is_a_refusal(application: Application, photo: Path, tmp_path: Path) -> None:
    """400: half a JPEG raises the SDK's error for it, whose message says that the image is at fault."""
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(photo.read_bytes()[:-600])

    seen = application(damaged, model_id=LANCZOS)

    assert seen["raised"] == application.sdk.refusal
    assert "image" in seen["msg"] or "picture" in seen["msg"]


def test_an_unknown_model_is_a_refusal_that_lists_the_known(application: Application, photo: Path) -> None:
    """400: the message of a misspelt model says what is on offer."""
    seen = application(photo, model_id="fourfold/realesrgan-x4-plus")

    assert seen["raised"] == application.sdk.refusal
    assert "fourfold/realesrgan-x4-plus" in seen["msg"]
    assert X4PLUS in seen["msg"]


def test_what_is_no_picture_is_415(application: Application, tmp_path: Path) -> None:
    """A text raises SDKError with 415; the body has the code."""
    text = tmp_path / "photo.png"
    text.write_text("not a picture")

    seen = application(text, model_id=LANCZOS)

    assert (seen["raised"], seen["status"]) == ("SDKError", 415)
    assert json.loads(seen["body"])["error"]["code"] == "unsupported_format"


def test_too_many_pixels_are_413(application: Application, tmp_path: Path) -> None:
    """An image above the limit raises SDKError with 413; the body has the code."""
    large = tmp_path / "large.png"
    Image.new("RGB", (257, 256)).save(large)

    seen = application(large, model_id=LANCZOS)

    assert (seen["raised"], seen["status"]) == ("SDKError", 413)
    assert json.loads(seen["body"])["error"]["code"] == "image_too_large"


def test_too_many_bytes_are_413(application: Application, tmp_path: Path) -> None:
    """A body above the limit raises SDKError with 413, though the SDK is still sending when the answer comes."""
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(bytes(3_000_000))

    seen = application(heavy, model_id=LANCZOS)

    assert (seen["raised"], seen["status"]) == ("SDKError", 413)
    assert json.loads(seen["body"])["error"]["code"] == "upload_too_large"


def test_a_malformed_field_is_a_validation_error(application: Application, photo: Path) -> None:
    """422: a seed that is no number raises the SDK's error for it, which names the field."""
    seen = application(photo, model_id=LANCZOS, unchecked={"seed": "soon"})

    assert seen["raised"] == application.sdk.validation
    [detail] = seen["detail"]
    assert (detail["loc"], detail["type"]) == (["body", "seed"], "int_parsing")
    assert "integer" in detail["msg"]


@pytest.mark.parametrize("application", ["pypi-livepeer-ai", "pypi-livepeer"], indirect=True)
def test_a_missing_image_is_a_validation_error(application: Application, photo: Path) -> None:
    """422: without an image the Python SDKs send no multipart at all; the error says what was expected."""
    seen = application(photo, unchecked={"image": None})

    assert seen["raised"] == application.sdk.validation
    [detail] = seen["detail"]
    assert detail["loc"] == ["body"]
    assert "multipart" in detail["msg"]


def test_with_retries_a_busy_gateway_is_waited_for(application: Application, other_gateway: str, photo: Path) -> None:
    """Told to retry, an SDK takes our 429 for what may pass, and gets its picture once there is room."""
    before = errors_counted(other_gateway, "queue_full")
    address = urllib.parse.urlsplit(other_gateway)
    with socket.create_connection((address.hostname, address.port), timeout=30) as upload:
        # The gateway's one place, taken by an upload that does not go on.
        upload.sendall(
            b"POST /upscale HTTP/1.1\r\nHost: here\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert upload.recv(100).startswith(b"HTTP/1.1 100")  # it reads the body, so the job is open

        application.start(photo, server_url=other_gateway, model_id=LANCZOS, retries=RETRIES)
        while errors_counted(other_gateway, "queue_full") < before + 2:  # the test's own timeout ends it
            pass
    seen = application.finish()

    assert seen["raised"] is None
    assert download(seen["url"]).size == (256, 192)


def test_with_retries_what_cannot_pass_is_not_sent_again(
    application: Application, other_gateway: str, photo: Path
) -> None:
    """The same SDK takes our 400 as final."""
    before = errors_counted(other_gateway, "unknown_model")

    seen = application(photo, server_url=other_gateway, model_id="nobody/s", retries=RETRIES)

    assert seen["raised"] == application.sdk.refusal
    assert errors_counted(other_gateway, "unknown_model") == before + 1


def test_the_lines_in_the_readme_work(gateway: str, livepeer_ai_python: Path) -> None:
    """They print the URL of the example photo at four times its size."""
    [lines] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)

    done = subprocess.run(
        [livepeer_ai_python, "-c", lines.replace("http://127.0.0.1:9935", gateway)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert download(done.stdout.strip()).size == (1024, 768)
