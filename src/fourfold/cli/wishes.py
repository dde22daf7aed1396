"""What a user wants of every picture of one command."""

from dataclasses import dataclass, field

from fourfold.engine.base import DiffusionOptions
from fourfold.imaging import OutputOptions


@dataclass(frozen=True, slots=True)
class Wishes:
    """The same for all pictures."""

    prompt: str = ""
    seed: int | None = None  #: None: another one for each picture
    output: OutputOptions = field(default_factory=OutputOptions)
    tileable: bool = False
    num_inference_steps: int | None = None  #: None: the model's own
    diffusion: DiffusionOptions = field(default_factory=DiffusionOptions)
