"""stable-diffusion-x4-upscaler, and any other ``StableDiffusionUpscalePipeline``, by our own loop over its modules.

The picture is the stock pipeline's for the same seed, to rounding. Jobs are batched at the level of single steps: each
step takes rows (a job's canvas, or one tile of it) of one shape from any jobs, each with its own step count, noise
level, guidance, seed and prompt, so a job joins and leaves while others run.

Number of rows: one of `EngineSettings.batch_rows`, filled up with copies. With a single number there a picture's bytes
do not depend on what else runs (strict); with several they may differ in rounding. One row where more do not fit.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from fourfold.engine.admission import check_image
from fourfold.engine.base import (
    EngineCard,
    EngineEvent,
    EngineJob,
    JobDone,
    JobFailed,
    MemoryRanOut,
    Mode,
    Precision,
    Progress,
    Remark,
)
from fourfold.engine.compiling import note_kernels
from fourfold.engine.full_memory import is_out_of_memory
from fourfold.engine.sd_x4_decode import DecodeLimits
from fourfold.engine.sd_x4_files import ModelFolder, locate_model
from fourfold.engine.sd_x4_job import Running, decode_job, prepare, total_steps
from fourfold.engine.sd_x4_kernels import MOST_RECORDED_PIXELS, Kernels, Shape
from fourfold.engine.sd_x4_load import Modules, load_modules
from fourfold.engine.sd_x4_plan import largest_side, plan_canvas
from fourfold.engine.sd_x4_schedule import FAST_STEPS
from fourfold.engine.sd_x4_text import Prompts
from fourfold.engine.settings import EngineSettings
from fourfold.errors import FourfoldError, InvalidParameterError, OutOfMemoryError

MAX_STEP_PIXELS: Final = 2**20
"""Latent pixels of all rows of one step: beyond that a batch is no faster, only later."""

_MAX_SEED: Final = 2**64 - 1
_Row = tuple[Running, int]


class StableDiffusionX4Engine:
    """One model on one device. Small jobs are not starved: whoever has had the fewest pixels computed is next."""

    def __init__(self, card: EngineCard, *, settings: EngineSettings, folder: Path | None = None) -> None:
        """Load the model from *folder*, from the folder that the settings name, or from the hub's cache.

        Raises:
            ModelUnavailableError: a package or a file is missing, damaged or of another kind of model.
        """
        device = torch.device(settings.device)
        folders = settings.model_paths if folder is None else {card.model_id: folder}
        is_half = device.type != "cpu" and settings.precision is Precision.AUTO
        found: ModelFolder = locate_model(card.model_id, folders, prefers_half=is_half)
        if device.type == "cpu":
            torch.set_num_threads(settings.threads)
        self._settings = settings
        self._modules: Modules = load_modules(found, device=device, dtype=torch.float16 if is_half else torch.float32)
        self._card = measured(card, self._modules)
        backend = settings.compiler
        if backend is not None and device.type != "cpu":
            with_graphs = holding_graphs(self._card, settings.memory_budget_bytes)
            backend = None if with_graphs is None else backend
            self._card = with_graphs or self._card
        self._prompts = Prompts(self._modules)
        self._kernels = Kernels(self._modules.unet, backend=backend)
        self._is_strict = len(settings.batch_rows) == 1
        if self._is_strict and device.type != "cpu":
            torch.backends.cudnn.deterministic = True  # of all threads, as torch has no other way
        self._limits = DecodeLimits()
        self._lock = threading.Lock()
        self._running: list[Running] = []
        self._short: list[MemoryRanOut] = []  #: of the step that runs

    @property
    def card(self) -> EngineCard:
        """The card of the model this engine runs, with the memory that it measured."""
        return self._card

    @property
    def busy(self) -> bool:
        """Whether a job is admitted and unfinished."""
        return bool(self._running)

    def admit(self, job: EngineJob) -> None:
        """Take *job*; see `UpscaleEngine.admit`.

        Raises:
            InvalidParameterError: a step count, seed or noise level that this model does not take.
        """
        check_image(job.image)
        options = job.options
        count = job.num_inference_steps
        if count is None:
            count = self._card.default_steps if options.mode is Mode.EXACT else FAST_STEPS
        most_steps = self._modules.sampler.most_steps
        if not 1 <= count <= most_steps:
            raise InvalidParameterError(f"num_inference_steps must be 1 to {most_steps} for this model, got {count}")
        if not 0 <= job.seed <= _MAX_SEED:
            raise InvalidParameterError(f"seed must be 0 to {_MAX_SEED}, got {job.seed}")
        if options.noise_level > self._modules.max_noise_level:
            raise InvalidParameterError(
                f"noise_level may be up to {self._modules.max_noise_level} for this model, got {options.noise_level}"
            )
        height, width = job.image.shape[:2]
        plan = plan_canvas(self._card, width, height, budget_bytes=self._settings.memory_budget_bytes)
        steps = self._modules.sampler.steps(count, options.mode)
        notes: dict[str, Any] = {
            "precision": str(self._modules.dtype).removeprefix("torch."),
            "mode": options.mode.value,
            "steps": count,
            "tiles": len(plan.tiles),
        }
        warnings = self._prompt_warnings(job)
        if warnings:
            notes["warnings"] = warnings
        running = Running(job, plan, steps, notes, total=total_steps(plan, len(steps), self._modules.vae))
        if self._is_strict:
            running.is_compiled = self._kernels.is_compiled(self._shape(self._batch_sizes(running)[0], running))
        with self._lock:
            if any(other.job.job_id == job.job_id for other in self._running):
                raise ValueError(f"job {job.job_id} is already admitted")
            running.served = min((other.served for other in self._running), default=0.0)
            self._running.append(running)

    def step(self) -> Sequence[EngineEvent]:
        """Take one denoising step of some rows, or decode one layer of one job."""
        with self._lock:
            if not self._running:
                return []
            lead = self._next()
        with torch.inference_mode():
            touched = self._decode(lead) if lead.is_denoised else self._denoise(lead)
        with self._lock:
            gone = [event.job_id for event in touched if isinstance(event, JobDone | JobFailed)]
            alive = {running.job.job_id for running in self._running if not running.is_cancelled}
            self._running = [running for running in self._running if running.job.job_id not in gone]
        short, self._short = self._short, []
        told = [event for event in (*short, *touched) if not isinstance(event, Remark) and event.job_id in alive]
        return [*told, *self._kernels.remarks()]

    def cancel(self, job_id: str) -> None:
        """Forget the job; the step that runs for it just now ends first. May come from any thread."""
        with self._lock:
            for running in self._running:
                running.is_cancelled = running.is_cancelled or running.job.job_id == job_id
            self._running = [running for running in self._running if not running.is_cancelled]

    def close(self) -> None:
        """Free the model's memory. Unfinished jobs are forgotten."""
        with self._lock:
            self._running = []
        self._prompts.clear()
        self._kernels.close()
        del self._modules, self._prompts, self._kernels
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _next(self) -> Running:
        """Return the job whose turn it is: who was served least, or who decodes where there is no room beside that.

        What decoding holds from step to step and what the step needs have to fit together; lock held.
        """
        lead = min(self._running, key=lambda running: running.served)
        holder = self._holder()
        if holder is None or holder is lead:
            return lead
        wanted = lead.decode_pixels if lead.is_denoised else self._batch_sizes(lead)[0] * lead.step_pixels
        return lead if wanted <= self._free_pixels() else holder

    def _holder(self) -> Running | None:
        """Return the job, if any, that has features of a half-decoded picture in memory; lock held."""
        return next((running for running in self._running if running.decoding is not None), None)

    def _free_pixels(self) -> int:
        """Return how many latent pixels the budget has room for beside what is being decoded; lock held."""
        budget = self._settings.memory_budget_bytes
        if budget is None:
            return MAX_STEP_PIXELS
        held = sum(running.decode_pixels for running in self._running if running.decoding is not None)
        return self._card.tile_pixels_within(budget) - held

    def _batch_sizes(self, lead: Running) -> tuple[int, ...]:
        """Return the numbers of rows that calls of *lead*'s shape may have, decided by the shape and the budget alone.

        So that, strict, it is one number whoever else is there: the settings', or one row where that would not fit.
        """
        budget = self._settings.memory_budget_bytes
        most = MAX_STEP_PIXELS if budget is None else min(MAX_STEP_PIXELS, self._card.tile_pixels_within(budget))
        return tuple(count for count in self._settings.batch_rows if count * lead.step_pixels <= most) or (1,)

    def _denoise(self, lead: Running) -> list[EngineEvent]:
        rows, ended = self._choose(lead), dict[str, JobFailed]()
        for running in _jobs(rows):
            try:
                self._begin(running)
            except (RuntimeError, MemoryError) as exc:
                ended[running.job.job_id] = self._failed(running, exc)
        for part, answers in self._answers([row for row in rows if row[0].job.job_id not in ended]):
            if isinstance(answers, list):
                for (running, tile), answer in zip(part, answers, strict=True):
                    running.take(tile, answer)
                    running.served += answer.shape[-1] * answer.shape[-2]
            else:
                ended |= {running.job.job_id: self._failed(running, answers) for running in _jobs(part)}
        alive = [running for running in _jobs(rows) if running.job.job_id not in ended]
        return [*(Progress(running.job.job_id, running.done, running.total) for running in alive), *ended.values()]

    def _begin(self, running: Running) -> None:
        """Draw the job's noise, at its first step."""
        if running.latents is not None:
            return
        try:
            prepare(running, self._modules)
        except (RuntimeError, MemoryError) as exc:
            if not is_out_of_memory(exc):
                raise
            self._note_retry(running)
            prepare(running, self._modules)

    def _choose(self, lead: Running) -> list[_Row]:
        """Return the rows of the next network call: *lead*'s, then those of others that fit beside them."""
        with self._lock:
            others = sorted(self._running, key=lambda running: running.served)
            most_pixels = self._free_pixels()
        sizes = self._batch_sizes(lead)
        most = max((count for count in sizes if count * lead.step_pixels <= most_pixels), default=sizes[0])
        mates = [lead, *(other for other in others if other is not lead and _batches_with(other, lead))]
        rows = [(running, tile) for running in mates for tile in running.pending]
        return rows[:most]

    def _answers(self, rows: Sequence[_Row]) -> Iterator[tuple[Sequence[_Row], list[torch.Tensor] | BaseException]]:
        """Yield rows and each one's answers ``[ways, 4, h, w]``; where memory runs out, once more in halves.

        The rows of a half that runs out again come with the exception.
        """
        if not rows:
            return
        try:
            yield rows, self._predict(rows, is_split=False)
            return
        except (RuntimeError, MemoryError) as exc:
            if not is_out_of_memory(exc):
                raise
        has_made_room = self._kernels.release()
        for running in _jobs(rows):
            self._note_retry(running)
        # Strict, a half is filled up to the same batch: it is smaller only at the price of other roundings.
        is_split = len(rows) == 1 or (self._is_strict and not has_made_room)
        half = -(-len(rows) // 2)
        for part in (rows[:half], rows[half:]):
            if not part:
                continue
            try:
                answers = self._predict(part, is_split=is_split)
            except (RuntimeError, MemoryError) as exc:
                if not is_out_of_memory(exc):
                    raise
                yield part, exc
            else:
                yield part, answers

    def _note_retry(self, running: Running) -> None:
        """Count that memory ran out on a job which is tried again in less; make what room there is."""
        self._forget_cached()
        self._short.append(MemoryRanOut(running.job.job_id, running.step_pixels, goes_on=True))
        running.notes["out_of_memory_retries"] = running.notes.get("out_of_memory_retries", 0) + 1

    def _failed(self, running: Running, exc: BaseException) -> JobFailed:
        """Return the end of a job on which memory ran out twice; raise what is no such thing."""
        if not is_out_of_memory(exc):
            raise exc
        self._short.append(MemoryRanOut(running.job.job_id, running.step_pixels, goes_on=False))
        return JobFailed(running.job.job_id, self._too_large(running, exc))

    def _predict(self, rows: Sequence[_Row], *, is_split: bool) -> list[torch.Tensor]:
        """Return each row's answers; *is_split*: one prompt at a time, without copies, in half the memory."""
        lead = rows[0][0]
        count = len(rows)
        if not is_split:
            count = next((n for n in self._batch_sizes(lead) if n >= len(rows)), len(rows))
        filled = [*rows, *[rows[0]] * (count - len(rows))]  # copies: real numbers, so nothing can overflow
        sample = torch.cat([running.inputs(tile) for running, tile in filled]).to(self._modules.dtype)
        if self._modules.device.type != "cpu":
            sample = sample.contiguous(memory_format=torch.channels_last)
        embedding = torch.stack([_embedding(running) for running, _ in filled])
        texts = [[running.texts()[way] for running, _ in filled] for way in range(lead.ways)]
        shape, compiled = self._shape(count, lead), False
        if is_split:
            answers = torch.cat([self._kernels.eager(1, sample, embedding, self._prompts.rows(some)) for some in texts])
        else:
            compiled = self._kernels.is_compiled(shape) if lead.is_compiled is None else lead.is_compiled
            text = self._prompts.rows([text for some in texts for text in some])
            room = self._room_beside(shape)
            answers, compiled = self._kernels.run(shape, sample, embedding, text, compiled=compiled, room_pixels=room)
        for running in _jobs(rows):
            note_kernels(running.notes, is_compiled=compiled)
        return [answers[row :: len(filled)] for row in range(len(rows))]

    def _room_beside(self, shape: Shape) -> int:
        """Return how many latent pixels there is room for beside a step; none where memory ran out on a job."""
        with self._lock:
            if any(running.has_run_short for running in self._running):
                return 0
            if self._settings.memory_budget_bytes is None:
                return MAX_STEP_PIXELS
            return max(0, self._free_pixels() - shape.pixels)

    @staticmethod
    def _shape(rows: int, lead: Running) -> Shape:
        return Shape(rows, lead.ways, *lead.tile_size)

    def _decode(self, running: Running) -> list[EngineEvent]:
        """Decode one layer; the last one brings the pixels."""
        job_id = running.job.job_id
        if running.decoding is None:
            running.decoding = decode_job(running, self._modules, self._limits)
        # A decoded layer has up to 16 pixels for each of the canvas, of half the UNet's width.
        running.served += running.plan.width * running.plan.height
        try:
            next(running.decoding)
        except StopIteration as end:
            regions: list[EngineEvent] = end.value
            return [*regions, Progress(job_id, running.total, running.total), JobDone(job_id, running.notes)]
        except FourfoldError as exc:
            return [JobFailed(job_id, exc)]
        except (RuntimeError, MemoryError) as exc:
            if running.has_shrunk:
                return [self._failed(running, exc)]
            if not is_out_of_memory(exc):
                raise
            running.has_shrunk = True
            running.done = len(running.steps) * len(running.plan.tiles)
            running.decoding = decode_job(running, self._modules, self._limits.halved())
            self._note_retry(running)
            return []
        return [Progress(job_id, running.done, running.total)]

    def _too_large(self, running: Running, cause: BaseException) -> OutOfMemoryError:
        self._forget_cached()
        pixels = running.plan.width * running.plan.height
        error = OutOfMemoryError(
            f"the device ran out of memory on {running.job.image.shape[1]}x{running.job.image.shape[0]}, twice; "
            f"send at most {largest_side(pixels // 2)} px square"
        )
        error.__cause__ = cause
        return error

    def _forget_cached(self) -> None:
        """Give back what recorded graphs hold, and what the allocator keeps for later."""
        self._kernels.release()
        if self._modules.device.type == "cuda":
            torch.cuda.empty_cache()

    def _prompt_warnings(self, job: EngineJob) -> list[str]:
        names = {"prompt": job.prompt, "negative_prompt": job.options.negative_prompt}
        beyond = {name: self._prompts.tokens_beyond(text) for name, text in names.items()}
        limit = self._modules.tokenizer.model_max_length
        return [
            f"the last {count} tokens of the {name} were not used: the model reads {limit}"
            for name, count in beyond.items()
            if count
        ]


def measured(card: EngineCard, modules: Modules) -> EngineCard:
    """Return *card*, which counts in float32, with this device's number type and the weights' real size."""
    size = torch.empty((), dtype=modules.dtype).element_size()
    return replace(card, fixed_bytes=modules.weight_bytes, bytes_per_input_pixel=card.bytes_per_input_pixel * size // 4)


def holding_graphs(card: EngineCard, budget_bytes: int | None) -> EngineCard | None:
    """Return *card* with the memory that recorded kernels hold while no job runs: the largest recorded step.

    Graphs share one memory, as only one of them runs at a time. None where a picture of that size would not fit beside
    it: of a small memory pictures have more use than graphs, which save the time of launching kernels.
    """
    with_graphs = replace(card, fixed_bytes=card.fixed_bytes + MOST_RECORDED_PIXELS * card.bytes_per_input_pixel)
    return with_graphs if budget_bytes is None or with_graphs.peak_bytes(MOST_RECORDED_PIXELS) <= budget_bytes else None


def _batches_with(other: Running, lead: Running) -> bool:
    """Whether the two can share a network call; strict, only where the same kernels compute both."""
    is_alike = other.tile_size == lead.tile_size and other.ways == lead.ways
    return is_alike and not other.is_denoised and other.is_compiled is lead.is_compiled


def _jobs(rows: Sequence[_Row]) -> list[Running]:
    """Return the jobs of *rows*, each once, in order."""
    return list({id(running): running for running, _ in rows}.values())


def _embedding(running: Running) -> torch.Tensor:
    assert running.embeddings is not None
    return running.embeddings[running.at]
