"""The device's child process: ``python -m fourfold.worker.child``. Steps the engines, reads its pipe between steps.

It may die at any moment, by a crash of a runtime, for want of memory or killed on purpose; its parent notices the end
of the pipe and nothing outside this process is lost.
"""

import argparse
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fourfold.engine.base import (
    EngineJob,
    JobDone,
    JobEvent,
    JobFailed,
    MemoryRanOut,
    Precision,
    Progress,
    RegionDone,
    Remark,
    UpscaleEngine,
)
from fourfold.engine.devices import ComputeDevice, pick_device, prepare_environment
from fourfold.engine.networks import LocalNetwork
from fourfold.engine.registry import is_compilable, load_engine
from fourfold.engine.settings import EngineSettings, has_bf16
from fourfold.errors import EngineCrashedError, FourfoldError, ModelUnavailableError, WorkerFailedError
from fourfold.imaging.canvas import CanvasWriter
from fourfold.imaging.files import thumbnail
from fourfold.processes.inside import Pipe, limit_memory
from fourfold.worker import orders
from fourfold.worker.loader import Arrival, Loader
from fourfold.worker.orders import DeviceJob

if TYPE_CHECKING:
    from fourfold.engine.safety_choice import Classifier

_THUMBNAIL_PX: Final = 512
#: Python, numpy, libvips and the model runtime themselves, on top of the budget for models and tiles.
_RUNTIME_BYTES: Final = 2**30
_COMPILER: Final = "inductor"
#: Rows of one network call on a GPU; strict: always the same number, as another one rounds otherwise.
_ROWS: Final = (1, 2, 4, 8)
_STRICT_ROWS: Final = (4,)
#: What an engine knows better than its card once it is loaded.
_MEMORY: Final = ("fixed_bytes", "running_bytes", "bytes_per_input_pixel")


class DeviceLoop:
    """The engines of one device and the jobs in them. Lives on the child's main thread."""

    def __init__(
        self,
        send: Callable[[Mapping[str, Any]], None],
        load: Callable[[str], UpscaleEngine],
        make_classifier: Callable[[], "Classifier"],
    ) -> None:
        self._send = send
        self.inbox: queue.SimpleQueue[Mapping[str, Any] | Arrival] = queue.SimpleQueue()
        self._loader = Loader(load, self.inbox.put)
        self._make_classifier = make_classifier
        self._classifier: Classifier | None = None
        self._engines: dict[str, UpscaleEngine] = {}
        self._jobs: dict[str, tuple[DeviceJob, CanvasWriter]] = {}
        self._cancelled: set[str] = set()

    @property
    def busy(self) -> bool:
        """Whether any engine has a job."""
        return any(engine.busy for engine in self._engines.values())

    @property
    def requests(self) -> list[str]:
        """The clients' request ids of the open jobs."""
        return [job.request_id for job, _ in self._jobs.values()]

    def interrupt(self, job_id: str) -> None:
        """Tell every engine to forget the job; may come from another thread while a step runs."""
        for engine in list(self._engines.values()):
            engine.cancel(job_id)

    def obey(self, message: Mapping[str, Any]) -> None:
        """Do what one line of the parent says."""
        operation = message["op"]
        if operation == orders.LOAD:
            self._loader.ask(message["model_id"])
        elif operation == orders.UNLOAD:
            engine = self._engines.pop(message["model_id"], None)
            if engine is not None:
                engine.close()
        elif operation == orders.RUN:
            self._admit(DeviceJob.from_json(message["job"]))
        elif operation == orders.CANCEL:
            self.interrupt(message["job_id"])
            self._forget(message["job_id"])

    def step(self) -> None:
        """Take one step of every engine that has a job.

        A MemoryError ends the process: which job asked for too much is not known, and the runtime may be damaged.
        """
        for model_id, engine in list(self._engines.items()):
            if not engine.busy:
                continue
            try:
                events = engine.step()
            except FourfoldError as exc:
                self._fail_all(model_id, exc)
                continue
            for event in events:
                if isinstance(event, Remark):
                    facts = {"model_id": model_id, **event.facts}
                    self._send({"event": orders.REMARK, "name": event.name, "facts": facts})
                else:
                    self._hand_on(event)

    def welcome(self, arrival: Arrival) -> None:
        """Take a model that the loader has done with, and say so."""
        model_id, engine, error = arrival.model_id, arrival.engine, arrival.error
        if engine is None:
            error = error or ModelUnavailableError(f"{model_id} cannot be loaded")
            self._send(
                {"event": orders.LOAD_FAILED, "model_id": model_id, "code": error.code, "message": error.message}
            )
            return
        self._engines[model_id] = engine
        memory = {name: getattr(engine.card, name) for name in _MEMORY}
        self._send({"event": orders.LOADED, "model_id": model_id, "seconds": arrival.seconds, "memory": memory})

    def _admit(self, job: DeviceJob) -> None:
        writer: CanvasWriter | None = None
        try:
            if job.safety_check:  # before the work: a picture that cannot be checked need not be made
                self._have_classifier()
            writer = job.target.write()
            self._jobs[job.job_id] = job, writer
            self._engines[job.model_id].admit(
                EngineJob(
                    job_id=job.job_id,
                    image=job.source.read(),
                    prompt=job.prompt,
                    seed=job.seed,
                    num_inference_steps=job.num_inference_steps,
                    precision=Precision.FLOAT32 if job.float32 else Precision.AUTO,
                    options=job.options,
                )
            )
        except FourfoldError as exc:
            self._fail(job.job_id, exc)
        except OSError as exc:
            self._fail(job.job_id, EngineCrashedError(f"the device cannot open the job's files: {exc.strerror}"))

    def _hand_on(self, event: JobEvent) -> None:
        known = self._jobs.get(event.job_id)
        if known is None:
            return
        job, writer = known
        try:
            if isinstance(event, RegionDone):
                writer.put(event.x, event.y, event.pixels)
            elif isinstance(event, Progress):
                self._send({"event": orders.PROGRESS, "job_id": job.job_id, "done": event.done, "total": event.total})
            elif isinstance(event, MemoryRanOut):
                facts = {"job_id": job.job_id, "pixels": event.pixels, "goes_on": event.goes_on}
                self._send({"event": orders.MEMORY_RAN_OUT, "model_id": job.model_id, **facts})
            elif isinstance(event, JobDone):
                writer.close()
                score = self._score(job) if job.safety_check else None
                self._jobs.pop(job.job_id, None)
                self._send({"event": orders.DONE, "job_id": job.job_id, "nsfw_score": score, "notes": event.notes})
            elif isinstance(event, JobFailed):
                self._fail(job.job_id, event.error)
        except FourfoldError as exc:
            self.interrupt(job.job_id)
            self._fail(job.job_id, exc)
        except OSError as exc:
            # A caller who leaves takes the job's files along, and its cancellation may lie in the inbox still.
            self._fail(job.job_id, EngineCrashedError(f"the device cannot read the job's files: {exc.strerror}"))

    def _score(self, job: DeviceJob) -> float:
        """Return how likely the finished picture is not safe for work."""
        return self._have_classifier().score(thumbnail(job.target, _THUMBNAIL_PX))

    def _have_classifier(self) -> "Classifier":
        """Return the classifier. Raises: WorkerFailedError if it cannot be had: no model is to blame for that."""
        if self._classifier is None:
            try:
                self._classifier = self._make_classifier()
            except ModelUnavailableError as exc:
                raise WorkerFailedError(f"pictures cannot be checked for safety: {exc.message}") from exc
        return self._classifier

    def _fail_all(self, model_id: str, error: FourfoldError) -> None:
        for job, _ in list(self._jobs.values()):
            if job.model_id == model_id:
                self.interrupt(job.job_id)
                self._fail(job.job_id, error)

    def _fail(self, job_id: str, error: FourfoldError) -> None:
        self._forget(job_id)
        self._send({"event": orders.FAILED, "job_id": job_id, "code": error.code, "message": error.message})

    def _forget(self, job_id: str) -> None:
        _, writer = self._jobs.pop(job_id, (None, None))
        if writer is not None:
            writer.close()


def _classifier(threads: int, folder: Path | None) -> "Classifier":
    """Load the safety classifier; imported late, so that a worker whose callers never ask for it pays nothing."""
    from fourfold.engine.safety_choice import make_classifier

    return make_classifier(threads=threads, folder=folder)


def _safety_bytes(folder: Path | None) -> int:
    """Return the memory that the safety checker will take; none where it cannot be had, which its first job is told."""
    from fourfold.engine.safety_choice import checker_bytes, locate_checker

    try:
        return checker_bytes(locate_checker(folder))
    except ModelUnavailableError:
        return 0


def run(pipe: Pipe, device: DeviceLoop) -> None:
    """Obey and step until the parent is gone, which ends the process from the reading thread."""

    def read() -> None:
        for message in pipe.receive():
            if message["op"] == orders.PING:
                pipe.send({"event": orders.PONG})
                continue
            if message["op"] == orders.CANCEL:
                device.interrupt(message["job_id"])  # at once: a running tile must not have to finish first
            device.inbox.put(message)
        Pipe.leave()  # the parent is gone; a step on the main thread may have minutes to go

    threading.Thread(target=read, name="pipe", daemon=True).start()
    while True:
        try:
            message = device.inbox.get(block=not device.busy)
        except queue.Empty:
            device.step()
            continue
        if isinstance(message, Arrival):
            device.welcome(message)
        else:
            device.obey(message)


def engine_settings(arguments: argparse.Namespace, compute: ComputeDevice, *, safety_bytes: int = 0) -> EngineSettings:
    """Return what the engines may use: of a GPU its own memory, and batches; a CPU gains nothing by batches.

    Args: *safety_bytes*, what the safety checker takes: it runs on the CPU, so nothing of a GPU's memory.
    """
    return EngineSettings(
        threads=arguments.threads,
        precision=Precision.FLOAT32 if arguments.float32 else Precision.AUTO,
        memory_budget_bytes=compute.memory_bytes or max(1, arguments.memory_bytes - safety_bytes),
        has_bf16=has_bf16(),
        device=compute.name,
        batch_rows=(1,) if not compute.is_gpu else _STRICT_ROWS if arguments.strict else _ROWS,
        model_paths={model_id: Path(path) for model_id, path in arguments.model_paths.items()},
        networks={model_id: LocalNetwork.from_json(values) for model_id, values in arguments.networks.items()},
    )


def uncompiled(arguments: argparse.Namespace, compute: ComputeDevice) -> list[str]:
    """Return the models that were named to be compiled, and cannot be on this device."""
    return [model_id for model_id in arguments.compile_models or () if not is_compilable(model_id, compute.name)]


def compiles(model_id: str, arguments: argparse.Namespace, compute: ComputeDevice) -> bool:
    """Whether the kernels of *model_id* are to be compiled: as told, else on a GPU, whose steps are quick enough."""
    told = arguments.compile_models
    return compute.is_gpu if told is None else model_id in told


def main() -> None:
    """Run the device until the parent closes the pipe or is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--model-paths", type=json.loads, default={})
    parser.add_argument("--networks", type=json.loads, default={})
    parser.add_argument("--safety-checker", type=Path)
    parser.add_argument("--compile-models", type=json.loads, default=None)
    parser.add_argument("--kernels", default=None)
    arguments = parser.parse_args()
    if arguments.kernels is not None:  # torch reads it when it first compiles
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = arguments.kernels
    prepare_environment(os.environ)
    compute = pick_device(arguments.device)
    settings = engine_settings(arguments, compute, safety_bytes=_safety_bytes(arguments.safety_checker))
    if not compute.is_gpu:  # a GPU's driver maps more than the machine has
        limit_memory(arguments.memory_bytes + _RUNTIME_BYTES)
    pipe = Pipe()
    device = DeviceLoop(
        pipe.send,
        lambda model_id: load_engine(
            model_id,
            settings=replace(settings, compiler=_COMPILER if compiles(model_id, arguments, compute) else None),
        ),
        lambda: _classifier(arguments.threads, arguments.safety_checker),
    )
    pipe.send({"event": orders.READY, "device": compute.name, "memory_bytes": settings.memory_budget_bytes})
    for model_id in uncompiled(arguments, compute):
        facts = {"model_id": model_id, "flags": ["compile"], "device": compute.name}
        pipe.send({"event": orders.REMARK, "name": "optimization_ignored", "facts": facts})
    try:
        run(pipe, device)
    except Exception as exc:  # noqa: BLE001  # the edge of the process: which request it was is known only here
        traceback.print_exc()
        print(f"device_crashed requests={','.join(device.requests)}", file=sys.stderr, flush=True)
        Pipe.leave(orders.OUT_OF_MEMORY_STATUS if isinstance(exc, MemoryError) else 1)


if __name__ == "__main__":
    main()
