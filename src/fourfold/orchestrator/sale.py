"""One job from the claim to the picture: admit it, have it done, count it, in the order in which it happens."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from fourfold.errors import FourfoldError
from fourfold.orchestrator.admission import Admission, Claims
from fourfold.orchestrator.answers import WorkResult
from fourfold.orchestrator.jobs import Job, JobState
from fourfold.orchestrator.spool import JobFiles
from fourfold.orchestrator.workers import Slot, Task, Workers
from fourfold.protocol.units import Pixels, Wei
from fourfold.protocol.wire import UpscaleFields
from fourfold.telemetry import Metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sale:
    """A job that succeeded, and what it costs."""

    result: WorkResult
    input_pixels: Pixels
    fee: Wei
    duration_s: float


class Counter:
    """Where jobs are sold. Holds a worker's slot while the work is done and not a moment longer."""

    def __init__(
        self,
        admission: Admission[Slot],
        workers: Workers,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._admission = admission
        self._workers = workers
        self._metrics = metrics
        self._clock = clock

    async def sell(
        self, claims: Claims, fields: UpscaleFields, job: Job, files: JobFiles, *, request_id: str, max_bits: int = 16
    ) -> Sale:
        """Have the upload in *files* upscaled; the picture lies in ``files.result`` afterwards.

        Args: *max_bits*, of one sample of the result: what the caller can take.

        Raises: why it is refused (``Admission.admit``) or why it failed (``Workers.run``). A failed job is free.
        """
        started = self._clock()
        outcome = "cancelled"
        pixels, fee = Pixels(0), Wei(0)
        # An id that is not sold here is the caller's invention, and no label.
        known_id = fields.model_id if self._workers.serving(fields.model_id) else ""
        took_s = 0.0
        try:
            async with self._admission.admit(claims, files.upload) as admitted:
                pixels, fee = admitted.input_pixels, admitted.fee
                job.tell(JobState.RUNNING)
                log.info("job_admitted", extra=_facts(job, fields, input_pixels=pixels, fee_wei=fee))
                admitted_at = self._clock()
                task = Task(request_id, files.upload, fields, files.result, job.watched, job.progress, max_bits)
                result = await self._workers.run(admitted.slot, task)
                self._metrics.observe_stage("work", self._clock() - admitted_at, model_id=known_id)
            outcome = "succeeded"
        except FourfoldError:
            outcome = "failed" if job.has_run else "refused"
            raise
        finally:
            took_s = self._clock() - started
            self._metrics.job_ended(outcome, model_id=known_id, input_pixels=pixels, fee_wei=fee, seconds=took_s)
        facts = {"fee_wei": fee, "result_bytes": result.bytes, "duration_s": round(took_s, 3), "safety": result.safety}
        log.info("job_done", extra=_facts(job, fields, input_pixels=pixels, **facts))
        return Sale(result, pixels, fee, took_s)


def _facts(job: Job, fields: UpscaleFields, **more: object) -> dict[str, object]:
    return {"job_id": job.job_id, "model_id": fields.model_id[:200], **more}
