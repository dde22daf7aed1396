"""A model's files: which are read and how, what is refused, and that nobody is asked for them."""

import shutil
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from fourfold.engine import registry, sd_x4_files
from fourfold.engine.base import Precision
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.engine.sd_x4_files import check_folder, read_json
from fourfold.engine.settings import EngineSettings
from fourfold.errors import ModelUnavailableError, UnknownModelError
from fourfold.testing.sd_x4 import write_json

MODEL = "stabilityai/stable-diffusion-x4-upscaler"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may break."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def load(folder: Path, device: str = "cpu", precision: Precision = Precision.AUTO) -> StableDiffusionX4Engine:
    settings = EngineSettings(threads=1, device=device, precision=precision)
    return StableDiffusionX4Engine(registry.card(MODEL), settings=settings, folder=folder)


def test_weights_are_the_files_themselves(folder: Path) -> None:
    """Mapped, not copied: a CPU's model takes no memory that another process with it does not share."""
    engine = load(folder)
    mapped = {Path(each.path) for each in psutil.Process().memory_maps()}
    parts = [folder / part / f"{stem}.safetensors" for part, stem in sd_x4_files.PART_TO_STEM.items()]
    engine.close()

    assert mapped.issuperset(parts)


def test_the_encoders_half_of_the_vae_is_dropped_and_not_counted(folder: Path) -> None:
    """Upscaling never encodes. The memory that the card is given is that of what stays."""
    engine = load(folder)
    modules = engine._modules
    parts = (modules.unet, modules.vae.decoder, modules.vae.post_quant_conv, modules.text_encoder)
    numbers = sum(weight.numel() for part in parts for weight in part.parameters())

    assert modules.vae.encoder is None and modules.vae.quant_conv is None
    assert engine.card.fixed_bytes == 4 * numbers


@pytest.mark.parametrize(("stated", "expected"), [({}, 0.08333), ({"scaling_factor": 0.5}, 0.5)])
def test_the_latents_scale_is_the_files_or_the_old_models(
    folder: Path, stated: dict[str, float], expected: float
) -> None:
    """Old hub files do not name it; diffusers falls back to the same number."""
    config = folder / "vae" / "config.json"
    write_json(config, {**read_json(config), **stated})

    assert load(folder)._modules.scaling_factor == expected


@pytest.mark.parametrize(
    ("device", "precision", "infix"),
    [("cpu", Precision.AUTO, ""), ("meta", Precision.AUTO, ".fp16"), ("meta", Precision.FLOAT32, "")],
)
def test_a_gpu_reads_the_16_bit_variant_and_a_cpu_the_plain_one(
    folder: Path, device: str, precision: Precision, infix: str
) -> None:
    """The other one's files are damaged, and nobody notices. "meta" stands for a GPU: a device that has no numbers."""
    for part, stem in sd_x4_files.PART_TO_STEM.items():
        for other in {"", ".fp16"} - {infix}:
            (folder / part / f"{stem}{other}.safetensors").write_bytes(b"damaged")
    modules = load(folder, device, precision)._modules

    expected = torch.float16 if infix else torch.float32
    assert {weight.dtype for weight in modules.unet.parameters()} == {expected}
    assert (modules.dtype, modules.device.type) == (expected, device)


def test_nobody_is_asked_for_what_is_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to load a folder nor to look for a model, even where the libraries may go online."""
    import huggingface_hub.constants

    def refuse(*_: Any) -> None:
        pytest.fail("somebody was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load(folder).close()

    assert "not on this machine" in (registry.why_not_loadable(MODEL) or "")


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="does not exist"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name",
    ["model_index.json", "unet/config.json", "low_res_scheduler/scheduler_config.json", "tokenizer/vocab.json"],
)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelUnavailableError, match=name.rpartition("/")[2]):
        load(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelUnavailableError, match=r"unet/diffusion_pytorch_model\.safetensors is missing"):
        load(folder)


def test_pickled_weights_are_never_read(folder: Path) -> None:
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ModelUnavailableError, match="pickled"):
        load(folder)


def test_sharded_weights_must_be_complete(folder: Path) -> None:
    unet = folder / "unet"
    for file in unet.glob("*.safetensors"):
        file.unlink()
    write_json(unet / "diffusion_pytorch_model.safetensors.index.json", {"weight_map": {"a": "part-1.safetensors"}})
    with pytest.raises(ModelUnavailableError, match="part-1"):
        check_folder(folder)
    (unet / "part-1.safetensors").touch()
    assert check_folder(folder).part_to_variant["unet"] is None


def test_damaged_weights_are_refused(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelUnavailableError, match="cannot be loaded"):
        load(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_weight_that_is_missing_is_not_made_up(folder: Path, part: str) -> None:
    """The libraries would draw it at random, say so in their log, and a wrong picture would pass for one."""
    (weights,) = (file for file in (folder / part).glob("*.safetensors") if "fp16" not in file.name)
    tensors = load_file(weights)
    gone = sorted(name for name in tensors if name.endswith("weight") and not name.startswith("encoder.down"))[-1]
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, weights, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailableError, match=rf"lacks 1 of its weights, among them .*{gone[-20:]}"):
        load(folder)


@pytest.mark.parametrize("weight_map", ["x", {"a": 1}, {"a": ["b"]}, {"a": "../b"}])
def test_an_index_of_shards_names_files_beside_it(folder: Path, weight_map: Any) -> None:
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    write_json(folder / "unet" / "diffusion_pytorch_model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises(ModelUnavailableError, match="must map weights to files"):
        check_folder(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 200_000])
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelUnavailableError):
        check_folder(tmp_path)


def test_another_kind_of_model_is_refused(folder: Path) -> None:
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionLatentUpscalePipeline"})
    with pytest.raises(ModelUnavailableError, match="StableDiffusionLatentUpscalePipeline"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("unet/config.json", {"center_input_sample": True}, "center_input_sample"),
        ("unet/config.json", {"num_class_embeds": 100}, "noise levels|cannot be loaded"),
        ("unet/config.json", {"in_channels": 8}, "channels|cannot be loaded"),
        ("scheduler/scheduler_config.json", {"clip_sample": True}, "clipping"),
        ("scheduler/scheduler_config.json", {"beta_start": "x"}, "cannot be loaded: TypeError"),
        ("model_index.json", {"max_noise_level": 1000}, "noise levels"),
        ("model_index.json", {"max_noise_level": -1}, "noise levels"),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor"),
        ("tokenizer/vocab.json", {"zzz": 5000}, "token 5000"),
    ],
)
def test_a_configuration_that_our_loop_does_not_compute_is_refused(
    folder: Path, file: str, change: dict[str, Any], message: str
) -> None:
    write_json(folder / file, {**read_json(folder / file), **change})
    with pytest.raises(ModelUnavailableError, match=message):
        load(folder)


def test_the_16_bit_variant_is_preferred_on_a_gpu_only(folder: Path) -> None:
    assert check_folder(folder).part_to_variant["unet"] is None
    assert check_folder(folder, prefers_half=True).part_to_variant == dict.fromkeys(
        ("unet", "vae", "text_encoder"), "fp16"
    )


def test_the_registry_knows_whether_the_files_are_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a named folder, by the hub's cache (empty here), and without the packages."""
    assert registry.why_not_loadable(MODEL, {MODEL: folder}) is None
    assert registry.why_not_loadable("fourfold/lanczos") is None
    assert "not on this machine" in (registry.why_not_loadable(MODEL) or "")
    monkeypatch.setattr(sd_x4_files, "NEEDED_PACKAGES", ("torch", "no_such_package"))
    assert "fourfold[diffusion]" in (registry.why_not_loadable(MODEL, {MODEL: folder}) or "")
    with pytest.raises(UnknownModelError):
        registry.why_not_loadable("nobody/nothing")


def test_the_registry_loads_it_under_its_own_id(folder: Path) -> None:
    engine = registry.load_engine(MODEL, settings=EngineSettings(threads=1, model_paths={MODEL: folder}))

    assert engine.card.model_id == MODEL
    engine.close()
    with pytest.raises(ModelUnavailableError, match="not on this machine"):
        registry.load_engine(MODEL, settings=EngineSettings(threads=1))


def test_a_model_in_the_hubs_cache_is_found_offline(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache's layout: refs/main names the snapshot."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / f"models--{MODEL.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_folder, repository / "snapshots" / ("0" * 40))

    assert registry.why_not_loadable(MODEL) is None
