"""What tests and benchmarks of the diffusion engine compare with: the stock pipeline; and jobs, run to their end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionUpscalePipeline
from PIL import Image

from fourfold.engine.base import DiffusionOptions, EngineEvent, EngineJob, JobDone, RegionDone, UpscaleEngine
from fourfold.engine.sd_x4_plan import padded_side


def picture(width: int = 64, height: int = 64, seed: int = 0, dtype: Any = np.uint8) -> Any:
    """Return a picture with smooth parts and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 3 + y, y * 2, 255 - x], axis=-1) % 256
    peak = np.iinfo(dtype).max
    return ((smooth * 0.7 + rng.integers(0, 77, (height, width, 3))) / 255 * peak).astype(dtype)


def job(
    job_id: str = "a",
    image: Any = None,
    *,
    prompt: str = "a white cat",
    seed: int = 0,
    steps: int | None = 3,
    **options: Any,
) -> EngineJob:
    """Return a job of a few steps on a small picture."""
    image = picture() if image is None else image
    return EngineJob(job_id, image, prompt, seed, steps, options=DiffusionOptions(**options))


def run(engine: UpscaleEngine, *jobs: EngineJob) -> list[EngineEvent]:
    """Admit all, step to the end, return every event."""
    for each in jobs:
        engine.admit(each)
    events: list[EngineEvent] = []
    while engine.busy:
        events += engine.step()
    return events


def pixels(events: Sequence[EngineEvent], job_id: str = "a") -> Any:
    """Return the job's one region."""
    (region,) = [event for event in events if isinstance(event, RegionDone) and event.job_id == job_id]
    return region.pixels


def notes(events: Sequence[EngineEvent], job_id: str = "a") -> dict[str, Any]:
    """Return what the job's end says about it."""
    (done,) = [event for event in events if isinstance(event, JobDone) and event.job_id == job_id]
    return done.notes


def upscale(engine: UpscaleEngine, each: EngineJob) -> Any:
    """Run one job; return its pixels."""
    return pixels(run(engine, each), each.job_id)


class Stock:
    """diffusers' own pipeline over the same files."""

    def __init__(self, folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        variant = "fp16" if dtype == torch.float16 else None
        pipe = StableDiffusionUpscalePipeline.from_pretrained(folder, torch_dtype=dtype, variant=variant)
        self.pipe = pipe.to(device)
        self.pipe.set_progress_bar_config(disable=True)

    def latents(self, each: EngineJob, scheduler: Any = None) -> Any:
        """Return ``[1, 4, h, w]``."""
        return self._call(each, "latent", scheduler)

    def image(self, each: EngineJob, scheduler: Any = None) -> Any:
        """Return uint8, cropped to what the job asks for."""
        return self.pixels(each, self._call(each, "np", scheduler)[0])

    def decoded(self, each: EngineJob, latents: Any) -> Any:
        """Return what `image` does, of latents that are there already."""
        with torch.inference_mode():
            decoded = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor, return_dict=False)[0]
        return self.pixels(each, self.pipe.image_processor.postprocess(decoded, output_type="np")[0])

    @staticmethod
    def pixels(each: EngineJob, made: Any) -> Any:
        """Return uint8 of 0 .. 1, cropped."""
        height, width = each.image.shape[:2]
        return (made * 255).round().astype(np.uint8)[: height * 4, : width * 4]

    def _call(self, each: EngineJob, output: str, scheduler: Any) -> Any:
        height, width = each.image.shape[:2]
        pads = (0, padded_side(height) - height), (0, padded_side(width) - width), (0, 0)
        ours, self.pipe.scheduler = self.pipe.scheduler, scheduler or self.pipe.scheduler
        try:
            return self.pipe(
                prompt=each.prompt,
                image=Image.fromarray(np.pad(each.image, pads, mode="edge")),
                num_inference_steps=each.num_inference_steps,
                guidance_scale=each.options.guidance_scale,
                noise_level=each.options.noise_level,
                negative_prompt=each.options.negative_prompt or None,
                generator=torch.Generator("cpu").manual_seed(each.seed),
                output_type=output,
            ).images
        finally:
            self.pipe.scheduler = ours
