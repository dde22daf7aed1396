"""Livepeer's optimization flags: what changes pictures is refused, what does nothing here is said."""

import logging

import pytest

from fourfold.compose.own_worker import _compiled_models, own_worker
from fourfold.config import Settings
from fourfold.errors import ConfigError
from fourfold.orchestrator.models import ModelConfig
from fourfold.telemetry import Metrics

DIFFUSION = "stabilityai/stable-diffusion-x4-upscaler"
PHOTO = "fourfold/realesrgan-x4plus"


async def test_deepcache_is_refused_before_a_worker_starts() -> None:
    model = ModelConfig(model_id="fourfold/lanczos", optimization_flags={"DEEPCACHE": "true"})
    with pytest.raises(ConfigError, match="DEEPCACHE is refused"):
        async with own_worker(Settings(), [model], Metrics("orchestrator")):
            pass


@pytest.mark.parametrize(("value", "is_told"), [("true", True), (True, True), ("false", False), (False, False)])
def test_a_flag_without_effect_is_told(value: str | bool, is_told: bool, caplog: pytest.LogCaptureFixture) -> None:
    """SFAST asks for compiled kernels; Lanczos has none."""
    with caplog.at_level(logging.WARNING):
        compiled = _compiled_models([ModelConfig(model_id="fourfold/lanczos", optimization_flags={"SFAST": value})])

    assert compiled is None
    assert [record.message for record in caplog.records] == ["optimization_ignored"] * is_told


@pytest.mark.parametrize("model_id", [DIFFUSION, PHOTO])
@pytest.mark.parametrize(("value", "is_compiled"), [("true", True), (True, True), ("false", False)])
def test_sfast_says_whether_a_model_is_compiled(
    value: str | bool, is_compiled: bool, model_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the device turns out to be a CPU, on which PHOTO is not, the worker says so."""
    models = [ModelConfig(model_id=model_id, optimization_flags={"SFAST": value}), ModelConfig("fourfold/lanczos")]
    expected = (model_id,) if is_compiled else ()

    assert _compiled_models(models) == expected
    assert not caplog.records


def test_without_the_flag_the_device_decides() -> None:
    assert _compiled_models([ModelConfig(model_id=DIFFUSION)]) is None
