"""Upscale on this machine: one worker, whose model stays loaded, for all pictures."""

import itertools
import os
import secrets
import shutil
from asyncio import to_thread
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from fourfold.cli.batch import Upscale
from fourfold.cli.progress import OnProgress
from fourfold.cli.wishes import Wishes
from fourfold.config import Loaded, Settings
from fourfold.errors import StorageFullError

#: What a worker refuses from strangers is no danger to the owner of the machine and of the pictures.
_OWN_LIMITS: Final = {"input_pixels": 100_000_000, "side_px": 2**17}
_OWN_JOB_TIMEOUT_S: Final = 7 * 86_400.0  #: a large picture takes hours on a CPU


def for_own_pictures(loaded: Loaded) -> Settings:
    """Return the settings with the worker's limits raised that nobody has set."""
    worker = loaded.settings.worker
    raised = {name: most for name, most in _OWN_LIMITS.items() if f"worker.limits.{name}" not in loaded.origins}
    changes: dict[str, Any] = {"limits": worker.limits.model_copy(update=raised)}
    if "worker.job_timeout_s" not in loaded.origins:
        changes["job_timeout_s"] = _OWN_JOB_TIMEOUT_S
    return loaded.settings.model_copy(update={"worker": worker.model_copy(update=changes)})


@asynccontextmanager
async def upscaling_here(settings: Settings, wishes: Wishes, *, model_id: str, jobs: int) -> AsyncIterator[Upscale]:
    """Yield what upscales on this machine, *jobs* pictures at once; the worker's processes end with the block."""
    from fourfold.compose.worker import local_worker
    from fourfold.worker.orders import WorkOrder

    room = settings.worker.model_copy(update={"capacity": jobs, "codec_processes": min(jobs, os.cpu_count() or 1)})
    numbers = itertools.count()
    async with local_worker(settings.model_copy(update={"worker": room}), model_id) as worker:

        async def upscale(source: Path, target: Path, on_progress: OnProgress) -> dict[str, Any]:
            job_id = f"cli-{next(numbers)}"
            with worker.admit(job_id) as folder:
                order = WorkOrder(
                    job_id=job_id,
                    source=_plainly_named(source, folder),
                    model_id=model_id,
                    prompt=wishes.prompt,
                    seed=secrets.randbits(32) if wishes.seed is None else wishes.seed,
                    num_inference_steps=wishes.num_inference_steps,
                    options=wishes.diffusion,
                    output=wishes.output,
                    tileable=wishes.tileable,
                    safety_check=False,  # nobody's service: the picture does not leave its owner
                )
                done = await worker.upscale(order, folder, on_progress)
                await to_thread(_copy, done.path, target)
            return {
                "model_id": done.model_id,
                "seed": done.seed,
                "width": done.width,
                "height": done.height,
                "fidelity": done.fidelity.to_json(),
                "stages_s": {stage: round(seconds, 3) for stage, seconds in done.stages_s.items()},
            }

        yield upscale


def _plainly_named(path: Path, folder: Path) -> Path:
    """Return *path*, or, where its name is bytes that are no text, a link to it in *folder*: libvips takes UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        link = folder / "source"
        link.symlink_to(path.absolute())
        return link
    return path


def _copy(source: Path, target: Path) -> None:
    """Copy a finished picture into the existing file *target*. Raises: StorageFullError.

    Never makes *target*: a cancelled job may have removed it just before, and it must stay away.
    """
    try:
        with source.open("rb") as there, target.open("r+b") as here:
            shutil.copyfileobj(there, here, 2**20)
    except OSError as exc:
        raise StorageFullError(f"cannot write {target}: {exc.strerror}") from exc
