"""Look at this machine with a worker's, an orchestrator's and a gateway's needs in mind; change nothing."""

import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Final

from fourfold.compose.common import loadable_cards, own_networks
from fourfold.compose.limits import usable_cores, usable_memory_bytes
from fourfold.compose.models import sold_models
from fourfold.compose.own_worker import own_settings
from fourfold.compose.worker import device_limits, worker_cards
from fourfold.config import Settings
from fourfold.engine.base import EngineCard
from fourfold.engine.registry import cards, why_not_loadable
from fourfold.engine.safety_choice import locate_checker
from fourfold.engine.settings import has_bf16
from fourfold.engine.weights import read_weights
from fourfold.errors import ConfigError, FourfoldError
from fourfold.orchestrator.models import own_models
from fourfold.processes.sockets import listen

_NEEDED_PYTHON: Final = (3, 11)
_FREE_BYTES: Final = 2**30
_GIB: Final = 2**30
_NVIDIA_S: Final = 10

Verdict = Enum("Verdict", {"OK": "ok", "WARN": "warn", "FAIL": "fail"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    verdict: Verdict
    found: str  #: what is there
    advice: str = ""  #: what to do; empty where all is well


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield what was found, one subject at a time."""
    yield _python()
    yield _cores(settings)
    yield _bf16()
    yield from _memory(settings)
    yield from _gpu(settings.worker.device)
    yield _port("gateway", settings.gateway.host, settings.gateway.port)
    yield _port("orchestrator", settings.orchestrator.host, settings.orchestrator.port)
    yield _disk(settings.data_dir)
    yield from _offers(settings)
    for card in loadable_cards(settings.worker).values():
        yield _weights(card)
    yield _safety(settings.worker.safety_checker)


def _python() -> Finding:
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < _NEEDED_PYTHON:
        return Finding("python", Verdict.FAIL, found, "install Python 3.11 or later")
    return Finding("python", Verdict.OK, found)


def _cores(settings: Settings) -> Finding:
    cores, threads = usable_cores(), settings.worker.threads
    found = f"{cores} usable cores, the engine takes {threads or cores}"
    if threads > cores:
        return Finding("cores", Verdict.WARN, found, f"set worker.threads to {cores} or less: more only get in the way")
    return Finding("cores", Verdict.OK, found)


def _bf16() -> Finding:
    if has_bf16():
        return Finding("bf16", Verdict.OK, "the processor multiplies bfloat16: about twice as fast")
    return Finding("bf16", Verdict.OK, "the processor has no bfloat16: models run in float32")


def _memory(settings: Settings) -> Iterator[Finding]:
    budget = device_limits(settings.worker).memory_bytes
    total = usable_memory_bytes()
    found = f"{total / _GIB:.1f} GiB, of which a device may use {budget / _GIB:.1f}"
    if budget > total:
        yield Finding("memory", Verdict.FAIL, found, "lower worker.memory_bytes")
    else:
        yield Finding("memory", Verdict.OK, found)
    for card in loadable_cards(settings.worker).values():
        needed = card.peak_bytes((card.core_px + 2 * card.margin_px) ** 2)
        if needed > budget:
            advice = "raise worker.memory_bytes, or leave the model out of worker.models"
            yield Finding(f"memory for {card.model_id}", Verdict.WARN, f"needs {needed / _GIB:.1f} GiB", advice)


def _gpu(wanted: str) -> Iterator[Finding]:
    """Look at what the driver says; torch is not loaded for it, as that takes seconds."""
    tool = shutil.which("nvidia-smi")
    asked = f"worker.device is {wanted!r}"
    if tool is None and wanted.startswith("cuda"):
        yield Finding(
            "gpu", Verdict.FAIL, f"{asked}, none seen (no nvidia-smi)", "install the driver, or set it to auto"
        )
        return
    if tool is None:
        yield Finding("gpu", Verdict.OK, "none seen (no nvidia-smi): the models run on the processor")
        return
    command = [tool, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_S, check=True).stdout
    except (OSError, subprocess.SubprocessError) as exc:
        yield Finding("gpu", Verdict.WARN, f"nvidia-smi failed: {type(exc).__name__}", "look at the driver")
        return
    yield from _torch(wanted)
    found_gpus = lines.strip().splitlines()
    if wanted.startswith("cuda") and int(wanted.partition(":")[2] or 0) >= len(found_gpus):
        yield Finding(
            "gpu", Verdict.FAIL, f"{asked}, of {len(found_gpus)} seen", "name one that is there, or set it to auto"
        )
    for number, line in enumerate(found_gpus):
        name, total, free = ([part.strip() for part in line.split(",")] + ["", ""])[:3]
        if not total.isdecimal():
            yield Finding(f"gpu {number}", Verdict.WARN, f"nvidia-smi says {line[:80]!r}", "look at the driver")
            continue
        yield Finding(f"gpu {number}", Verdict.OK, f"{name}, {free} of {total} MiB free")
        for card in cards().values():
            if card.fixed_bytes / 2**20 > float(total):
                found = f"{card.model_id} needs {card.fixed_bytes / _GIB:.1f} GiB of it"
                yield Finding(f"gpu {number}", Verdict.WARN, found, "leave the model to a larger device")


def _torch(wanted: str) -> Iterator[Finding]:
    """Tell whether what is installed can compute on the GPU that is there."""
    verdict = Verdict.FAIL if wanted.startswith("cuda") else Verdict.WARN
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        advice = "install torch for this GPU, then: pip install 'fourfold[diffusion]'"
        yield Finding("torch", verdict, "not installed: the GPU does nothing", advice)
        return
    if version.endswith("+cpu"):
        yield Finding(
            "torch", verdict, f"{version}, a build for processors alone", "install a build of torch for this GPU"
        )
    else:
        yield Finding("torch", Verdict.OK, version)


def _offers(settings: Settings) -> Iterator[Finding]:
    """Look at what is sold; what cannot be loaded yet stops nothing from starting."""
    try:
        models = sold_models(settings.orchestrator.models, settings.worker)
        worker_cards(settings.worker)
        own = own_models(models)
        worker = own_settings(settings.worker, own) if own else settings.worker
        missing = {
            model_id: why
            for model_id in worker_cards(worker)
            if (why := why_not_loadable(model_id, worker.model_paths, own_networks(worker))) is not None
        }
    except ConfigError as exc:
        yield Finding("models", Verdict.FAIL, exc.message, "put it right, else nothing starts")
        return
    ids = [model_id for model_id in dict.fromkeys(model.model_id for model in models) if model_id not in missing]
    yield Finding("models", Verdict.OK, f"{len(ids)} on sale: {', '.join(ids) or 'none'}")
    for model_id, why in missing.items():
        yield Finding(model_id, Verdict.WARN, why, "put it right: the model is not offered before it can be loaded")


def _port(role: str, host: str, port: int) -> Finding:
    subject = f"{role}'s port"
    try:
        listen(host, port).close()
    except ConfigError as exc:
        return Finding(subject, Verdict.WARN, str(exc), f"stop what uses it, or set {role}.port")
    return Finding(subject, Verdict.OK, f"{host}:{port} is free")


def _disk(folder: Path) -> Finding:
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        tempfile.TemporaryFile(dir=there).close()  # not `os.access`: root may write everywhere, and cannot everywhere
    except OSError as exc:
        problem = f"{folder} cannot be written: {exc.strerror}"
        return Finding("disk", Verdict.FAIL, problem, "choose another with --data-dir, or put its owner right")
    found = f"{folder}: {free / _GIB:.1f} GiB free"
    if free < _FREE_BYTES:
        return Finding(
            "disk", Verdict.WARN, found, "make room: one large result takes hundreds of MiB while it is made"
        )
    return Finding("disk", Verdict.OK, found)


def _safety(folder: Path | None) -> Finding:
    try:
        weights = locate_checker(folder)
    except FourfoldError as exc:
        return Finding("safety", Verdict.FAIL, exc.message, "mend the folder, or leave worker.safety_checker out")
    found = "the embedded open_nsfw" if weights is None else f"Stable Diffusion's checker in {weights.parent}"
    return Finding("safety", Verdict.OK, f"pictures are checked by {found}")


def _weights(card: EngineCard) -> Finding:
    try:
        for file in card.weights:
            read_weights(file)
    except FourfoldError as exc:
        return Finding(card.model_id, Verdict.FAIL, exc.message, "install fourfold again")
    return Finding(card.model_id, Verdict.OK, "its weights are the pinned ones" if card.weights else "needs no weights")
