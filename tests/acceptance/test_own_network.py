"""A network of the operator's own through a whole network of real processes, sold by an entry of aiModels.json."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the [networks] extra")

from fourfold.compose.inventory import inventory
from fourfold.compose.models import sold_models
from fourfold.compose.worker import worker_cards
from fourfold.config import WorkerSettings
from fourfold.errors import ConfigError
from fourfold.testing.networks import write_compact
from fourfold.testing.processes import running

pytestmark = pytest.mark.slow

MODEL = "local/mine"
EMBEDDED = "fourfold/realesr-animevideov3"


def ask(gateway: str, model_id: str) -> Any:
    """Return the upscaled pixels."""
    stream = io.BytesIO()
    y, x = np.mgrid[:30, :40]
    Image.fromarray(np.stack([x * 6, y * 8, 255 - x * 3], -1).astype(np.uint8)).save(stream, "png")
    with httpx2.Client(base_url=gateway, timeout=120) as client:
        picture = {"image": ("a.png", stream.getvalue(), "image/png")}
        answer = client.post("/upscale", files=picture, data={"model_id": model_id})
        assert answer.status_code == 200, answer.text
        assert answer.headers["fourfold-model"] == model_id
        body = client.get(answer.json()["images"][0]["url"]).content
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(int)


def test_it_is_sold_beside_the_others(tmp_path: Path) -> None:
    """The same weights as a file of one's own and embedded: the same picture, but for bf16 where a processor has it."""
    network = write_compact(tmp_path / "mine.safetensors")
    sold: list[Mapping[str, Any]] = [
        {"pipeline": "upscale", "model_id": MODEL, "path": str(network.path), "sha256": network.sha256, "warm": True},
        {"pipeline": "upscale", "model_id": EMBEDDED},
    ]
    (tmp_path / "aiModels.json").write_text(json.dumps(sold))
    config = tmp_path / "fourfold.toml"
    config.write_text(f"[worker]\nprecision = 'float32'\n[orchestrator]\nmodels = '{tmp_path / 'aiModels.json'}'\n")
    ports = ("--port", "0", "--orchestrator-port", "0")
    with running("up", "--config", str(config), "--data-dir", str(tmp_path / "data"), *ports) as up:
        ours, theirs = (ask(up.ready["gateway"], model_id) for model_id in (MODEL, EMBEDDED))

    assert np.abs(ours - theirs).max() <= 1


def test_settings_name_it_too(tmp_path: Path) -> None:
    """Offered after the others without further settings; one that cannot be had stops the start; why is listed."""
    network = write_compact(tmp_path / "mine.safetensors")
    table = {"path": network.path, "sha256": network.sha256, "licence": "CC0-1.0"}
    settings = WorkerSettings.model_validate({"networks": {MODEL: table}})
    wrong = WorkerSettings.model_validate({"networks": {MODEL: table | {"sha256": "0" * 64}}})

    assert list(worker_cards(settings))[-1] == MODEL
    assert [model.model_id for model in sold_models(None, settings)][-1] == MODEL
    with pytest.raises(ConfigError, match=r"worker.networks: .* has sha256 .*, expected 0000"):
        worker_cards(wrong)
    good, bad = ({item.model_id: item for item in inventory(each)}[MODEL] for each in (settings, wrong))
    assert (good.installed, good.source, good.weights_licence) == (True, "file", "CC0-1.0")
    assert not bad.installed and "expected 0000" in bad.title
    taken = WorkerSettings.model_validate({"networks": {EMBEDDED: table}})
    with pytest.raises(ConfigError, match=f"'{EMBEDDED}' is the id of another model; call it local/NAME"):
        worker_cards(taken)
