"""Which files of a repository are fetched."""

from collections.abc import Iterable

import pytest

from fourfold.engine.hub_plan import RemoteFile, needed_files
from fourfold.errors import ModelUnavailableError

PIPE = [
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
    "scheduler/scheduler_config.json", "low_res_scheduler/scheduler_config.json",
    "tokenizer/vocab.json", "tokenizer/merges.txt",
]  # fmt: skip
WEIGHTS = [
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
]


def chosen(names: Iterable[str]) -> list[str]:
    return [file.name for file in needed_files("a/b", [RemoteFile(name, 1, None, None) for name in names])]


def test_a_pipeline_begins_with_what_it_is() -> None:
    """So that one of another kind costs one small file."""
    assert chosen(["zebra.txt", *WEIGHTS, *PIPE]) == [*PIPE, *WEIGHTS]


@pytest.mark.parametrize("infix", ["", ".fp16"])
@pytest.mark.parametrize("is_old", [False, True])
def test_shards_come_with_their_index(infix: str, is_old: bool) -> None:
    """Those of one variant only, in both ways that diffusers has named them."""
    stem = "unet/diffusion_pytorch_model"
    shards = [
        f"{stem}-{n:05}-of-00002{infix}.safetensors" if is_old else f"{stem}{infix}-{n:05}-of-00002.safetensors"
        for n in (1, 2)
    ]
    index = f"{stem}.safetensors.index{infix}.json"

    assert chosen([*PIPE, *WEIGHTS[1:], *shards, index]) == [*PIPE, index, *shards, *WEIGHTS[1:]]


def test_a_safety_checker_is_three_files() -> None:
    """The pickle beside its weights is left."""
    names = ["config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin", "README.md"]

    assert chosen(names) == names[:3]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (PIPE, "has no unet/diffusion_pytorch_model.safetensors; pickled weights"),
        ([*PIPE[:6], *WEIGHTS], "holds none of tokenizer/tokenizer.json, tokenizer/vocab.json"),
        ([*PIPE[1:], *WEIGHTS], "holds neither model_index.json"),
        ([*PIPE, *WEIGHTS[:2], "text_encoder/../../model.safetensors"], "has no text_encoder/model.safetensors"),
        (["preprocessor_config.json", "model.safetensors"], "lacks config.json"),
    ],
)
def test_what_is_missing_is_told(names: list[str], text: str) -> None:
    """Before anything is fetched."""
    with pytest.raises(ModelUnavailableError, match=text):
        chosen(names)
