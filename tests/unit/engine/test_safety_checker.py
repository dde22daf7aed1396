"""The stock safety checker: our code against diffusers' own, over the same tiny random weights."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="needs the [diffusion] extra")

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor

from fourfold.engine import safety_choice
from fourfold.engine.hub_pins import Pin, PinnedFile, write_pin
from fourfold.engine.safety import SafetyClassifier
from fourfold.engine.safety_checker import SafetyChecker
from fourfold.engine.safety_choice import CHECKER, checker_bytes, locate_checker, make_classifier
from fourfold.errors import InvalidImageError, ModelUnavailableError

SIDE = 32
PICTURES = 60


def picture(seed: int, height: int = 48, width: int = 40) -> Any:
    """Return coloured blobs, so that embeddings differ."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(2, 30) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(2, 30)) for _ in range(3)]
    return np.clip(128 + 127 * rng.uniform(0.2, 1) * np.stack(waves, -1), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def stock() -> Any:
    """Diffusers' checker with random weights, and thresholds at which some pictures are flagged and some are not."""
    torch.manual_seed(3)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config={**vision, "image_size": SIDE, "patch_size": 8, "projection_dim": 8}, projection_dim=8
    )
    checker = StableDiffusionSafetyChecker(config).eval()
    for name in ("concept_embeds", "special_care_embeds"):
        getattr(checker, name).data = torch.randn_like(getattr(checker, name))
    with torch.inference_mode():
        pixels = torch.randn(200, 3, SIDE, SIDE)
        embeddings = checker.visual_projection(checker.vision_model(pixels)[1])
        for name, share in (("concept_embeds", 0.98), ("special_care_embeds", 0.8)):
            concepts = torch.nn.functional.normalize(getattr(checker, name))
            cosines = torch.nn.functional.normalize(embeddings) @ concepts.t()
            getattr(checker, f"{name}_weights").data = cosines.quantile(share, dim=0)
    return checker


@pytest.fixture(scope="module")
def folder(stock: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checker as this version of transformers saves it."""
    folder = tmp_path_factory.mktemp("checker")
    stock.save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor.save_pretrained(folder)
    return folder


def stock_flags(stock: Any, pixels: torch.Tensor) -> list[bool]:
    _, flags = stock(clip_input=pixels, images=[np.zeros((1, 1, 3))] * len(pixels))
    return [bool(flag) for flag in flags]


def test_the_verdicts_are_diffusers_own(stock: Any, folder: Path) -> None:
    """Picture by picture; both verdicts occur, and concepts of special care decide some of them."""
    ours = SafetyChecker(folder / "model.safetensors", threads=1)
    torch.manual_seed(7)
    pixels = torch.randn(PICTURES, 3, SIDE, SIDE)
    expected = stock_flags(stock, pixels)
    careless = stock.special_care_embeds_weights.data
    try:
        stock.special_care_embeds_weights.data = torch.full((3,), 2.0)
        without = stock_flags(stock, pixels)
    finally:
        stock.special_care_embeds_weights.data = careless

    assert [ours.is_flagged(row[None]) for row in pixels] == expected
    assert {True, False} == set(expected)
    assert without != expected


@pytest.mark.parametrize("size", [(48, 40), (32, 32), (100, 333), (9, 5)])
def test_a_picture_is_prepared_as_transformers_does_it(folder: Path, size: tuple[int, int]) -> None:
    """Resized by Pillow's bicubic and cropped: within a level of 8 bits and a half, over the model's deviation."""
    rgb = picture(1, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torchvision, which is not here
        processor = CLIPImageProcessor.from_pretrained(folder)
        theirs = processor(rgb, return_tensors="pt")["pixel_values"][0]
    ours = SafetyChecker(folder / "model.safetensors", threads=1)._input.prepare(rgb)

    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1.5 / 255 / 0.26


@pytest.mark.parametrize("prefix", ["vision_model.vision_model.", "vision_model."])
def test_weights_are_read_by_the_names_of_any_version(folder: Path, tmp_path: Path, prefix: str) -> None:
    """The hub's file was saved by an old transformers, with two prefixes and positions among the weights."""
    renamed = {"vision_model.vision_model.embeddings.position_ids": torch.arange(17)[None]}
    for name, tensor in load_file(folder / "model.safetensors").items():
        bare = name
        while bare.startswith("vision_model."):
            bare = bare.removeprefix("vision_model.")
        renamed[prefix + bare if name.startswith("vision_model.") else name] = tensor
    shutil.copytree(folder, tmp_path / "old")
    save_file(renamed, tmp_path / "old" / "model.safetensors")
    torch.manual_seed(9)
    pixels = torch.randn(20, 3, SIDE, SIDE)
    now, old = (SafetyChecker(path / "model.safetensors", threads=1) for path in (folder, tmp_path / "old"))

    assert [now.is_flagged(row[None]) for row in pixels] == [old.is_flagged(row[None]) for row in pixels]


def test_its_memory_is_known_before_it_is_loaded(folder: Path, tmp_path: Path) -> None:
    """To the byte, in float32 whatever the file holds; a file that cannot be read is told apart when it is loaded."""
    weights = folder / "model.safetensors"
    ours = SafetyChecker(weights, threads=1)
    tensors = [*ours._model.parameters(), ours._projection, *ours._concepts, *ours._special]
    expected = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, tmp_path / "half.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:50])

    assert [checker_bytes(path) for path in (weights, tmp_path / "half.safetensors")] == [expected, expected]
    assert [checker_bytes(path) for path in (None, tmp_path / "cut.safetensors", tmp_path / "none")] == [0, 0, 0]
    assert all(not tensor.is_meta and not tensor.requires_grad for tensor in tensors)


def test_the_score_is_the_verdict_for_any_size(folder: Path) -> None:
    """Above every threshold, or 0; a very long picture costs no more than its middle."""
    checker = make_classifier(threads=1, folder=folder)
    scores = {checker.score(picture(seed)) for seed in range(PICTURES)}

    assert isinstance(checker, SafetyChecker)
    assert scores <= {0.0, 1.0}
    assert checker.score(picture(0, 1, 512)) in (0.0, 1.0) and checker.score(picture(0, 700, 1)) in (0.0, 1.0)
    with pytest.raises(InvalidImageError, match="must be uint8"):
        checker.score(np.zeros((4, 4), np.uint8))


def test_it_is_taken_from_the_hubs_cache_where_it_was_pulled(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, and where its packages are not, the embedded classifier scores."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert locate_checker(None) is None
    assert isinstance(make_classifier(threads=1), SafetyClassifier)
    snapshot = tmp_path / f"models--{CHECKER.replace('/', '--')}" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    write_pin(Pin(CHECKER, "main", "0" * 40, "unknown", (PinnedFile("config.json", 1, "0" * 64),)))

    assert locate_checker(None) == snapshot / "model.safetensors"
    assert isinstance(make_classifier(threads=1), SafetyChecker)
    monkeypatch.setattr(safety_choice, "missing_packages", lambda: ("torch",))
    assert isinstance(make_classifier(threads=1), SafetyClassifier)
    with pytest.raises(ModelUnavailableError, match=r"needs torch, not installed: pip install 'fourfold\[diffusion\]'"):
        locate_checker(folder)


def test_a_folder_that_holds_no_checker_is_told(folder: Path, tmp_path: Path) -> None:
    """What is missing; pickles alone; damaged and foreign weights."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    with pytest.raises(ModelUnavailableError, match="must hold config.json, .*pickled"):
        locate_checker(other)
    (other / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelUnavailableError, match="is no safety checker"):
        make_classifier(threads=1, folder=other)
    save_file({"concept_embeds": torch.ones(17, 8)}, other / "model.safetensors")
    with pytest.raises(ModelUnavailableError, match="is no safety checker: .* weights are missing"):
        make_classifier(threads=1, folder=other)
