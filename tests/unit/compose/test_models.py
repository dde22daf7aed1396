"""What an orchestrator sells is read from a file."""

from pathlib import Path

import pytest

from fourfold.compose.models import sold_models
from fourfold.config import WorkerSettings
from fourfold.errors import ConfigError

TEXT = '[{"pipeline": "upscale", "model_id": "fourfold/lanczos", "price_per_unit": 1}]'


def test_the_models_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Windows' editors write one."""
    file = tmp_path / "aiModels.json"
    file.write_text(TEXT, encoding="utf-8-sig")

    assert [model.model_id for model in sold_models(file, WorkerSettings())] == ["fourfold/lanczos"]


def test_a_models_file_of_another_encoding_is_refused_by_name(tmp_path: Path) -> None:
    """Nothing is guessed."""
    file = tmp_path / "aiModels.json"
    file.write_text(TEXT, encoding="utf-16")

    with pytest.raises(ConfigError, match="cannot read the models file .*aiModels.json"):
        sold_models(file, WorkerSettings())


def test_without_a_file_the_worker_s_settings_say_what_is_sold() -> None:
    """And which of them are kept in memory."""
    named = sold_models(None, WorkerSettings(models=("fourfold/lanczos", "fourfold/realsr-df2k")))
    kept = sold_models(None, WorkerSettings(models=("fourfold/lanczos", "fourfold/realsr-df2k"), warm=()))

    assert [(model.model_id, model.warm) for model in named] == [
        ("fourfold/lanczos", True),
        ("fourfold/realsr-df2k", False),
    ]
    assert not any(model.warm for model in kept)
