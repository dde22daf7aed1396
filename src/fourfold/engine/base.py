"""The seam between a device's process and a model: what an engine is told, and what it answers.

An engine is stepwise: the child's loop admits jobs, calls :meth:`UpscaleEngine.step` again and again, and hands on the
events it gets; between two steps it reads its pipe. One step is one tile or one denoising step, so progress and cancel
need nothing of their own, and an engine may carry many jobs in one batch.

Not here: files, pipes, processes (``fourfold.worker``), codecs (``fourfold.imaging``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from fourfold.errors import FourfoldError, InvalidParameterError

if TYPE_CHECKING:  # who only reads cards does without: most of a role's start is imports
    import numpy as np
    from numpy.typing import NDArray

SCALE: Final = 4
"""Every model of the network makes an image four times as wide and high."""

Pixels8or16: TypeAlias = "NDArray[np.uint8] | NDArray[np.uint16]"
"""``[h, w, 3]`` canonical sRGB, uint8 or uint16, full range."""

Precision = Enum("Precision", {"AUTO": "auto", "FLOAT32": "float32"})
"""auto: the fastest type whose result looks the same on this device; float32: always, on any device."""


Mode = Enum("Mode", {"EXACT": "exact", "FAST": "fast"})
"""exact: the model's own sampler and all of its steps; fast: another sampler, fewer steps, another picture."""

MAX_NOISE_LEVEL: Final = 350
"""The most noise that any model may be told to see in the picture."""

MAX_GUIDANCE_SCALE: Final = 100.0
"""Far beyond what makes sense, and far below what makes a network's numbers overflow."""


@dataclass(frozen=True, slots=True)
class DiffusionOptions:
    """What a caller may tell a diffusion model beyond prompt, seed and steps; other models ignore it.

    Raises: InvalidParameterError for a value outside its range.
    """

    negative_prompt: str = ""  #: what the picture should not show
    guidance_scale: float = 9.0  #: 0 .. 100; up to 1 the prompt is followed without emphasis
    noise_level: int = 20  #: 0 .. 350: how noisy the model is told the picture is; higher invents more
    mode: Mode = Mode.EXACT

    def __post_init__(self) -> None:
        if not 0 <= self.guidance_scale <= MAX_GUIDANCE_SCALE:
            raise InvalidParameterError(
                f"guidance_scale must be a number from 0 to {MAX_GUIDANCE_SCALE:g}, got {self.guidance_scale}"
            )
        if type(self.noise_level) is not int or not 0 <= self.noise_level <= MAX_NOISE_LEVEL:
            raise InvalidParameterError(
                f"noise_level must be a whole number from 0 to {MAX_NOISE_LEVEL}, got {self.noise_level}"
            )


@dataclass(frozen=True, slots=True)
class SizeRules:
    """What sizes a model's network takes; callers pad by repeating the edge and crop afterwards."""

    multiple_px: int = 1  #: both sides must be a multiple of this
    min_side_px: int = 1  #: each side must be at least this


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of weights inside an installed package, pinned by content."""

    distribution: str  #: the pip distribution that carries it
    name: str  #: its file name, unique in that distribution
    sha256: str  #: lower-case hex; loading anything else is refused


@dataclass(frozen=True, slots=True)
class EngineCard:
    """What the rest of the system may know about a model without loading it."""

    model_id: str
    title: str  #: a few words for people
    aliases: tuple[str, ...]  #: short names the command line accepts
    scale: int  #: output side / input side
    size_rules: SizeRules
    margin_px: int  #: input pixels of context beyond which a tile equals the whole picture within 1/255 in float32
    core_px: int  #: shortest side of the part of a tile that is kept, input pixels, where the picture is larger
    fixed_bytes: int  #: memory of the loaded model, no job running
    bytes_per_input_pixel: int  #: further memory per pixel of one tile (margin included) while it runs
    guided_by_prompt: bool  #: False: prompt, seed and steps change nothing
    default_steps: int  #: denoising steps when none are asked for; 0 = the model has no steps
    code_licence: str  #: SPDX id
    weights_licence: str  #: SPDX id, or "none" where there are no weights
    weights: tuple[WeightFile, ...] = ()
    running_bytes: int = 0  #: further memory while any tile runs, whatever its size
    tile_pixels: int = 0  #: the largest tile, margin included, where memory does not ask for smaller ones

    def peak_bytes(self, tile_pixels: int) -> int:
        """Return the memory that a tile of *tile_pixels* input pixels needs, the model itself included."""
        return self.fixed_bytes + self.running_bytes + tile_pixels * self.bytes_per_input_pixel

    def tile_pixels_within(self, budget_bytes: int) -> int:
        """Return the largest tile, in input pixels, that needs at most *budget_bytes*; 0 if none does."""
        return max(0, budget_bytes - self.fixed_bytes - self.running_bytes) // self.bytes_per_input_pixel


@dataclass(frozen=True, slots=True)
class EngineJob:
    """One image to upscale."""

    job_id: str
    image: Pixels8or16  #: [h, w, 3]; may be a memory map: read it by regions
    prompt: str = ""
    seed: int = 0  #: 0 .. 2^64 - 1
    num_inference_steps: int | None = None  #: None = the card's default
    precision: Precision = Precision.AUTO
    options: DiffusionOptions = field(default_factory=DiffusionOptions)


@dataclass(frozen=True, slots=True)
class RegionDone:
    """Finished output pixels. Every output pixel of a job is delivered exactly once, in any order."""

    job_id: str
    x: int  #: left edge in the output image, pixels
    y: int  #: top edge in the output image, pixels
    pixels: Pixels8or16  #: [h, w, 3], the job's dtype


@dataclass(frozen=True, slots=True)
class Progress:
    """*done* of *total* steps of the job have been taken; total never changes."""

    job_id: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class MemoryRanOut:
    """A part of the job that was planned to fit did not; what was finished before it stays."""

    job_id: str
    pixels: int  #: input pixels that were computed at once
    goes_on: bool  #: the job goes on with smaller parts; if not, JobFailed follows


@dataclass(frozen=True, slots=True)
class JobDone:
    """Every region has been delivered."""

    job_id: str
    notes: dict[str, Any] = field(default_factory=dict)  #: facts about the run: precision, tiles, warnings


@dataclass(frozen=True, slots=True)
class JobFailed:
    """The job ended without a result; the engine has forgotten it."""

    job_id: str
    error: FourfoldError


@dataclass(frozen=True, slots=True)
class Remark:
    """Something for the log that concerns no single job."""

    name: str  #: an event of the log
    facts: dict[str, Any] = field(default_factory=dict)  #: plain values


JobEvent: TypeAlias = RegionDone | Progress | MemoryRanOut | JobDone | JobFailed
EngineEvent: TypeAlias = JobEvent | Remark


class UpscaleEngine(Protocol):
    """Turns RGB arrays into larger ones, a step at a time. Lives in a device's child process; a step may block.

    One thread calls ``admit``, ``step`` and ``close``; ``cancel`` may come from another thread at any moment.
    """

    @property
    def card(self) -> EngineCard:
        """The card of the model this engine runs."""

    @property
    def busy(self) -> bool:
        """Whether a job is admitted and unfinished."""

    def admit(self, job: EngineJob) -> None:
        """Take *job*.

        Raises:
            InvalidImageError: the array is not ``[h, w, 3]`` of uint8 or uint16 with h, w >= 1.
            OutOfMemoryError: by the card's memory formula it does not fit.
        """

    def step(self) -> Sequence[EngineEvent]:
        """Do one tile or one denoising step; return what changed. With no job admitted, return nothing."""

    def cancel(self, job_id: str) -> None:
        """Forget the job, at the latest before the next step; stop a running tile where the runtime can.

        Unknown ids are fine: the job may just have ended. No event follows for a cancelled job.
        """

    def close(self) -> None:
        """Free the model's memory. Unfinished jobs are forgotten."""
