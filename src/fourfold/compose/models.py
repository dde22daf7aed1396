"""What an orchestrator sells; a module of its own, so that ``fourfold up`` can check it without loading the role."""

from pathlib import Path

from fourfold.compose.common import loadable_cards
from fourfold.config import WorkerSettings
from fourfold.engine.registry import DEFAULT_MODEL
from fourfold.errors import ConfigError
from fourfold.orchestrator.models import ModelConfig, parse_models
from fourfold.protocol.wire import PIPELINE


def sold_models(path: Path | None, worker: WorkerSettings) -> tuple[ModelConfig, ...]:
    """Return what is sold: the entries of the file, else every model that can be loaded here, the default one warm.

    Args: *worker*, the settings of the orchestrator's own one.

    Raises: ConfigError if the file cannot be read or is wrong.
    """
    if path is None:
        return tuple(
            ModelConfig(pipeline=PIPELINE, model_id=model_id, warm=model_id == DEFAULT_MODEL)
            for model_id in loadable_cards(worker)
        )
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors begin files with a mark
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read the models file {path}: {exc}") from exc
    return parse_models(text, source=str(path))
