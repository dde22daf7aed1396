"""Livepeer's optimization flags: what changes pictures is refused, what does nothing here is said."""

import logging

import pytest

from fourfold.compose.own_worker import own_worker
from fourfold.config import Settings
from fourfold.errors import ConfigError
from fourfold.orchestrator.models import ModelConfig
from fourfold.telemetry import Metrics


async def test_deepcache_is_refused_before_a_worker_starts() -> None:
    model = ModelConfig(model_id="fourfold/lanczos", optimization_flags={"DEEPCACHE": "true"})
    with pytest.raises(ConfigError, match="DEEPCACHE is refused"):
        async with own_worker(Settings(), [model], Metrics("orchestrator")):
            pass


@pytest.mark.parametrize(("value", "is_told"), [("true", True), (True, True), ("false", False), (False, False)])
def test_a_flag_without_effect_is_told(value: str | bool, is_told: bool, caplog: pytest.LogCaptureFixture) -> None:
    from fourfold.compose.own_worker import _check_flags

    with caplog.at_level(logging.WARNING):
        _check_flags([ModelConfig(model_id="fourfold/lanczos", optimization_flags={"SFAST": value})])

    assert [record.message for record in caplog.records] == ["optimization_ignored"] * is_told
