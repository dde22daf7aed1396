"""Measure what the path around an engine costs: one process against a worker alone and a whole network.

The engine is a replay: it delivers a ready picture. "one process" decodes, lets the engine deliver and encodes, without
any HTTP; "worker" is the same behind the runner API; "network" is gateway, orchestrator and worker, as `fourfold up`
runs them. All in one run, so that ratios hold on a busy machine, too. Prints a table and a JSON line.

    .venv/bin/python bench/path_overhead.py [--sizes 128 512 1024] [--seconds 8] [--x4plus] [--profile]
"""

import argparse
import json
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import psutil

from fourfold.config import LimitSettings
from fourfold.engine.base import EngineJob, JobDone, RegionDone
from fourfold.engine.registry import DEFAULT_MODEL, REPLAY_MODEL, load_engine
from fourfold.engine.settings import EngineSettings
from fourfold.imaging import Canvas
from fourfold.imaging.canvas import CanvasWriter
from fourfold.imaging.files import encode, open_canvas
from fourfold.testing.processes import Running, kind_of, running
from fourfold.testing.replay_engine import ready_picture
from fourfold.testing.running_network import running_network

CLIENTS = (1, 4)
TARGET_MS, TARGET_RATIO, TARGET_X4PLUS = 100.0, 0.8, 0.05


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="*", type=int, default=[128, 512, 1024])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each cell of the table")
    parser.add_argument("--x4plus", action="store_true", help="also one picture of 512 px by the default model")
    parser.add_argument("--profile", action="store_true", help="also where the time goes, by stage and by process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), options)
    print(json.dumps(report))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the three ways on each size; return the numbers."""
    rows: list[dict[str, Any]] = []
    models = (DEFAULT_MODEL, REPLAY_MODEL) if options.x4plus else (REPLAY_MODEL,)
    (folder / "network").mkdir()
    config = folder / "worker.toml"
    config.write_text(f"[worker]\nthreads = 1\nmodels = {list(models)}\nwarm = ['{REPLAY_MODEL}']\n")
    worker_arguments = ("worker", "--config", str(config), "--data-dir", str(folder / "worker"), "--port", "0")
    print(f"{'px':>5} {'clients':>7} {'way':>12} {'median':>10} {'p90':>10} {'pictures/s':>11} {'of one process':>14}")
    with running(*worker_arguments) as worker, running_network(folder / "network", models=models) as network:
        for side_px in options.sizes:
            picture = source(folder, side_px)
            ways: dict[str, Callable[[], None]] = {
                "one process": one_process(folder, picture),
                "worker": over_http(worker.ready["url"], picture, {"Fourfold-Protocol": "1"}),
                "network": through_network(network, picture),
            }
            bound = 0.0
            for clients in CLIENTS:
                for way, work in ways.items():
                    if way == "one process" and clients > 1:
                        continue
                    row = {"px": side_px, "clients": clients, "way": way, **timed(work, clients, options.seconds)}
                    bound = bound or row["per_s"]
                    row["ratio"] = round(row["per_s"] / bound, 3)
                    rows.append(row)
                    print(
                        f"{side_px:>5} {clients:>7} {way:>12} {row['median_ms']:>7.1f} ms {row['p90_ms']:>7.1f} ms "
                        f"{row['per_s']:>11.2f} {row['ratio']:>13.2f}x",
                        flush=True,
                    )
        report = {"bench": "path_overhead", "rows": rows, "targets": verdicts(rows), "machine": platform.processor()}
        if options.x4plus:
            report["x4plus_512"] = share_of_x4plus(worker, network, source(folder, 512))
        if options.profile:
            report["stages_ms"] = stages(network)
            report["processor_ms"] = {side: processor_ms(folder, network, side) for side in options.sizes}
    for name, verdict in report["targets"].items():
        print(f"{name}: {verdict}")
    return report


def source(folder: Path, side_px: int) -> Path:
    """Return a PNG of *side_px* that compresses like a photo."""
    from PIL import Image

    path = folder / f"{side_px}.png"
    Image.fromarray(ready_picture(1024)[:side_px, :side_px]).save(path)
    return path


def one_process(folder: Path, picture: Path) -> Callable[[], None]:
    """Return the bound: decode, engine and encode, one after the other, with the same code as the roles."""
    engine = load_engine(REPLAY_MODEL, settings=EngineSettings(threads=1, memory_budget_bytes=2**30))

    def work() -> None:
        opened = open_canvas(picture, folder, LimitSettings())
        target = Canvas(folder / "output.raw", opened.canvas.width * 4, opened.canvas.height * 4, opened.canvas.bits)
        writer: CanvasWriter = target.write()
        engine.admit(EngineJob("job", opened.canvas.read()))
        while engine.busy:
            for event in engine.step():
                if isinstance(event, RegionDone):
                    writer.put(event.x, event.y, event.pixels)
                elif isinstance(event, JobDone):
                    writer.close()
        encode(target, opened.recipe, folder / "result.png")

    return work


def over_http(url: str, picture: Path, headers: Mapping[str, str], model_id: str = REPLAY_MODEL) -> Callable[[], None]:
    """Return one request to ``/upscale`` that reads the whole answer."""
    data = {"prompt": "", "safety_check": "false", "model_id": model_id}
    content = picture.read_bytes()
    local = threading.local()

    def work() -> None:
        if not hasattr(local, "client"):
            local.client = httpx2.Client(timeout=600, trust_env=False)
        reply = local.client.post(f"{url}/upscale", data=data, files={"image": ("a.png", content)}, headers=headers)
        assert reply.status_code == 200, reply.text
        if reply.headers["Content-Type"] == "application/json":
            fetched = local.client.get(reply.json()["images"][0]["url"])
            assert fetched.status_code == 200

    return work


def through_network(network: Running, picture: Path, model_id: str = REPLAY_MODEL) -> Callable[[], None]:
    """Return one request to the gateway and the fetch of its result."""
    return over_http(network.ready["gateway"], picture, {}, model_id)


def timed(work: Callable[[], None], clients: int, seconds: float) -> dict[str, float]:
    """Do *work* from *clients* threads for *seconds*; return times and throughput."""
    work()
    times: list[float] = []
    end = time.monotonic() + seconds

    def client() -> None:
        while time.monotonic() < end:
            began = time.perf_counter()
            work()
            times.append((time.perf_counter() - began) * 1000)

    began = time.monotonic()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.monotonic() - began
    times.sort()
    p90 = times[int(len(times) * 0.9)] if len(times) > 1 else times[0]
    return {
        "median_ms": round(statistics.median(times), 1),
        "p90_ms": round(p90, 1),
        "per_s": round(len(times) / took_s, 3),
    }


def verdicts(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Compare with the targets."""

    def find(side_px: int, clients: int, way: str) -> dict[str, Any] | None:
        return next((r for r in rows if (r["px"], r["clients"], r["way"]) == (side_px, clients, way)), None)

    found = {}
    one, whole = find(512, 1, "one process"), find(512, 1, "network")
    if one and whole:
        more_ms = whole["median_ms"] - one["median_ms"]
        found["network at 512 px"] = f"{more_ms:.0f} ms more; target {TARGET_MS:.0f}: {_met(more_ms <= TARGET_MS)}"
    for side_px in sorted({row["px"] for row in rows}):
        if whole := find(side_px, 4, "network"):
            ratio = whole["ratio"]
            found[f"4 clients at {side_px} px"] = f"{ratio:.2f} of one process; target {TARGET_RATIO}: " + _met(
                ratio >= TARGET_RATIO
            )
    return found


def _met(is_met: bool) -> str:
    return "met" if is_met else "NOT met"


def share_of_x4plus(worker: Running, network: Running, picture: Path) -> dict[str, float | str]:
    """Return what the network adds to one picture by the default model, relative to a worker alone."""
    ways = {
        "worker": over_http(worker.ready["url"], picture, {"Fourfold-Protocol": "1"}, DEFAULT_MODEL),
        "network": through_network(network, picture, DEFAULT_MODEL),
    }
    took: dict[str, float | str] = {}
    for name, work in ways.items():
        work()  # loads the model
        began = time.perf_counter()
        work()
        took[f"{name}_s"] = round(time.perf_counter() - began, 2)
    share = float(took["network_s"]) / float(took["worker_s"]) - 1
    took["more"] = round(share, 4)
    took["verdict"] = f"target {TARGET_X4PLUS:.0%}: {_met(share <= TARGET_X4PLUS)}"
    print(f"x4plus at 512 px: {took}")
    return took


def stages(network: Running) -> dict[str, float]:
    """Return the mean of each of the gateway's stages over all pictures of the run, milliseconds."""
    text = httpx2.get(f"{network.ready['gateway']}/metrics").text
    sums = dict(_samples(text, "fourfold_stage_seconds_sum"))
    counts = dict(_samples(text, "fourfold_stage_seconds_count"))
    means = {name: round(1000 * total / counts[name], 1) for name, total in sums.items() if counts.get(name)}
    for name, mean in means.items():
        print(f"gateway {name}: {mean} ms")
    return means


def processor_ms(folder: Path, network: Running, side_px: int, *, pictures: int = 30) -> dict[str, float]:
    """Return the processor time of one picture in each kind of process, milliseconds: other work hardly changes it."""
    picture = source(folder, side_px)
    alone, together = one_process(folder, picture), through_network(network, picture)
    for work in (alone, together):
        work()
    began = time.process_time()
    for _ in range(pictures):
        alone()
    spent = {"one process": time.process_time() - began}
    before, began = _processor_s(network), time.process_time()
    for _ in range(pictures):
        together()
    spent["client"] = time.process_time() - began
    spent |= {kind: seconds - before[kind] for kind, seconds in _processor_s(network).items()}
    means = {kind: round(seconds / pictures * 1000, 1) for kind, seconds in spent.items()}
    means["network, client included"] = round(sum(means.values()) - means["one process"], 1)
    print(f"{side_px} px, processor ms of a picture: {means}")
    return means


def _processor_s(network: Running) -> dict[str, float]:
    """Return the seconds that each kind of process has computed so far; a codec counts for the role that owns it."""
    seconds: dict[str, float] = {}
    for process in [psutil.Process(network.process.pid), *network.descendants()]:
        kind = kind_of(process)
        if kind == "codec":
            kind = f"{kind_of(process.parent() or process)}'s codec"
        times = process.cpu_times()
        seconds[kind] = seconds.get(kind, 0.0) + times.user + times.system
    return seconds


def _samples(text: str, metric: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        if line.startswith(metric + "{"):
            labels, _, value = line.rpartition(" ")
            yield labels.partition('stage="')[2].partition('"')[0], float(value)


if __name__ == "__main__":
    main()
