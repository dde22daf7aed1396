"""An application written with PyPI ``livepeer-ai`` 0.10.0 works against ``fourfold up``, in success and in failure.

What the SDK makes of each answer stands in its code: 400 is ``HTTPError``, 422 ``HTTPValidationError``, and 413 and 503
are ``SDKError``; an error body of another shape would end in a pydantic error instead.
"""

import io
import json
import re
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

Call = Callable[..., dict[str, Any]]

ROOT = Path(__file__).resolve().parents[3]
X4PLUS = "fourfold/realesrgan-x4plus"
LANCZOS = "fourfold/lanczos"


def download(url: str) -> Image.Image:
    """Return the picture under *url*."""
    with urllib.request.urlopen(url, timeout=30) as response:
        assert response.headers["Content-Type"] == "image/png"
        return Image.open(io.BytesIO(response.read()))


def test_a_photo_comes_back_four_times_larger(livepeer_ai: Call, photo: Path) -> None:
    """The URL in the answer holds the photo at 4x, by the default model, which the SDK asks for by sending no name."""
    seen = livepeer_ai(photo, prompt="a tabby cat")

    assert seen["raised"] is None
    assert seen["headers"]["fourfold-model"] == X4PLUS
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


@pytest.mark.parametrize("model_id", ["fourfold/realesr-animevideov3", LANCZOS])
def test_the_model_that_is_named_runs(livepeer_ai: Call, photo: Path, model_id: str) -> None:
    """The answer's header names the model of the request."""
    seen = livepeer_ai(photo, model_id=model_id)

    assert seen["headers"]["fourfold-model"] == model_id
    assert download(seen["url"]).size == (256, 192)


def test_the_async_client_works_too(livepeer_ai: Call, photo: Path) -> None:
    """``upscale_async`` gets the same answer."""
    seen = livepeer_ai(photo, model_id=LANCZOS, is_async=True)

    assert download(seen["url"]).size == (256, 192)


def test_seed_zero_is_a_seed(livepeer_ai: Call, photo: Path) -> None:
    """The seed that was asked for is the one in the answer, 0 included."""
    assert livepeer_ai(photo, model_id=LANCZOS, seed=0)["seed"] == 0


def test_the_file_name_is_not_believed(livepeer_ai: Call, photo: Path) -> None:
    """The bytes say what the picture is; the SDK guesses its Content-Type from the name."""
    seen = livepeer_ai(photo, model_id=LANCZOS, file_name="photo.txt")

    assert download(seen["url"]).size == (256, 192)


def test_a_damaged_image_is_an_http_error(livepeer_ai: Call, photo: Path, tmp_path: Path) -> None:
    """400: half a JPEG raises HTTPError, whose message says that the image is at fault."""
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(photo.read_bytes()[:-600])

    seen = livepeer_ai(damaged)

    assert seen["raised"] == "HTTPError"
    assert "image" in seen["msg"] or "picture" in seen["msg"]


def test_an_unknown_model_is_an_http_error_that_lists_the_known(livepeer_ai: Call, photo: Path) -> None:
    """400: a misspelt model raises HTTPError; the message says what is on offer."""
    seen = livepeer_ai(photo, model_id="fourfold/realesrgan-x4-plus")

    assert seen["raised"] == "HTTPError"
    assert "fourfold/realesrgan-x4-plus" in seen["msg"]
    assert X4PLUS in seen["msg"]


def test_too_many_pixels_are_413(livepeer_ai: Call, tmp_path: Path) -> None:
    """An image above the limit raises SDKError with 413; the body has the code."""
    large = tmp_path / "large.png"
    Image.new("RGB", (257, 256)).save(large)

    seen = livepeer_ai(large, model_id=LANCZOS)

    assert (seen["raised"], seen["status_code"]) == ("SDKError", 413)
    assert json.loads(seen["body"])["error"]["code"] == "image_too_large"


def test_too_many_bytes_are_413(livepeer_ai: Call, tmp_path: Path) -> None:
    """A body above the limit raises SDKError with 413, though the SDK is still sending when the answer comes."""
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(bytes(3_000_000))

    seen = livepeer_ai(heavy, model_id=LANCZOS)

    assert (seen["raised"], seen["status_code"]) == ("SDKError", 413)
    assert json.loads(seen["body"])["error"]["code"] == "upload_too_large"


def test_a_malformed_field_is_a_validation_error(livepeer_ai: Call, photo: Path) -> None:
    """422: a seed that is no number raises HTTPValidationError, which names the field."""
    seen = livepeer_ai(photo, unchecked={"seed": "soon"})

    assert seen["raised"] == "HTTPValidationError"
    [detail] = seen["detail"]
    assert (detail["loc"], detail["type"]) == (["body", "seed"], "int_parsing")
    assert "integer" in detail["msg"]


def test_a_missing_image_is_a_validation_error(livepeer_ai: Call, photo: Path) -> None:
    """422: without an image the SDK sends no multipart at all; HTTPValidationError says what was expected."""
    seen = livepeer_ai(photo, unchecked={"image": None})

    assert seen["raised"] == "HTTPValidationError"
    [detail] = seen["detail"]
    assert detail["loc"] == ["body"]
    assert "multipart" in detail["msg"]


def test_a_known_model_that_nobody_offers_is_503(livepeer_ai: Call, photo: Path) -> None:
    """Livepeer's own upscaler, not on offer here, raises SDKError with 503, a code and Retry-After."""
    seen = livepeer_ai(photo, model_id="stabilityai/stable-diffusion-x4-upscaler")

    assert (seen["raised"], seen["status_code"]) == ("SDKError", 503)
    assert int(seen["headers"]["retry-after"]) > 0
    body = json.loads(seen["body"])
    assert body["error"]["code"] == "no_orchestrator"
    assert X4PLUS in body["detail"]["msg"]


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
