"""One job inside the diffusion engine: its noise, its latents, how far it is, and its pixels.

Seeds mean what they mean to the stock pipeline with a CPU generator: first the noise for the picture, then the latents,
in float32, from one generator for each picture. So a picture depends neither on the batch nor on the GPU's model.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch

from fourfold.engine.base import EngineEvent, EngineJob, Pixels8or16, RegionDone
from fourfold.engine.sd_x4_decode import DecodeLimits, decode, decode_steps
from fourfold.engine.sd_x4_load import Modules
from fourfold.engine.sd_x4_plan import JobPlan, ramp
from fourfold.engine.sd_x4_schedule import Step
from fourfold.engine.sd_x4_unet import time_embeddings
from fourfold.errors import WorkerFailedError


class NonFiniteError(Exception):
    """Numbers overflowed; the picture would be black."""


@dataclass(slots=True)
class Running:
    """An admitted job."""

    job: EngineJob
    plan: JobPlan
    steps: tuple[Step, ...]
    notes: dict[str, Any]
    total: int  #: what its progress counts to
    served: float = 0.0  #: pixels computed for it, beside what it would have had by coming earlier
    done: int = 0
    at: int = 0  #: denoising steps taken
    answers: dict[int, torch.Tensor] = field(default_factory=dict)  #: of this step, by tile
    latents: torch.Tensor | None = None  #: [1, 4, h, w] float32
    prior: torch.Tensor | None = None  #: the last step's clean latents, where the sampler looks back
    picture: torch.Tensor | None = None  #: [1, 3, h, w] float32, noised
    embeddings: torch.Tensor | None = None  #: [steps, width]
    ramps: list[torch.Tensor] = field(default_factory=list)  #: the tiles' weights in the mean, [h, w]; of one tile none
    decoding: Generator[None, None, list[EngineEvent]] | None = None
    is_cancelled: bool = False
    has_shrunk: bool = False  #: whether it decodes in half the memory, as that ran out
    is_compiled: bool | None = None  #: strict: which kernels compute it, from its first step to its last

    @property
    def ways(self) -> int:
        """2 where the prompt is emphasised, which needs the answer without it as well; else 1."""
        return 2 if self.job.options.guidance_scale > 1 else 1

    @property
    def has_run_short(self) -> bool:
        """Whether memory has run out on it."""
        return "out_of_memory_retries" in self.notes

    @property
    def is_denoised(self) -> bool:
        """Whether only decoding is left."""
        return self.at == len(self.steps)

    @property
    def pending(self) -> list[int]:
        """The tiles of this step that have no answer yet, in canonical order."""
        return [i for i in range(len(self.plan.tiles)) if i not in self.answers]

    @property
    def step_pixels(self) -> int:
        """Latent pixels of one row."""
        return self.plan.tiles[0].width * self.plan.tiles[0].height

    @property
    def decode_pixels(self) -> int:
        """Latent pixels whose features decoding holds from its beginning to its end."""
        return max(box.width * box.height for box in self.plan.decode_tiles)

    @property
    def tile_size(self) -> tuple[int, int]:
        """Height and width of every tile."""
        return self.plan.tiles[0].height, self.plan.tiles[0].width

    def texts(self) -> tuple[str, ...]:
        """Return the prompts of the ways, the one without emphasis first."""
        options = self.job.options
        return (options.negative_prompt, self.job.prompt) if self.ways == 2 else (self.job.prompt,)

    def inputs(self, tile: int) -> torch.Tensor:
        """Return ``[1, 7, h, w]`` float32 for one tile."""
        assert self.latents is not None and self.picture is not None
        box = self.plan.tiles[tile]
        window = (slice(None), slice(None), slice(box.top, box.bottom), slice(box.left, box.right))
        return torch.cat([self.latents[window], self.picture[window]], dim=1)

    def take(self, tile: int, answers: torch.Tensor) -> None:
        """Keep a tile's answers, ``[ways, 4, h, w]``; after the step's last one go on to the next step."""
        answers = answers.float()
        if self.ways == 2:
            answers = answers[:1] + self.job.options.guidance_scale * (answers[1:] - answers[:1])
        self.answers[tile] = answers
        self.done += 1
        if len(self.answers) == len(self.plan.tiles):
            self._go_on(self._joined())

    def _joined(self) -> torch.Tensor:
        """Return the canvas's answer: the tiles' weighted mean, added in canonical order whoever came first."""
        if len(self.plan.tiles) == 1:
            return self.answers[0]
        assert self.latents is not None
        total, weights = torch.zeros_like(self.latents), torch.zeros_like(self.latents[:, :1])
        for i, (box, weight) in enumerate(zip(self.plan.tiles, self.ramps, strict=True)):
            window = (slice(None), slice(None), slice(box.top, box.bottom), slice(box.left, box.right))
            total[window] += weight * self.answers[i]
            weights[window] += weight
        return total / weights

    def _go_on(self, answer: torch.Tensor) -> None:
        step, x = self.steps[self.at], self.latents
        assert x is not None
        after = step.next_x * x + step.next_m * answer
        if step.next_prior != 0:
            assert self.prior is not None
            after += step.next_prior * self.prior
        self.prior = step.clean_x * x + step.clean_m * answer if step.clean_m != 0 else None
        self.latents = after
        self.answers = {}
        self.at += 1


def prepare(running: Running, modules: Modules) -> None:
    """Draw the job's noise and bring its picture onto the device."""
    plan, options = running.plan, running.job.options
    generator = torch.Generator("cpu").manual_seed(running.job.seed)
    canvas = pad_edges(running.job.image, plan.height, plan.width)
    unit = torch.from_numpy(canvas.astype(np.float32) / np.float32(np.iinfo(canvas.dtype).max))
    picture = unit.permute(2, 0, 1)[None] * 2.0 - 1.0
    channels = modules.vae.config.latent_channels
    # Whatever torch's default is just now: who loads a model in another thread may have changed it.
    noise, latents = (
        torch.randn((1, count, plan.height, plan.width), generator=generator, dtype=torch.float32)
        for count in (3, channels)
    )
    alpha = modules.low_res_alphas[options.noise_level]
    picture = math.sqrt(alpha) * picture + math.sqrt(1 - alpha) * noise
    running.picture = picture.to(modules.device)
    running.latents = latents.to(modules.device)
    timesteps = [step.timestep for step in running.steps]
    running.embeddings = time_embeddings(modules.unet, timesteps, options.noise_level, dtype=modules.dtype)
    if len(plan.tiles) > 1:
        running.ramps = _ramps(plan, modules.device)


def _ramps(plan: JobPlan, device: torch.device) -> list[torch.Tensor]:
    """Return every tile's weights, on the device once for all steps; of tiles with the same neighbours one tensor."""
    neighbours_to_ramp: dict[tuple[bool, ...], torch.Tensor] = {}
    ramps = []
    for box in plan.tiles:
        neighbours = box.left > 0, box.top > 0, box.right < plan.width, box.bottom < plan.height
        if neighbours not in neighbours_to_ramp:
            neighbours_to_ramp[neighbours] = torch.from_numpy(ramp(box, plan)[..., 0]).to(device)
        ramps.append(neighbours_to_ramp[neighbours])
    return ramps


def pad_edges(image: Pixels8or16, height: int, width: int) -> Pixels8or16:
    """Return *image* with its last row and column repeated up to the given size."""
    pads = (0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)
    return cast(Pixels8or16, np.pad(image, pads, mode="edge"))


def decode_job(running: Running, modules: Modules, limits: DecodeLimits) -> Generator[None, None, list[EngineEvent]]:
    """Decode a denoised job, a layer at a time; return its finished regions.

    Raises:
        WorkerFailedError: the latents or, even in float32, the pixels are not finite.
    """
    assert running.latents is not None
    running.picture = running.prior = running.embeddings = None
    running.ramps = []
    if not bool(torch.isfinite(running.latents).all()):
        raise WorkerFailedError("the network's answer is not finite: the picture would be black; try another seed")
    dtypes = dict.fromkeys((modules.decode_dtype, torch.float32))
    for dtype in dtypes:
        before = running.done
        try:
            return (yield from _decode_all(running, modules, limits, dtype))
        except NonFiniteError:
            running.done = before  # progress never counts past its total
            running.notes.setdefault("warnings", []).append(
                f"decoding in {str(dtype).removeprefix('torch.')} overflowed"
            )
    raise WorkerFailedError("the decoded picture is not finite: it would be black; try another seed")


def _decode_all(
    running: Running, modules: Modules, limits: DecodeLimits, dtype: torch.dtype
) -> Generator[None, None, list[EngineEvent]]:
    assert running.latents is not None
    plan, image = running.plan, running.job.image
    latents = running.latents / modules.scaling_factor
    scale = 4
    if len(plan.decode_tiles) == 1:
        run = decode(modules.vae, latents, dtype=dtype, limits=limits)
        strips = yield from _counted(running, run)
        pixels = np.empty((image.shape[0] * scale, image.shape[1] * scale, 3), image.dtype)
        for top, strip in strips:
            rows = pixels[top : top + strip.shape[2]]
            rows[...] = to_pixels(strip, image.dtype)[: rows.shape[0], : rows.shape[1]]
        return [RegionDone(running.job.job_id, 0, 0, pixels)]
    total = np.zeros((plan.height * scale, plan.width * scale, 3), np.float32)
    weights = np.zeros((*total.shape[:2], 1), np.float32)
    for box in plan.decode_tiles:
        part = latents[:, :, box.top : box.bottom, box.left : box.right]
        strips = yield from _counted(running, decode(modules.vae, part, dtype=dtype, limits=limits))
        weight = ramp(box, plan, scale)
        for top, strip in strips:
            first, last = box.top * scale + top, box.top * scale + top + strip.shape[2]
            where = slice(first, last), slice(box.left * scale, box.right * scale)
            part_weight = weight[top : top + strip.shape[2]]
            total[where] += part_weight * _to_unit(strip).cpu().numpy()
            weights[where] += part_weight
    total /= weights
    del weights
    peak = np.iinfo(image.dtype).max
    kept = total[: image.shape[0] * scale, : image.shape[1] * scale]
    return [RegionDone(running.job.job_id, 0, 0, np.rint(kept * np.float32(peak)).astype(image.dtype))]


def _counted(running: Running, run: Generator[None, None, Any]) -> Generator[None, None, Any]:
    """Pass on *run*'s pauses, each as progress."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            return end.value
        running.done += 1
        yield


def total_steps(plan: JobPlan, steps: int, vae: Any) -> int:
    """Return what a job's progress counts to: each tile of each step, each layer of each decoded tile, the pixels."""
    return steps * len(plan.tiles) + len(plan.decode_tiles) * decode_steps(vae) + 1


def to_pixels(strip: torch.Tensor, dtype: np.dtype[Any]) -> Pixels8or16:
    """Return ``[rows, w, 3]`` of ``[1, 3, rows, w]`` in -1 .. 1. Raises: NonFiniteError if a number is not finite."""
    whole = (_to_unit(strip) * float(np.iinfo(dtype).max)).round_()
    # Made whole where the pixels are: a quarter of the bytes to fetch from a GPU.
    pixels: Pixels8or16 = whole.to(torch.uint8 if dtype.itemsize == 1 else torch.int32).cpu().numpy().astype(dtype)
    return pixels


def _to_unit(strip: torch.Tensor) -> torch.Tensor:
    """Return ``[rows, w, 3]`` in 0 .. 1, where *strip* is."""
    unit = (strip[0] / 2 + 0.5).permute(1, 2, 0)
    if not bool(torch.isfinite(unit).all()):
        raise NonFiniteError
    return unit.clamp_(0.0, 1.0)
