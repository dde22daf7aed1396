"""What an orchestrator sells; a module of its own, so that ``fourfold up`` can check it without loading the role."""

from pathlib import Path

from fourfold.compose.common import loadable_cards
from fourfold.config import WorkerSettings
from fourfold.engine.registry import DEFAULT_MODEL
from fourfold.errors import ConfigError
from fourfold.orchestrator.models import ModelConfig, parse_models
from fourfold.protocol.wire import PIPELINE


def sold_models(path: Path | None, worker: WorkerSettings) -> tuple[ModelConfig, ...]:
    """Return what is sold: the entries of the file, else what the orchestrator's own worker is set to offer.

    Args: *worker*, its settings; where they name no models, it offers every one that can be loaded here.

    Raises: ConfigError if the file cannot be read or is wrong.
    """
    if path is None:
        ids = (worker.model_id,) if worker.model_id else worker.models or tuple(loadable_cards(worker))
        first = DEFAULT_MODEL if DEFAULT_MODEL in ids else ids[0]
        warm = (first,) if worker.warm is None else worker.warm
        return tuple(ModelConfig(pipeline=PIPELINE, model_id=model_id, warm=model_id in warm) for model_id in ids)
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors begin files with a mark
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read the models file {path}: {exc}") from exc
    return parse_models(text, source=str(path))
