"""Decode latents to pixels in little memory and to the same numbers.

Every layer runs in strips of rows over whole feature maps: normalisation takes its statistics from the whole map
first, convolutions see their neighbours' rows, sums are made in place. The attention at the latents' size, whose matrix
would be 256 GiB for a picture of 512 x 512, is made for some queries at a time. Nothing is approximated; only the order
of additions differs from diffusers ``AutoencoderKL.decode``.
"""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn import functional

STRIP_PIXELS: Final = 128 * 1024
"""Pixels of one strip."""

ATTENTION_BYTES: Final = 256 * 2**20
"""The attention's matrix, float32, is at most this large at a time."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """How much is computed at once; smaller is slower and needs less memory, and changes nothing else."""

    strip_pixels: int = STRIP_PIXELS
    attention_bytes: int = ATTENTION_BYTES
    is_fused: bool | None = None  #: attention by torch's own kernel; None: on a CPU, as no GPU's takes this width

    def halved(self) -> "DecodeLimits":
        """Return limits that need half the memory beyond the feature maps."""
        return DecodeLimits(max(1, self.strip_pixels // 2), max(1, self.attention_bytes // 2), self.is_fused)


def decode_steps(vae: Any) -> int:
    """Return how often `decode` yields."""
    return 4 + sum(len(block.resnets) + len(block.upsamplers or ()) for block in vae.decoder.up_blocks)


def decode(
    vae: Any, latents: torch.Tensor, *, dtype: torch.dtype, limits: DecodeLimits = DecodeLimits()
) -> Generator[None, None, Iterator[tuple[int, torch.Tensor]]]:
    """Decode ``[1, 4, h, w]``, divided by the scaling factor already; yield after each layer.

    Returns:
        An iterator of ``(first row, [1, 3, rows, 4 w] float32)``, from the top; values are -1 .. 1 or a little more.
    """
    decoder = vae.decoder
    x = latents.to(dtype)
    if vae.post_quant_conv is not None:
        x = _convolve(x, vae.post_quant_conv)
    x = _convolve(x, decoder.conv_in)
    yield
    mid = decoder.mid_block
    x = _resnet(x, mid.resnets[0], limits)
    yield
    if mid.attentions and mid.attentions[0] is not None:
        x = _attend(x, mid.attentions[0], limits)
    yield
    x = _resnet(x, mid.resnets[1], limits)
    yield
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _resnet(x, resnet, limits)
            yield
        for upsampler in block.upsamplers or ():
            x = _upsample(x, upsampler, limits)
            yield
    return _finish(x, decoder, limits)


def _finish(x: torch.Tensor, decoder: Any, limits: DecodeLimits) -> Iterator[tuple[int, torch.Tensor]]:
    normal = _normaliser(x, decoder.conv_norm_out, limits)
    for top, bottom in _strips(x, limits):
        yield top, _strip_convolved(x, decoder.conv_out, normal, top, bottom).float()


def _resnet(x: torch.Tensor, block: Any, limits: DecodeLimits) -> torch.Tensor:
    """Return diffusers' ResnetBlock2D of *x*, which is used up."""
    normal = _normaliser(x, block.norm1, limits)
    inner = x.new_empty((x.shape[0], block.conv1.out_channels, *x.shape[2:]))
    for top, bottom in _strips(x, limits):
        inner[:, :, top:bottom] = _strip_convolved(x, block.conv1, normal, top, bottom)
    normal = _normaliser(inner, block.norm2, limits)
    out = x if block.conv_shortcut is None else x.new_empty(inner.shape)
    for top, bottom in _strips(x, limits):
        made = _strip_convolved(inner, block.conv2, normal, top, bottom)
        kept = x[:, :, top:bottom]
        if block.conv_shortcut is not None:
            kept = _convolve(kept, block.conv_shortcut)
        out[:, :, top:bottom] = _scaled(made.add_(kept), block.output_scale_factor)
    return out


def _upsample(x: torch.Tensor, upsampler: Any, limits: DecodeLimits) -> torch.Tensor:
    """Return diffusers' Upsample2D of *x*: every pixel four times, then a convolution."""
    rows, height, width = x.shape[0], 2 * x.shape[2], 2 * x.shape[3]
    out = x.new_empty((rows, upsampler.conv.out_channels, height, width))
    for top, bottom in _strips(out, limits):
        first, last = max(0, top - 1), min(height, bottom + 1)
        source = x[:, :, first // 2 : -(-last // 2)]
        large = functional.interpolate(source, scale_factor=2.0, mode="nearest")[:, :, first % 2 :][
            :, :, : last - first
        ]
        large = functional.pad(large, (1, 1, int(top == 0), int(bottom == height)))
        out[:, :, top:bottom] = _convolve(large, upsampler.conv, padding=0)
    return out


def _attend(x: torch.Tensor, attn: Any, limits: DecodeLimits) -> torch.Tensor:
    """Return *x* plus its attention to itself, for some queries at a time."""
    rows, channels = x.shape[:2]
    tokens = _normaliser(x, attn.group_norm, limits)(x).reshape(rows, channels, -1).transpose(1, 2)

    def project(layer: Any, states: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = functional.linear(states, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
        return projected

    def heads(states: torch.Tensor) -> torch.Tensor:
        return states.reshape(rows, -1, attn.heads, channels // attn.heads).transpose(1, 2)

    query, keys, values = (heads(project(layer, tokens)) for layer in (attn.to_q, attn.to_k, attn.to_v))
    del tokens
    is_fused = x.device.type == "cpu" if limits.is_fused is None else limits.is_fused
    scale = 1 / math.sqrt(channels // attn.heads)
    flat = x.view(rows, channels, -1) if x.is_contiguous() else x.reshape(rows, channels, -1)
    count = query.shape[2]
    chunk = max(1, limits.attention_bytes // (4 * count * rows * attn.heads))
    for start in range(0, count, chunk):
        some = query[:, :, start : start + chunk]
        if is_fused:
            seen = functional.scaled_dot_product_attention(some, keys, values)
        else:
            seen = (some * scale @ keys.transpose(-1, -2)).float().softmax(-1).to(x.dtype) @ values
        seen = seen.transpose(1, 2).reshape(rows, -1, channels)
        made = project(attn.to_out[0], seen).transpose(1, 2)
        total = made + flat[:, :, start : start + chunk]
        flat[:, :, start : start + chunk] = _scaled(total, attn.rescale_output_factor)
    return flat.view(x.shape)


def _scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Return ``x / factor``; for this model the factor is 1, and a whole map need not be divided by it."""
    return x if factor == 1 else x / factor


def _normaliser(x: torch.Tensor, norm: Any, limits: DecodeLimits) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what normalises any rows of *x* by the statistics of all of it (a GroupNorm)."""
    rows, channels = x.shape[:2]
    count, zero = 0, torch.zeros((), device=x.device, dtype=torch.float32)
    mean, squares = zero, zero
    for top, bottom in _strips(x, limits):
        part = x[:, :, top:bottom].float().reshape(rows, norm.num_groups, -1)
        size = part.shape[-1]
        part_variance, part_mean = torch.var_mean(part, dim=-1, correction=0)
        difference, total = part_mean - mean, count + size
        # Chan et al.: two sets' means and sums of squares give those of both, without cancellation.
        squares = squares + part_variance * size + difference**2 * (count * size / total)
        mean = mean + difference * (size / total)
        count = total
    scale = torch.rsqrt(squares / count + norm.eps).repeat_interleave(channels // norm.num_groups, dim=1)
    shift = -mean.repeat_interleave(channels // norm.num_groups, dim=1) * scale
    scale, shift = scale * norm.weight.float(), shift * norm.weight.float() + norm.bias.float()
    scale, shift = scale[:, :, None, None], shift[:, :, None, None]
    return lambda some: torch.addcmul(shift, some.float(), scale).to(some.dtype)


def _strip_convolved(
    x: torch.Tensor, conv: Any, normal: Callable[[torch.Tensor], torch.Tensor], top: int, bottom: int
) -> torch.Tensor:
    """Return rows *top* to *bottom* of the 3 x 3 convolution of the activated, normalised *x*."""
    seen = functional.silu(normal(x[:, :, max(0, top - 1) : bottom + 1]), inplace=True)
    seen = functional.pad(seen, (1, 1, int(top == 0), int(bottom == x.shape[2])))
    return _convolve(seen, conv, padding=0)


def _convolve(x: torch.Tensor, conv: Any, padding: int | None = None) -> torch.Tensor:
    """Return the convolution in *x*'s number type, whatever that of the weights, which stay as they are."""
    bias = None if conv.bias is None else conv.bias.to(x.dtype)
    return functional.conv2d(x, conv.weight.to(x.dtype), bias, padding=conv.padding if padding is None else padding)


def _strips(x: torch.Tensor, limits: DecodeLimits) -> Iterator[tuple[int, int]]:
    height, width = x.shape[2:]
    rows = max(1, limits.strip_pixels // width)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)
