"""What a worker does with one order, whoever gives it: decode, wait for the device, run, encode."""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fourfold.config import LimitSettings
from fourfold.engine.base import EngineCard
from fourfold.errors import FourfoldError, NoCapacityError, ShuttingDownError, UnknownModelError
from fourfold.imaging import Canvas, Codec, Measures, describe
from fourfold.telemetry import Metrics, request_id
from fourfold.worker.orders import DeviceJob, Upscaled, WorkOrder
from fourfold.worker.process import Device, OnProgress

log = logging.getLogger(__name__)

LOADING: Final = "LOADING"
OK: Final = "OK"
IDLE: Final = "IDLE"
ERROR: Final = "ERROR"


class Worker:
    """Runs orders on one device; takes as many as run at once and a few that wait, and says no to the rest."""

    def __init__(
        self,
        *,
        device: Device,
        codec: Codec,
        cards: Mapping[str, EngineCard],
        cache: Path,
        max_orders: int,
        limits: LimitSettings,
        metrics: Metrics,
    ) -> None:
        self.cards = cards
        self.device = device
        self.metrics = metrics
        self._codec = codec
        self._cache = cache
        self._max_orders = max_orders
        self._limits = limits
        self._open = 0
        self._draining = False
        metrics.watch_jobs(in_flight=lambda: self._open, queued=lambda: max(0, self._open - device.running))
        shutil.rmtree(cache, ignore_errors=True)  # what a killed predecessor left; the folder's lock is ours
        cache.mkdir(parents=True)

    @property
    def health(self) -> str:
        """LOADING, OK (working), IDLE or ERROR (none of its models can be had)."""
        if all(model_id in self.device.failures for model_id in self.cards):
            return ERROR
        if self.device.is_loading:
            return LOADING
        return OK if self._open else IDLE

    def drain(self) -> None:
        """Take no more orders; the open ones go on."""
        self._draining = True

    @contextmanager
    def admit(self, job_id: str) -> Iterator[Path]:
        """Hold a place and a folder for one order; both are given back in every outcome.

        Raises:
            ShuttingDownError: the worker is draining.
            NoCapacityError: as many orders as it takes are open.
        """
        if self._draining:
            raise ShuttingDownError("this worker is shutting down; try another")
        if self._open >= self._max_orders:
            raise NoCapacityError(f"insufficient capacity: {self._open} orders are open; try again soon")
        self._open += 1
        folder = self._cache / job_id
        try:
            folder.mkdir(parents=True)  # somebody may have tidied up the data folder
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._open -= 1

    async def upscale(
        self, order: WorkOrder, folder: Path, on_progress: OnProgress = lambda _done, _total: None
    ) -> Upscaled:
        """Do *order* with *folder* as its working space; the result is a file in it.

        Raises: UnknownModelError; what ``Codec.open_canvas`` and ``Device.run`` raise; StorageFullError.
        """
        card = self.cards.get(order.model_id)
        if card is None:
            raise UnknownModelError(f"this worker runs {', '.join(self.cards)}; got {order.model_id!r}")
        started = time.monotonic()
        outcome, pixels = "cancelled", 0
        try:
            done = await self._upscale(order, card, folder, on_progress)
            outcome, pixels = "succeeded", done.input_pixels
        except FourfoldError as exc:
            outcome = "failed"
            log.warning("order_failed", extra={"job_id": order.job_id, "model_id": card.model_id, "code": exc.code})
            raise
        finally:
            seconds = time.monotonic() - started
            self.metrics.job_ended(outcome, model_id=card.model_id, input_pixels=pixels, seconds=seconds)
        for stage, seconds in done.stages_s.items():
            self.metrics.observe_stage(stage, seconds, model_id=card.model_id)
        facts = {f"{stage}_s": round(seconds, 3) for stage, seconds in done.stages_s.items()}
        log.info(
            "order_done",
            extra={"job_id": order.job_id, "model_id": card.model_id, "input_pixels": done.input_pixels, **facts},
        )
        return done

    async def _upscale(self, order: WorkOrder, card: EngineCard, folder: Path, on_progress: OnProgress) -> Upscaled:
        clock = time.monotonic
        started = clock()
        wrap_px = card.margin_px if order.tileable else 0
        opened = await self._codec.open_canvas(
            order.source, folder, self._limits, wrap_px=wrap_px, max_bits=order.max_bits
        )
        source, intake = opened.canvas, opened.recipe.intake
        order.output.output_size(intake.width, intake.height)  # what cannot be is refused before the work
        target = Canvas(folder / "output.raw", source.width * card.scale, source.height * card.scale, source.bits)
        decoded = clock()
        job = DeviceJob(
            job_id=order.job_id,
            model_id=card.model_id,
            source=source,
            target=target,
            prompt=order.prompt,
            seed=order.seed,
            num_inference_steps=order.num_inference_steps,
            float32=source.bits == 16,
            safety_check=order.safety_check,
            request_id=request_id.get(),
            options=order.options,
        )
        result = await self.device.run(job, on_progress)
        ran = clock()
        path = folder / f"result{order.output.file_format.suffix}"
        written = await self._codec.encode(target, opened.recipe, path, order.output)
        encoded = clock()
        measures = await self._codec.measure(source, target) if order.measure else Measures()
        target.path.unlink()  # the reply may take long to send; its pixels need not wait on disk as well
        return Upscaled(
            path=path,
            model_id=card.model_id,
            width=written.width,
            height=written.height,
            input_pixels=source.width * source.height,
            seed=order.seed,
            nsfw_score=result.nsfw_score,
            stages_s={"decode": decoded - started, "run": ran - decoded, "encode": encoded - ran},
            notes=result.notes,
            fidelity=describe(opened.recipe, written, measures, format_name=order.output.format, notes=result.notes),
        )
