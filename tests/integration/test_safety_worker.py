"""The stock safety checker in a real device process: it flags, and the picture stays as it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="needs the [diffusion] extra")

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from fourfold.compose.doctor import Verdict, examine
from fourfold.compose.worker import open_worker
from fourfold.config import Settings, WorkerSettings
from fourfold.engine.safety_choice import checker_bytes
from fourfold.errors import ConfigError
from fourfold.telemetry import Metrics
from fourfold.worker.orders import WorkOrder

MODEL = "fourfold/lanczos"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checker that finds every picture near its concepts."""
    folder = tmp_path_factory.mktemp("checker")
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config={**vision, "image_size": 32, "patch_size": 8, "projection_dim": 8}, projection_dim=8
    )
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data = torch.full((17,), -2.0)
    checker.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


async def test_a_flagged_picture_is_the_picture(folder: Path, tmp_path: Path) -> None:
    """With and without the check; the checker's memory is not planned for models."""
    source = tmp_path / "in.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)).save(source)
    settings = WorkerSettings(model_id=MODEL, threads=1, safety_checker=folder, codec_processes=1, memory_bytes=2**30)
    results: dict[bool, Any] = {}
    async with open_worker(settings, tmp_path / "cache", Metrics("worker")) as worker:
        for checked in (True, False):
            order = WorkOrder(f"job-{checked}", source, MODEL, safety_check=checked)
            with worker.admit(order.job_id) as place:
                done = await worker.upscale(order, place)
                results[checked] = done.nsfw_score, done.path.read_bytes()
        budget_bytes = worker.device._models.budget_bytes

    assert (results[True][0], results[False][0]) == (1.0, None)
    assert results[True][1] == results[False][1]
    assert budget_bytes == 2**30 - checker_bytes(folder / "model.safetensors") < 2**30


async def test_a_wrong_folder_is_refused_at_the_start(tmp_path: Path) -> None:
    """And the doctor says so."""
    settings = WorkerSettings(model_id=MODEL, safety_checker=tmp_path)
    with pytest.raises(ConfigError, match=r"worker.safety_checker: .* must hold config.json"):
        async with open_worker(settings, tmp_path / "cache", Metrics("worker")):
            pass
    found = {f.subject: f for f in examine(Settings(data_dir=tmp_path, worker=settings))}

    assert found["safety"].verdict is Verdict.FAIL
