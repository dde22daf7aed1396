"""The worker that an orchestrator owns; a module of its own, so that its start need not wait for the orchestrator's."""

import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from fourfold.config import NetworkSettings, Settings, WorkerSettings, to_json
from fourfold.errors import ConfigError
from fourfold.orchestrator.models import ModelConfig
from fourfold.processes.role import RoleProcess
from fourfold.protocol.wire import PIPELINE
from fourfold.telemetry import Metrics

log = logging.getLogger(__name__)

_COMPILES: Final = "SFAST"  #: Livepeer's name, after the compiler that its runner has


@dataclass(frozen=True, slots=True)
class OwnWorker:
    """The worker process that an orchestrator owns, as an endpoint: on loopback, with a token nobody else knows."""

    process: RoleProcess
    token: str
    models: tuple[str, ...]
    capacity: int  #: orders that run or wait in it

    @property
    def url(self) -> str | None:
        """Where it listens now; None while it is down or starting."""
        return self.process.ready["url"] if self.process.ready is not None else None


@asynccontextmanager
async def own_worker(settings: Settings, models: Sequence[ModelConfig], metrics: Metrics) -> AsyncIterator[OwnWorker]:
    """Yield a worker for *models* that starts now; it is restarted when it dies and gone afterwards."""
    token = secrets.token_urlsafe(32)
    theirs = own_settings(settings.worker, models).model_copy(update={"auth_token": SecretStr(token)})
    process = RoleProcess(
        "worker",
        # Its state lies in ours: a worker that somebody starts beside us with the same data folder has its own.
        to_json(settings.model_copy(update={"worker": theirs, "data_dir": settings.data_dir / "orchestrator"})),
        drain_s=theirs.drain_s,
        on_restart=metrics.restarted,
    )
    async with process:
        yield OwnWorker(process, token, theirs.models, theirs.capacity + theirs.queue)


def own_settings(worker: WorkerSettings, models: Sequence[ModelConfig]) -> WorkerSettings:
    """Return the settings of the orchestrator's own worker for *models*, but for its token. Raises: ConfigError."""
    compiled = _compiled_models(models)
    return worker.model_copy(
        update={
            "host": "127.0.0.1",
            "port": 0,
            "pipeline": PIPELINE,
            "model_id": None,
            "models": tuple(dict.fromkeys(model.model_id for model in models)),
            "warm": tuple(dict.fromkeys(model.model_id for model in models if model.warm)),
            "capacity": max(worker.capacity, *(model.capacity for model in models)),
            "compile_models": worker.compile_models if compiled is None else compiled,
            "model_paths": worker.model_paths | _folders(models),
            "networks": worker.networks | _networks(models),
        }
    )


def _folders(models: Sequence[ModelConfig]) -> dict[str, Path]:
    """Return where the models lie that entries name by a folder."""
    return {model.model_id: Path(model.path) for model in models if model.path and not model.sha256}


def _networks(models: Sequence[ModelConfig]) -> dict[str, NetworkSettings]:
    """Return the networks of the operator's own that entries name by a file and its content."""
    return {
        model.model_id: NetworkSettings(path=Path(model.path), sha256=model.sha256)
        for model in models
        if model.path and model.sha256
    }


def _compiled_models(models: Sequence[ModelConfig]) -> tuple[str, ...] | None:
    """Return the models that SFAST asks to compile; None where no entry says anything about it.

    Optimizations that change pictures are refused; those without effect here are logged.

    Raises: ConfigError for DEEPCACHE.
    """
    from fourfold.engine import registry  # here, as the worker's start need not wait for it

    compiled: list[str] | None = None
    for model in models:
        asked = {flag for flag, value in model.optimization_flags.items() if str(value).lower() == "true"}
        if "DEEPCACHE" in asked:
            raise ConfigError(
                f"{model.model_id}: optimization_flags: DEEPCACHE is refused: it skips most of the network's work, "
                "so pictures change, and it mixes up jobs of one batch; remove it"
            )
        if _COMPILES in model.optimization_flags and registry.is_compilable(model.model_id):
            compiled = [*(compiled or []), *([model.model_id] if _COMPILES in asked else [])]
            asked -= {_COMPILES}
        if asked:
            log.warning("optimization_ignored", extra={"model_id": model.model_id, "flags": sorted(asked)})
    return None if compiled is None else tuple(compiled)
