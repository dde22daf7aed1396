"""What is counted, and under how few labels."""

import subprocess
import sys

import psutil
from prometheus_client.parser import text_string_to_metric_families

from fourfold import errors, telemetry
from fourfold.telemetry import Metrics


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return what is told, each series once."""
    told = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in told, f"{key} is told twice"
            told[key] = sample.value
    return told


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Return one series, None where it does not exist."""
    return samples(metrics).get((f"fourfold_{name}", frozenset({"role": metrics.role, **labels}.items())))


def test_what_is_known_beforehand_starts_at_zero() -> None:
    """Prometheus sees no increase in a series that begins with its first event."""
    metrics = Metrics("worker")

    for cls in errors.walk():
        assert value(metrics, "errors_total", code=cls.code, blame=cls.blame.name.lower()) == 0
    assert value(metrics, "process_restarts_total", process="device") == 0
    assert value(metrics, "process_restarts_total", process="codec") == 0
    assert value(metrics, "jobs_in_flight") == value(metrics, "jobs_queued") == 0


def test_models_beyond_the_bound_count_as_one() -> None:
    """An orchestrator that offers a new name every minute cannot fill anybody's Prometheus."""
    metrics = Metrics("gateway")

    for number in range(300):
        metrics.job_ended("succeeded", model_id=f"made-up/{number}", input_pixels=1)
        metrics.observe_stage("submit", 0.1, model_id=f"made-up/{number}")

    pixels = {key: told for key, told in samples(metrics).items() if key[0] == "fourfold_input_pixels_total"}
    assert len(pixels) == 101 and sum(pixels.values()) == 300
    assert value(metrics, "input_pixels_total", model_id="made-up/0") == 1
    assert value(metrics, "input_pixels_total", model_id="other") == 200


def test_only_a_finished_job_has_pixels_a_fee_and_a_time() -> None:
    """A failed one is free."""
    metrics = Metrics("gateway")

    metrics.job_ended("failed", model_id="m", input_pixels=5, fee_wei=7, seconds=2)
    assert value(metrics, "fees_wei_total", model_id="m") is None
    metrics.job_ended("succeeded", model_id="m", input_pixels=5, fee_wei=7, seconds=2)

    assert value(metrics, "jobs_total", model_id="m", outcome="failed") == 1
    assert value(metrics, "fees_wei_total", model_id="m") == 7
    assert value(metrics, "job_seconds_sum", model_id="m") == 2


def test_what_is_watched_is_asked_for_anew() -> None:
    """A gauge that had to be told of every change would be wrong after the first one forgotten."""
    metrics, jobs, up = Metrics("orchestrator"), [1, 2, 3], [1]
    metrics.watch_jobs(in_flight=lambda: len(jobs), queued=lambda: len(jobs) - 1)
    metrics.watch_peers(up=lambda: len(up), down=lambda: 0)
    jobs.pop()
    up.clear()

    assert (value(metrics, "jobs_in_flight"), value(metrics, "jobs_queued")) == (2, 1)
    assert (value(metrics, "peers", state="up"), value(metrics, "peers", state="down")) == (0, 0)


def test_several_processes_of_a_kind_are_one_series() -> None:
    """Prometheus refuses a page that tells a series twice."""
    idle = [sys.executable, "-c", "input()", "fourfold.imaging.server"]
    codecs = [subprocess.Popen(idle, stdin=subprocess.PIPE) for _ in range(2)]
    try:
        told = value(Metrics("gateway"), "process_memory_bytes", process="codec")
        each = [psutil.Process(codec.pid).memory_info().rss for codec in codecs]
    finally:
        for codec in codecs:
            codec.communicate()

    assert told is not None and told > max(each) > 0


def test_the_page_says_what_runs_since_when_and_with_how_many_files() -> None:
    """For those who look after it."""
    metrics = Metrics("gateway")

    assert value(metrics, "build_info", version=telemetry.__version__) == 1
    started = value(metrics, "start_time_seconds")
    assert started is not None and started >= psutil.boot_time()
    files, limit = value(metrics, "open_files"), value(metrics, "open_files_limit")
    assert files is not None and limit is not None and 0 < files < limit


def test_libraries_words_that_tell_nothing_are_not_logged() -> None:
    """A damaged form and a peer that left are answered and counted; docs/operate.md lists what is logged."""
    script = """
import logging
from fourfold.telemetry import set_up_logging
from python_multipart.multipart import MultipartParser
set_up_logging("gateway")
try:
    MultipartParser(b"x").write(b"no boundary")
except ValueError:
    pass
logging.getLogger("asyncio").warning("SSL connection is closed")
logging.getLogger("asyncio").warning("socket.send() raised exception.")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert [line.split("gateway", 1)[1].strip() for line in done.stderr.splitlines()] == [
        "socket.send() raised exception."
    ]
