"""What passes between a worker and its device's child: orders in, events out, as plain values for a pipe."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from fourfold.engine.base import DiffusionOptions, Mode
from fourfold.imaging import Canvas, Fidelity, OutputOptions

# The child's events.
READY: Final = "ready"
LOADED: Final = "loaded"
LOAD_FAILED: Final = "load_failed"
PROGRESS: Final = "progress"
MEMORY_RAN_OUT: Final = "memory_ran_out"
DONE: Final = "done"
FAILED: Final = "failed"
PONG: Final = "pong"
REMARK: Final = "remark"  #: an engine's, for the log
# The parent's operations.
LOAD: Final = "load"
UNLOAD: Final = "unload"
RUN: Final = "run"
CANCEL: Final = "cancel"
PING: Final = "ping"  #: answered at once, whatever runs: a child that does not is stopped or frozen

#: Exit status of a child that ran out of memory in a step.
OUT_OF_MEMORY_STATUS: Final = 77


@dataclass(frozen=True, slots=True)
class DeviceJob:
    """One canvas to be upscaled onto another."""

    job_id: str
    model_id: str
    source: Canvas
    target: Canvas
    prompt: str = ""
    seed: int = 0
    num_inference_steps: int | None = None
    float32: bool = False  #: whatever the settings say
    safety_check: bool = True
    request_id: str = ""  #: the client's, for what the child says about the job
    options: DiffusionOptions = field(default_factory=DiffusionOptions)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a pipe."""
        values = {name: getattr(self, name) for name in self.__slots__}
        options = asdict(self.options) | {"mode": self.options.mode.value}
        return values | {"source": self.source.to_json(), "target": self.target.to_json(), "options": options}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Rebuild what :meth:`to_json` gave."""
        canvases = {name: Canvas.from_json(values[name]) for name in ("source", "target")}
        options = DiffusionOptions(**values["options"] | {"mode": Mode(values["options"]["mode"])})
        rebuilt: dict[str, Any] = {**canvases, "options": options}
        return cls(**{name: rebuilt.get(name, values[name]) for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class DeviceResult:
    """How a job went on the device; its pixels are on the target canvas."""

    nsfw_score: float | None  #: 0 .. 1, None where the picture was not checked
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """One picture to be upscaled, as a caller asks for it."""

    job_id: str
    source: Path  #: the encoded picture; whoever gives the order removes it
    model_id: str
    prompt: str = ""
    seed: int = 0
    num_inference_steps: int | None = None
    safety_check: bool = True
    output: OutputOptions = field(default_factory=OutputOptions)
    tileable: bool = False  #: opposite edges fit together, and are to fit in the result
    max_bits: int = 16  #: 8 for callers that know no 16-bit pictures
    measure: bool = True  #: whether the fidelity is to say how near the result stays to the input
    options: DiffusionOptions = field(default_factory=DiffusionOptions)


@dataclass(frozen=True, slots=True)
class Upscaled:
    """A finished picture."""

    path: Path  #: in the order's folder, of the format that was asked for
    model_id: str
    width: int
    height: int
    input_pixels: int
    seed: int
    nsfw_score: float | None
    stages_s: dict[str, float]  #: seconds of decode, wait, load, run, encode
    notes: dict[str, Any] = field(default_factory=dict)
    fidelity: Fidelity = field(default_factory=Fidelity)
