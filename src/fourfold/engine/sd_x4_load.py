"""Load the parts of a ``StableDiffusionUpscalePipeline`` that upscaling uses, and check that they fit our own loop."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from fourfold.engine.base import Mode
from fourfold.engine.full_memory import comes_from_want_of_memory
from fourfold.engine.sd_x4_files import ModelFolder, read_json
from fourfold.engine.sd_x4_schedule import Sampler
from fourfold.errors import ModelUnavailableError, OutOfMemoryError

SCALING_FACTOR: Final = 0.08333
"""Of the latents, where the model's old configuration does not say. Source: diffusers issue #5215."""

_SOME_STEPS: Final = 2

_UNET_MUST_BE: Final[Mapping[str, Any]] = {
    "class_embed_type": None,
    "addition_embed_type": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "dual_cross_attention": False,
}


@dataclass(frozen=True, slots=True)
class Modules:
    """A loaded model. The modules are only read: nothing here changes while jobs run."""

    unet: Any
    vae: Any  #: decoder half only
    text_encoder: Any
    tokenizer: Any
    sampler: Sampler
    low_res_alphas: tuple[float, ...]  #: cumulative, by noise level
    max_noise_level: int
    scaling_factor: float
    device: torch.device
    dtype: torch.dtype  #: of the UNet and the text encoder; latents and sampler are float32 always
    decode_dtype: torch.dtype  #: tried first; float32 follows where it overflows

    @property
    def weight_bytes(self) -> int:
        """Memory of all weights."""
        modules = (self.unet, self.vae, self.text_encoder)
        return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def load_modules(folder: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> Modules:
    """Load *folder* onto *device*, to compute in *dtype*.

    Raises:
        OutOfMemoryError: there is no memory for it.
        ModelUnavailableError: a file is damaged or the model's shape is not one that our loop computes exactly.
    """
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()  # it would stand in the worker's log
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries about one another; what matters is checked below
            modules = _load(folder, device, dtype)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, ArithmeticError, SafetensorError) as exc:
        if comes_from_want_of_memory(exc):
            raise OutOfMemoryError(f"there is no memory left to load {folder.path}") from exc
        raise ModelUnavailableError(
            f"{folder.path} cannot be loaded: {type(exc).__name__}: {str(exc).strip()}; if a file is damaged, pull or "
            "copy the model anew"
        ) from exc
    if device.type != "cpu":
        modules.unet.to(memory_format=torch.channels_last)
        modules.vae.to(memory_format=torch.channels_last)
    return modules


def _load(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> Modules:
    def read(kind: Any, part: str) -> Any:
        module, told = kind.from_pretrained(
            folder.path / part,
            variant=folder.part_to_variant[part],
            use_safetensors=True,
            local_files_only=True,
            torch_dtype=dtype,
            output_loading_info=True,
        )
        missing = sorted(told["missing_keys"])
        if missing:  # transformers would make them up, with a note in the log
            raise ModelUnavailableError(
                f"{folder.path / part} lacks {len(missing)} of its weights, among them {missing[0]}; pull or copy the "
                "model anew"
            )
        return module.to(device).eval().requires_grad_(False)

    unet, vae, text_encoder = (
        read(UNet2DConditionModel, "unet"),
        read(AutoencoderKL, "vae"),
        read(CLIPTextModel, "text_encoder"),
    )
    vae.encoder = vae.quant_conv = None
    tokenizer = CLIPTokenizer.from_pretrained(folder.path / "tokenizer", local_files_only=True)
    low_res = DDPMScheduler.from_config(read_json(folder.path / "low_res_scheduler" / "scheduler_config.json"))
    stated = read_json(folder.path / "vae" / "config.json")
    modules = Modules(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        sampler=Sampler(read_json(folder.path / "scheduler" / "scheduler_config.json")),
        low_res_alphas=tuple(low_res.alphas_cumprod.double().tolist()),
        max_noise_level=int(folder.index.get("max_noise_level", 350)),
        scaling_factor=float(stated.get("scaling_factor", SCALING_FACTOR)),
        device=device,
        dtype=dtype,
        decode_dtype=dtype,
    )
    _check(modules, folder)
    for mode in Mode:
        modules.sampler.steps(_SOME_STEPS, mode)  # numbers that no job could be computed with are told now
    return modules


def _check(modules: Modules, folder: ModelFolder) -> None:
    """Refuse what our loop would compute wrongly."""
    config, vae = modules.unet.config, modules.vae.config
    wrong = {name: config.get(name) for name, value in _UNET_MUST_BE.items() if config.get(name, value) != value}
    channels = vae.latent_channels + 3
    if wrong:
        raise ModelUnavailableError(f"{folder.path}: the UNet has options that are not known here: {wrong}")
    if config.in_channels != channels:
        raise ModelUnavailableError(
            f"{folder.path}: the UNet takes {config.in_channels} channels, expected {channels}: {vae.latent_channels} "
            "of latents and 3 of the picture"
        )
    if not config.num_class_embeds or not 0 <= modules.max_noise_level < config.num_class_embeds:
        raise ModelUnavailableError(
            f"{folder.path}: the UNet knows {config.num_class_embeds} noise levels, max_noise_level is "
            f"{modules.max_noise_level}"
        )
    if modules.text_encoder.config.hidden_size != config.cross_attention_dim:
        raise ModelUnavailableError(
            f"{folder.path}: the text encoder gives {modules.text_encoder.config.hidden_size} numbers a token, the "
            f"UNet wants {config.cross_attention_dim}"
        )
    largest, words = max(modules.tokenizer.get_vocab().values()), modules.text_encoder.config.vocab_size
    if largest >= words:  # on a GPU a prompt with such a token would end the process
        raise ModelUnavailableError(f"{folder.path}: the tokenizer has a token {largest}, the text encoder {words}")
    if not (math.isfinite(modules.scaling_factor) and modules.scaling_factor > 0):
        raise ModelUnavailableError(f"{folder.path}: the VAE's scaling_factor is {modules.scaling_factor}")
    if 2 ** (len(vae.block_out_channels) - 1) != 4:
        raise ModelUnavailableError(f"{folder.path}: the VAE does not enlarge four times")
