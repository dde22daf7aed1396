"""The Real-ESRGAN family (RRDB and SRVGG networks) on the CPU, tile by tile."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from fourfold.engine.admission import check_image, halved, plan_job, window_of
from fourfold.engine.base import EngineCard, EngineEvent, EngineJob, Precision, RegionDone
from fourfold.engine.halving import Computation, Computer, in_parts
from fourfold.engine.inference import Inference, Tuning
from fourfold.engine.ncnn_files import read_network
from fourfold.engine.pieces import join
from fourfold.engine.settings import EngineSettings
from fourfold.engine.tiling import Tile
from fourfold.engine.turns import Turns
from fourfold.engine.weights import read_weights

#: Measured (bench/engine_cpu.py, bench/engine_memory.py); a network runs without an entry, too.
MODEL_TO_TUNING: Final[Mapping[str, Tuning]] = MappingProxyType(
    {
        "fourfold/realesrgan-x4plus": Tuning(parts=6, small_pixels=65_536, warm_pixels=4_096),
        "fourfold/realsr-df2k": Tuning(parts=6, small_pixels=65_536, warm_pixels=4_096),
        "fourfold/realesrgan-x4plus-anime": Tuning(parts=2, small_pixels=32_768, warm_pixels=4_096),
        "fourfold/realesr-animevideov3": Tuning(parts=1, small_pixels=16_384, warm_pixels=16_384),
    }
)
#: For a network that nobody has measured: neither the fastest nor the smallest way to run it, and right for any size.
UNMEASURED: Final = Tuning(parts=2, small_pixels=16_384)


def tuning_of(model_id: str) -> Tuning:
    """Return how the network of *model_id* is run best, as far as that is known."""
    return MODEL_TO_TUNING.get(model_id, UNMEASURED)


@dataclass(frozen=True, slots=True)
class _Part:
    """A tile and how it is to be computed."""

    tile: Tile
    is_tight: bool = False  #: in pieces, whatever its size

    @property
    def pixels(self) -> int:
        """Input pixels."""
        return self.tile.window.width * self.tile.window.height


class RealEsrganEngine:
    """One network of the family. bfloat16 where the processor has it and the job is 8 bit, else float32."""

    def __init__(self, card: EngineCard, *, settings: EngineSettings, tuning: Tuning | None = None) -> None:
        """Load and compile for what most jobs need; the other number type is compiled by the first job that needs it.

        Raises:
            ModelUnavailableError: the weights are missing, damaged, or not a network that OpenVINO can compile.
        """
        self._card = card
        self._settings = settings
        self._tuning = tuning or tuning_of(card.model_id)
        self._turns = Turns(stop_step=self._stop_step)
        param, weights = (read_weights(file) for file in card.weights)
        self._network = join(read_network(param, weights))
        self._is_bf16_to_inference: dict[bool, Inference] = {}
        self._inference(settings.precision is Precision.AUTO and settings.has_bf16)

    @property
    def card(self) -> EngineCard:
        """The card of the model this engine runs."""
        return self._card

    @property
    def busy(self) -> bool:
        """Whether a job is admitted and unfinished."""
        return self._turns.busy

    def admit(self, job: EngineJob) -> None:
        """Take *job*; see `UpscaleEngine.admit`. Its prompt, seed and steps change nothing.

        Also raises ModelUnavailableError, if it is the first to need its number type and that cannot be compiled.
        """
        check_image(job.image)
        height, width = job.image.shape[:2]
        is_bf16 = self._is_bf16(job)
        tiles, notes = plan_job(self._card, width, height, budget_bytes=self._settings.memory_budget_bytes)
        window = tiles[0].window
        inference = self._inference(is_bf16)
        steps = inference.steps(window.height, window.width)
        notes = {"precision": "bfloat16" if is_bf16 else "float32", **notes}
        computer = Computer(
            compute=lambda part: self._compute(job, part, inference),
            smaller=lambda part: self._smaller(part, inference),
            pixels=lambda part: part.pixels,
            give_back=inference.release,
        )
        work = in_parts(job.job_id, map(_Part, tiles), computer, steps=steps, notes=notes)
        self._turns.admit(job.job_id, work, total=len(tiles) * steps, notes=notes)

    def step(self) -> Sequence[EngineEvent]:
        """Compute one piece of one tile of the job whose turn it is."""
        return self._turns.step()

    def cancel(self, job_id: str) -> None:
        """Forget the job; what runs for it stops within some 10 ms. May come from any thread."""
        self._turns.cancel(job_id)

    def close(self) -> None:
        """Free the model's memory. Unfinished jobs are forgotten."""
        self._turns.clear()
        self._is_bf16_to_inference.clear()

    def _is_bf16(self, job: EngineJob) -> bool:
        """bfloat16 is 53 dB from float32 (x4plus, a photo): not to be seen in 8 bits, but in 16."""
        is_auto = job.precision is Precision.AUTO and self._settings.precision is Precision.AUTO
        return is_auto and self._settings.has_bf16 and job.image.dtype.itemsize == 1

    def _inference(self, is_bf16: bool) -> Inference:
        if is_bf16 not in self._is_bf16_to_inference:
            self._is_bf16_to_inference[is_bf16] = Inference(
                self._network, is_bf16=is_bf16, threads=self._settings.threads, tuning=self._tuning
            )
        return self._is_bf16_to_inference[is_bf16]

    def _compute(self, job: EngineJob, part: _Part, inference: Inference) -> Computation:
        pixels, keep = window_of(job.image, part.tile, min_side_px=self._card.size_rules.min_side_px)
        self._take_over(inference)
        done = yield from inference.run(
            pixels, keep, is_stopped=lambda: self._turns.is_step_cancelled, is_tight=part.is_tight
        )
        core, scale = part.tile.core, self._card.scale
        return [RegionDone(job.job_id, core.left * scale, core.top * scale, done)]

    def _smaller(self, part: _Part, inference: Inference) -> Sequence[_Part]:
        """In pieces first, which needs less memory than any smaller tile in one go; then in halves."""
        window = part.tile.window
        if not part.is_tight and inference.steps(window.height, window.width) == 1:
            return [replace(part, is_tight=True)]
        return [_Part(tile, is_tight=True) for tile in halved(self._card, part.tile)]

    def _take_over(self, inference: Inference) -> None:
        """Have only *inference* keep memory for its next tile."""
        for other in self._is_bf16_to_inference.values():
            if other is not inference:
                other.release()

    def _stop_step(self) -> None:
        for inference in self._is_bf16_to_inference.values():
            inference.stop()
