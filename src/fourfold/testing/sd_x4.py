"""Write a ``StableDiffusionUpscalePipeline`` with random weights, in the hub's layout: same levels, any widths.

The pictures mean nothing; what is exact about the real model is exact about these. Needs the [diffusion] extra.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

_BETAS: Final = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@dataclass(frozen=True, slots=True)
class Widths:
    """How wide a model is; it has the real one's levels, and unless told otherwise its depth."""

    unet: tuple[int, int, int, int]
    vae: tuple[int, int, int]
    groups: int
    heads: int
    text: int
    text_layers: int
    text_heads: int
    layers: int = 2  #: of each level, in the UNet and in the VAE
    tokens: int = 77  #: of a prompt that are read
    has_decoder_attention: bool = True


TINY: Final = Widths((16, 32, 32, 64), (8, 16, 16), groups=8, heads=4, text=32, text_layers=2, text_heads=4)
"""Some 2 MB; a picture of 64 x 64 takes a third of a second for 5 steps."""

THIN: Final = Widths(
    (4, 4, 4, 4),
    (4, 4, 4),
    groups=2,
    heads=1,
    text=8,
    text_layers=1,
    text_heads=2,
    layers=1,
    tokens=16,
    has_decoder_attention=False,
)
"""For the loop over steps alone: at 128 x 128 a step and decoding take an eighth of `TINY`'s time."""

REAL: Final = Widths(
    (256, 512, 512, 1024), (128, 256, 512), groups=32, heads=8, text=1024, text_layers=23, text_heads=16
)
"""The real model's: 3.5 GB in float32."""


def write_pipe(folder: Path, widths: Widths = TINY, *, seed: int = 0, half: bool = False) -> Path:
    """Write a model into *folder*, *half*: also its 16-bit variant; return *folder*."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    unet, vae, text_encoder = make_unet(widths), make_vae(widths), _text_encoder(widths)
    torch.set_rng_state(state)
    for name, module in {"unet": unet, "vae": vae, "text_encoder": text_encoder}.items():
        if half:
            copy.deepcopy(module).half().save_pretrained(folder / name, variant="fp16")
        module.save_pretrained(folder / name)  # last, as both write config.json
    _edit(folder / "vae" / "config.json", drop=("scaling_factor", "force_upcast"))
    _write_tokenizer(folder / "tokenizer", tokens=widths.tokens)
    ddim = {"prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler", **_BETAS, **ddim})
    write_json(folder / "low_res_scheduler" / "scheduler_config.json", {"_class_name": "DDPMScheduler", **_BETAS})
    index = {
        "_class_name": "StableDiffusionUpscalePipeline",
        "_diffusers_version": "0.8.0",
        "low_res_scheduler": ["diffusers", "DDPMScheduler"],
        "max_noise_level": 350,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    return folder


def make_unet(widths: Widths) -> Any:
    """Return a UNet with random weights, on torch's default device."""
    return UNet2DConditionModel(
        sample_size=128,
        in_channels=7,
        out_channels=4,
        block_out_channels=widths.unet,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
        up_block_types=(*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
        layers_per_block=widths.layers,
        only_cross_attention=(True, True, True, False),
        attention_head_dim=widths.heads,
        cross_attention_dim=widths.text,
        norm_num_groups=widths.groups,
        num_class_embeds=1000,
        use_linear_projection=True,
    )


def make_vae(widths: Widths) -> Any:
    """Return a VAE with random weights, on torch's default device."""
    return AutoencoderKL(
        block_out_channels=widths.vae,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=widths.layers,
        mid_block_add_attention=widths.has_decoder_attention,
        latent_channels=4,
        norm_num_groups=widths.groups,
        sample_size=256,
    )


def _text_encoder(widths: Widths) -> Any:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408 if widths.text == REAL.text else 520,
            hidden_size=widths.text,
            intermediate_size=4 * widths.text,
            num_hidden_layers=widths.text_layers,
            num_attention_heads=widths.text_heads,
            hidden_act="gelu",
            bos_token_id=518,
            eos_token_id=519,
            pad_token_id=519,
        )
    )


def _write_tokenizer(folder: Path, *, tokens: int) -> None:
    """Write a real byte-level BPE of 520 tokens: every byte inside and at the end of a word, six merges, two marks."""
    letters = _byte_letters()
    merges = ["c a", "ca t</w>", "w h", "wh i", "t e</w>", "whi te</w>"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {word: number for number, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    marks = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokens,
        "errors": "replace",
        "do_lower_case": True,
    }
    write_json(folder / "tokenizer_config.json", {**config, **marks})
    write_json(folder / "special_tokens_map.json", marks)


def _byte_letters() -> list[str]:
    """Return GPT-2's printable stand-in for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(extra)) for byte in range(256)]


def write_json(path: Path, value: object) -> None:
    """Write *value* as JSON, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _edit(path: Path, *, drop: tuple[str, ...]) -> None:
    """Remove what old files on the hub do not have."""
    value = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {key: kept for key, kept in value.items() if key not in drop})
