"""Log events and metrics. Always callable: with nobody listening they cost next to nothing.

One event per state change, ``log.info("job_done", extra={...})``; names are fixed and listed in ``docs/operate.md``.
Never logged: prompts, images, keys, tokens, full result URLs.
"""

import contextlib
import contextvars
import logging
import sys
import time
from collections import Counter as Sums
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import psutil
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pythonjsonlogger.json import JsonFormatter

from fourfold import __version__, errors

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

#: The id that one request keeps from client to child; set where the request enters a process.
request_id: Final[contextvars.ContextVar[str]] = contextvars.ContextVar("request_id", default="")

#: The media type of what :meth:`Metrics.exposition` returns.
EXPOSITION_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

#: Upper bounds of the buckets of every duration, seconds.
_DURATION_BUCKETS_S: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

#: Most models that a role counts apart; those beyond, which only an orchestrator gone mad would offer, count as one.
_MOST_MODELS: Final = 100
_FURTHER_MODELS: Final = "other"

#: What each role starts again when it dies.
_ROLE_TO_CHILDREN: Final = {"gateway": ("codec",), "orchestrator": ("codec", "worker"), "worker": ("codec", "device")}

#: Modules that run as children of a role, and what they are called.
_CHILDREN: Final = {"fourfold.worker.child": "device", "fourfold.imaging.server": "codec"}

_RESERVED: Final = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "asctime", "taskName"}


class _RequestId(logging.Filter):
    """Puts the current request's id on every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add ``request_id`` where one is set and none was given."""
        if request_id.get() and not hasattr(record, "request_id"):
            record.request_id = request_id.get()
        return True


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of asyncio tells anything: that a peer closed while it was written to does not."""
    return record.msg != "SSL connection is closed"


class _Console(logging.Formatter):
    """One line for people: time, level, role, event, then the facts as key=value."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback below it where there is one."""
        facts = " ".join(f"{k}={v}" for k, v in vars(record).items() if k not in _RESERVED)
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():7} {self._role:12} "
        line += f"{record.getMessage()} {facts}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up_logging(role: str, *, level: str = "info", style: str = "console") -> None:
    """Send this process's log to standard error, for people (*style* "console") or as JSON lines ("json")."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_RequestId())
    if style == "json":
        fields = ["levelname", "name", "message"]
        renamed = {"levelname": "level", "message": "event", "name": "logger"}
        handler.setFormatter(JsonFormatter(fields, timestamp=True, rename_fields=renamed, static_fields={"role": role}))
    else:
        handler.setFormatter(_Console(role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("fourfold").setLevel(level.upper())
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what its exceptions tell the sender
    logging.getLogger("asyncio").addFilter(_is_news)


class _Processes(Collector):
    """Memory and open files of this process and of its children that are no role of their own, read when asked for."""

    def __init__(self, role: str) -> None:
        self._role = role

    def describe(self) -> Iterable[Metric]:
        """Name the metrics without looking."""
        return self._families()

    def collect(self) -> Iterable[Metric]:
        """Look at the processes; those of one kind count together."""
        families = memory, files, most_files = self._families()
        us = psutil.Process()
        kind_to_bytes = Sums({"own": us.memory_info().rss})
        for child in us.children():
            with contextlib.suppress(psutil.Error):  # it has just ended
                kind = next((name for module, name in _CHILDREN.items() if module in child.cmdline()), None)
                if kind is not None:
                    kind_to_bytes[kind] += child.memory_info().rss
        for kind, resident in kind_to_bytes.items():
            memory.add_metric([self._role, kind], resident)
        if hasattr(us, "num_fds"):  # not on Windows
            files.add_metric([self._role], us.num_fds())
        if resource is not None:
            most_files.add_metric([self._role], resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        return families

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
        text = "Resident memory of the role's own process and of its device and codec processes"
        return (
            GaugeMetricFamily("fourfold_process_memory_bytes", text, labels=["role", "process"]),
            GaugeMetricFamily("fourfold_open_files", "Files and sockets that the role has open", labels=["role"]),
            GaugeMetricFamily("fourfold_open_files_limit", "How many the system lets it have open", labels=["role"]),
        )


class Metrics:
    """The counters of one role, in a registry of their own so that two roles can live in one process.

    Labels are bounded: roles, outcomes, codes, blames, stages and processes are ours, and of models only those that are
    sold or offered, ``_MOST_MODELS`` of them. What can be known beforehand starts at 0: Prometheus sees no increase in
    a series that begins with its first event.
    """

    def __init__(self, role: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of no use to Prometheus
        self.registry = CollectorRegistry()
        self.role = role
        self._models: set[str] = set()
        self.jobs = self._counter("jobs", "Jobs that ended, by outcome", "model_id", "outcome")
        self.errors = self._counter("errors", "Failures by code and blame", "code", "blame")
        self.in_flight = self._gauge("jobs_in_flight", "Jobs open now")
        self.queued = self._gauge("jobs_queued", "Open jobs that wait for their turn")
        self.peers = self._gauge("peers", "Orchestrators of a gateway, workers of an orchestrator, by state", "state")
        self.input_pixels = self._counter("input_pixels", "Input pixels of finished jobs", "model_id")
        self.fees = self._counter("fees_wei", "Fees of finished jobs", "model_id")
        self.job_s = self._histogram("job_seconds", "Time of a finished job, from its arrival to its end", "model_id")
        self.stage_s = self._histogram("stage_seconds", "Time of one stage of a job", "stage", "model_id")
        self.memory_plan_errors = self._counter(
            "memory_plan_errors",
            "Parts of pictures that ran out of memory although they were planned to fit",
            "model_id",
        )
        self.models = self._gauge("model_available", "Whether a model that is sold can be had: 1, or 0", "model_id")
        self.restarts = self._counter("process_restarts", "Processes started again after they died", "process")
        started = self._gauge("start_time_seconds", "When the role started, in seconds since the epoch")
        build = self._gauge("build_info", "1, with the version that runs", "version")

        started.labels(role).set(time.time())
        build.labels(role, __version__).set(1)
        self.in_flight.labels(role)
        self.queued.labels(role)
        for process in _ROLE_TO_CHILDREN.get(role, ()):
            self.restarts.labels(role, process)
        for error in errors.walk():
            self.errors.labels(role, error.code, error.blame.name.lower())
        self.registry.register(_Processes(role))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"fourfold_{name}", text, ["role", *labels], registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"fourfold_{name}", text, ["role", *labels], registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(
            f"fourfold_{name}", text, ["role", *labels], buckets=_DURATION_BUCKETS_S, registry=self.registry
        )

    def watch_jobs(self, *, in_flight: Callable[[], int], queued: Callable[[], int]) -> None:
        """Tell how many jobs are open, and how many of them wait, asked for anew each time."""
        self.in_flight.labels(self.role).set_function(in_flight)
        self.queued.labels(self.role).set_function(queued)

    def watch_peers(self, *, up: Callable[[], int], down: Callable[[], int]) -> None:
        """Tell how many that work for this role can take jobs, and how many cannot, asked for anew each time."""
        self.peers.labels(self.role, "up").set_function(up)
        self.peers.labels(self.role, "down").set_function(down)

    def restarted(self, process: str) -> None:
        """Record that a *process* of ours (a role, "device", "codec") was started again."""
        self.restarts.labels(self.role, process).inc()

    def runs_models(self, model_ids: Iterable[str]) -> None:
        """Start the counters of these models at 0."""
        for model_id in model_ids:
            self.memory_plan_errors.labels(self.role, self._model(model_id))

    def watch_models(self, model_ids: Iterable[str], *, is_available: Callable[[str], bool]) -> None:
        """Tell which of these models can be had, asked for anew each time."""
        for model_id in model_ids:
            self.models.labels(self.role, self._model(model_id)).set_function(partial(is_available, model_id))

    def memory_plan_failed(self, model_id: str) -> None:
        """Record that a part of a picture ran out of memory although it was planned to fit."""
        self.memory_plan_errors.labels(self.role, self._model(model_id)).inc()

    def observe_stage(self, stage: str, seconds: float, *, model_id: str = "") -> None:
        """Record how long *stage* of one job took."""
        self.stage_s.labels(self.role, stage, self._model(model_id)).observe(seconds)

    def count_error(self, error: errors.FourfoldError) -> None:
        """Record one failure."""
        self.count_refusal(error.code, error.blame)

    def count_refusal(self, code: str, blame: errors.Blame) -> None:
        """Record one failure that no FourfoldError stands for."""
        self.errors.labels(self.role, code, blame.name.lower()).inc()

    def job_ended(
        self, outcome: str, *, model_id: str = "", input_pixels: int = 0, fee_wei: int = 0, seconds: float = 0.0
    ) -> None:
        """Record the end of one job; pixels, fee and time count only where it succeeded."""
        model = self._model(model_id)
        self.jobs.labels(self.role, model, outcome).inc()
        if outcome == "succeeded":
            self.input_pixels.labels(self.role, model).inc(input_pixels)
            self.fees.labels(self.role, model).inc(fee_wei)
            self.job_s.labels(self.role, model).observe(seconds)

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _model(self, model_id: str) -> str:
        """Return what to count *model_id* under."""
        if model_id not in self._models and len(self._models) >= _MOST_MODELS:
            return _FURTHER_MODELS
        self._models.add(model_id)
        return model_id
