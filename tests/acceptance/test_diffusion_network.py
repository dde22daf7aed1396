"""A diffusion model through a whole network of real processes: what the client asks for arrives at the network."""

import io
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers", reason="needs the [diffusion] extra")

from fourfold.client import Client
from fourfold.engine import registry
from fourfold.engine.base import EngineJob, Mode
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.engine.settings import EngineSettings
from fourfold.testing.processes import Running, running
from fourfold.testing.sd_x4 import write_pipe
from fourfold.testing.sd_x4_stock import job, picture, upscale

pytestmark = pytest.mark.slow

MODEL = "stabilityai/stable-diffusion-x4-upscaler"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipe(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def network(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A network that sells the tiny model under the real one's id; aiModels.json names its folder."""
    home = tmp_path_factory.mktemp("network")
    sold: list[dict[str, Any]] = [{"pipeline": "upscale", "model_id": MODEL, "warm": True, "path": str(folder)}]
    sold.append({"pipeline": "upscale", "model_id": "fourfold/lanczos"})
    (home / "aiModels.json").write_text(json.dumps(sold))
    config = home / "fourfold.toml"
    config.write_text(
        f"[worker]\nthreads = 1\nmemory_bytes = 8_000_000_000\n[orchestrator]\nmodels = '{home / 'aiModels.json'}'\n"
    )
    command = ("up", "--config", str(config), "--data-dir", str(home / "data"), "--port", "0")
    with running(*command, "--orchestrator-port", "0") as up:
        yield up


@pytest.fixture(scope="module")
def engine(folder: Path) -> StableDiffusionX4Engine:
    return StableDiffusionX4Engine(registry.card(MODEL), settings=EngineSettings(threads=1), folder=folder)


def ask(network: Running, **fields: Any) -> tuple[Any, dict[str, Any]]:
    """Upscale a picture; return its pixels and the answer's facts."""
    stream = io.BytesIO()
    Image.fromarray(picture()).save(stream, "png")
    with httpx2.Client(base_url=network.ready["gateway"], timeout=120) as client:
        answer = client.post("/upscale", files={"image": ("a.png", stream.getvalue(), "image/png")}, data=fields)
        assert answer.status_code == 200, answer.text
        (made,) = answer.json()["images"]
        body = client.get(made["url"]).content
    return body, made


def as_pixels(body: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))


def test_prompt_seed_steps_and_model_arrive(network: Running, engine: StableDiffusionX4Engine) -> None:
    """The picture is the engine's own for the same prompt, seed 0 and steps; nsfw and the seed come back."""
    fields = {"model_id": MODEL, "prompt": "a white cat", "seed": 0, "num_inference_steps": 3}
    body, made = ask(network, **fields)

    expected = upscale(engine, job(prompt="a white cat", seed=0, steps=3))
    assert np.array_equal(as_pixels(body), expected)
    assert made["seed"] == 0
    assert made["nsfw"] in (True, False)


def test_the_same_seed_gives_the_same_bytes_and_another_prompt_does_not(network: Running) -> None:
    fields = {"model_id": MODEL, "prompt": "a white cat", "seed": 7, "num_inference_steps": 1}
    first, again = ask(network, **fields)[0], ask(network, **fields)[0]
    other = ask(network, **{**fields, "prompt": "dog"})[0]

    assert first == again
    assert first != other


def test_further_options_arrive(network: Running, engine: StableDiffusionX4Engine) -> None:
    """What Livepeer's API lacks is passed on between our own parts."""
    options: dict[str, Any] = {"negative_prompt": "dark", "guidance_scale": 3.5, "noise_level": 200, "mode": "fast"}
    body, _ = ask(network, model_id=MODEL, prompt="cat", seed=1, num_inference_steps=2, **options)

    expected: EngineJob = job(prompt="cat", seed=1, steps=2, **{**options, "mode": Mode.FAST})
    assert np.array_equal(as_pixels(body), upscale(engine, expected))


def test_what_the_worker_says_of_its_run_arrives_at_the_client(network: Running) -> None:
    """The mode and what of a long prompt was not read: in the answer's JSON, its headers and our client's result."""
    stream = io.BytesIO()
    Image.fromarray(picture()).save(stream, "png")
    with Client(network.ready["gateway"]) as client:
        fields: Any = {"model_id": MODEL, "seed": 1, "num_inference_steps": 1, "guidance_scale": 1.0}
        fast = client.upscale(stream.getvalue(), prompt="cat " * 80, mode="fast", **fields)
        plain = client.upscale(stream.getvalue(), prompt="cat", **fields)
        other = client.upscale(stream.getvalue(), model_id="fourfold/lanczos")

    assert (fast.mode, fast.warnings) == (
        "fast",
        ("the last 5 tokens of the prompt were not used: the model reads 77",),
    )
    assert fast.fidelity is not None
    assert (fast.fidelity["mode"], fast.fidelity["warnings"]) == ("fast", list(fast.warnings))
    assert (plain.mode, plain.warnings) == ("exact", ())
    assert (other.mode, other.warnings) == (None, ())


def test_no_model_named_means_the_diffusion_model_where_it_is_sold(network: Running) -> None:
    _, made = ask(network, seed=0, num_inference_steps=1)

    assert made["seed"] == 0


def test_compiled_kernels_stay_in_the_workers_own_folder(network: Running) -> None:
    """So that its next start finds them."""
    (child,) = network.descendants("fourfold.worker.child")
    arguments = child.cmdline()
    folder = Path(arguments[arguments.index("--kernels") + 1])

    assert folder.name == "kernels" and folder.parent.name == "worker"
    assert (folder.parent / "cache").is_dir()


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [("noise_level", "351", 400), ("guidance_scale", "1e30", 400), ("mode", "best", 400), ("guidance_scale", "x", 422)],
)
def test_a_wrong_option_is_the_clients_fault(network: Running, field: str, value: str, status: int) -> None:
    stream = io.BytesIO()
    Image.fromarray(picture()).save(stream, "png")
    answer = httpx2.post(
        f"{network.ready['gateway']}/upscale",
        files={"image": ("a.png", stream.getvalue(), "image/png")},
        data={"prompt": "", field: value},
    )

    assert answer.status_code == status


def test_the_commands_in_livepeers_documentation_work(network: Running, tmp_path: Path) -> None:
    """`curl` as their page on upscaling has it, but for the two places it leaves open: send, then fetch the URL.

    Source: livepeer/docs ``ai/pipelines/upscale.mdx``.
    """
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed: scripts/system.sh, which `make test` runs")
    Image.fromarray(picture()).save(tmp_path / "low_res_cat.png")
    send = r"""curl -X POST https://<gateway-ip>/upscale \
    -F model_id="stabilityai/stable-diffusion-x4-upscaler" \
    -F image=@<PATH_TO_IMAGE>/low_res_cat.png \
    -F prompt="A white cat"
"""
    send = send.replace("https://<gateway-ip>", network.ready["gateway"]).replace("<PATH_TO_IMAGE>", str(tmp_path))
    said = subprocess.run(["bash", "-c", send], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)

    (made,) = json.loads(said.stdout)["images"]
    assert sorted(made) == ["nsfw", "seed", "url"]
    fetch = f'curl -O "{made["url"]}"'
    subprocess.run(["bash", "-c", fetch], cwd=tmp_path, capture_output=True, check=True, timeout=60)
    height, width = picture().shape[:2]
    with Image.open(tmp_path / made["url"].rpartition("/")[2]) as result:
        assert result.size == (4 * width, 4 * height)


def test_a_model_that_cannot_be_loaded_is_offered_to_nobody_until_it_can(folder: Path, tmp_path: Path) -> None:
    """Its weights cut off, then whole again; the network's other model does not notice, nothing is restarted."""
    model = Path(shutil.copytree(folder, tmp_path / "model"))
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    sold = [{"pipeline": "upscale", "model_id": MODEL, "path": str(model)}]
    sold.append({"pipeline": "upscale", "model_id": "fourfold/lanczos"})
    (tmp_path / "aiModels.json").write_text(json.dumps(sold))
    (tmp_path / "fourfold.toml").write_text(
        "[worker]\nthreads = 1\nmemory_bytes = 8_000_000_000\n[gateway]\ndiscovery_interval_s = 0.2\n"
        f"[orchestrator]\nworker_check_s = 0.2\nmodels = '{tmp_path / 'aiModels.json'}'\n"
    )
    stream = io.BytesIO()
    Image.fromarray(picture()).save(stream, "png")
    command = ("up", "--config", str(tmp_path / "fourfold.toml"), "--data-dir", str(tmp_path / "data"), "--port", "0")
    with (
        running(*command, "--orchestrator-port", "0") as up,
        httpx2.Client(base_url=up.ready["gateway"], timeout=120) as client,
    ):

        def status_of(model_id: str) -> tuple[int, str]:
            form = {"model_id": model_id, "num_inference_steps": "1"}
            answer = client.post("/upscale", files={"image": ("a.png", stream.getvalue(), "image/png")}, data=form)
            return answer.status_code, answer.json().get("error", {}).get("code", "")

        def wait_for_offers(count: int) -> None:
            ended_s = time.monotonic() + 60
            while len(client.get("/models").json()["models"]) != count:
                assert time.monotonic() < ended_s, up.log
                time.sleep(0.05)

        assert status_of(MODEL) == (503, "model_unavailable")
        wait_for_offers(1)
        assert status_of("fourfold/lanczos") == (200, "")
        answer = httpx2.get(up.ready["orchestrator"] + "/healthz", verify=False)
        assert answer.json()["withdrawn"] == [MODEL]

        weights.write_bytes(whole)
        wait_for_offers(2)
        assert status_of(MODEL) == (200, "")
    log = "\n".join(up.log)
    assert [log.count(event) for event in ("model_load_failed", "model_withdrawn", "model_offered_again")] == [1, 1, 1]
