"""Log events and metrics. Always callable: with nobody listening they cost next to nothing.

One event per state change, ``log.info("job_done", extra={...})``; names are fixed and listed in ``docs/operate.md``.
Never logged: prompts, images, keys, tokens, full result URLs.
"""

import contextlib
import contextvars
import logging
import sys
from collections.abc import Iterable
from typing import Final

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pythonjsonlogger.json import JsonFormatter

#: The id that one request keeps from client to child; set where the request enters a process.
request_id: Final[contextvars.ContextVar[str]] = contextvars.ContextVar("request_id", default="")

#: Upper bounds of the buckets of every duration, seconds.
_DURATION_BUCKETS_S: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

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


class _Processes(Collector):
    """Memory and open files of this process and of its children that are no role of their own, read when asked for."""

    def __init__(self, role: str) -> None:
        self._role = role

    def describe(self) -> Iterable[Metric]:
        """Name the metrics without looking."""
        return self._families()

    def collect(self) -> Iterable[Metric]:
        """Look at the processes."""
        memory, files = families = self._families()
        us = psutil.Process()
        memory.add_metric([self._role, "own"], us.memory_info().rss)
        if hasattr(us, "num_fds"):  # not on Windows
            files.add_metric([self._role], us.num_fds())
        for child in us.children():
            with contextlib.suppress(psutil.Error):  # it has just ended
                kind = next((name for module, name in _CHILDREN.items() if module in child.cmdline()), None)
                if kind is not None:
                    memory.add_metric([self._role, kind], child.memory_info().rss)
        return families

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        text = "Resident memory of the role's own process and of its device and codec processes"
        return (
            GaugeMetricFamily("fourfold_process_memory_bytes", text, labels=["role", "process"]),
            GaugeMetricFamily("fourfold_open_files", "Files and sockets that the role has open", labels=["role"]),
        )


class Metrics:
    """The counters of one role, in a registry of their own so that two roles can live in one process."""

    def __init__(self, role: str) -> None:
        self.registry = CollectorRegistry()
        self.role = role
        self.jobs = Counter(
            "fourfold_jobs", "Jobs that ended, by outcome", ["role", "model_id", "outcome"], registry=self.registry
        )
        self.errors = Counter(
            "fourfold_errors", "Failures by code and blame", ["role", "code", "blame"], registry=self.registry
        )
        self.in_flight = Gauge("fourfold_jobs_in_flight", "Jobs open now", ["role"], registry=self.registry)
        self.queued = Gauge(
            "fourfold_jobs_queued", "Open jobs that wait for their turn", ["role"], registry=self.registry
        )
        self.input_pixels = Counter(
            "fourfold_input_pixels", "Input pixels of finished jobs", ["role", "model_id"], registry=self.registry
        )
        self.fees = Counter("fourfold_fees_wei", "Fees of finished jobs", ["role", "model_id"], registry=self.registry)
        self.stage_s = Histogram(
            "fourfold_stage_seconds",
            "Time of one stage of a job",
            ["role", "stage", "model_id"],
            buckets=_DURATION_BUCKETS_S,
            registry=self.registry,
        )
        self.restarts = Counter(
            "fourfold_process_restarts",
            "Processes started again after they died",
            ["role", "process"],
            registry=self.registry,
        )
        self.memory_plan_errors = Counter(
            "fourfold_memory_plan_errors",
            "Parts of pictures that ran out of memory although they were planned to fit",
            ["role", "model_id"],
            registry=self.registry,
        )
        self.registry.register(_Processes(role))

    def restarted(self, process: str) -> None:
        """Record that a *process* of ours (a role, "device", "codec") was started again."""
        self.restarts.labels(self.role, process).inc()

    def memory_plan_failed(self, model_id: str) -> None:
        """Record that a part of a picture ran out of memory although it was planned to fit."""
        self.memory_plan_errors.labels(self.role, model_id).inc()

    def observe_stage(self, stage: str, seconds: float, *, model_id: str = "") -> None:
        """Record how long *stage* of one job took."""
        self.stage_s.labels(self.role, stage, model_id).observe(seconds)

    def count_error(self, code: str, blame: str) -> None:
        """Record one failure."""
        self.errors.labels(self.role, code, blame).inc()

    def job_ended(self, outcome: str, *, model_id: str = "", input_pixels: int = 0, fee_wei: int = 0) -> None:
        """Record the end of one job; pixels and fee count only where it succeeded."""
        self.jobs.labels(self.role, model_id, outcome).inc()
        if outcome == "succeeded":
            self.input_pixels.labels(self.role, model_id).inc(input_pixels)
            self.fees.labels(self.role, model_id).inc(fee_wei)

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
