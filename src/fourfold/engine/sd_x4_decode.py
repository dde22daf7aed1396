"""Decode latents to pixels in little memory and to the same numbers.

Every layer runs in strips of rows over whole feature maps: normalisation takes its statistics from the whole map
first, convolutions see their neighbours' rows, sums are made in place. The attention at the latents' size, whose matrix
would be 256 GiB for a picture of 512 x 512, is made for some queries at a time. Nothing is approximated; only the order
of additions differs from diffusers ``AutoencoderKL.decode``.

float16 ends at 65,504; this decoder "seems to break" there, its authors say. Every map is normalised before it is used,
so a map that is smaller by a power of two gives the same picture, but for the last bits of tiny numbers: in float16 all
maps are kept `FLOAT16_GAIN` times as large as diffusers'.
"""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn import functional

STRIP_PIXELS: Final = 128 * 1024
"""Pixels of one strip."""

ATTENTION_QUERIES: Final = 1024
"""Places of the map that look at all others at a time: with fewer a GPU would wait for its memory. Their matrix, for a
picture of any size, is smaller than the maps of the layers after it."""

FLOAT16_GAIN: Final = 2.0**-5
"""Leaves room for maps up to 2,000,000; smaller, and the scaled weights of a convolution would lose bits."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """How much is computed at once; smaller is slower and needs less memory, and changes nothing else."""

    strip_pixels: int = STRIP_PIXELS
    attention_queries: int = ATTENTION_QUERIES
    is_fused: bool | None = None  #: attention by torch's own kernel; None: on a CPU, as no GPU's takes this width

    def halved(self) -> "DecodeLimits":
        """Return limits that need half the memory beyond the feature maps."""
        return DecodeLimits(max(1, self.strip_pixels // 2), max(1, self.attention_queries // 2), self.is_fused)


@dataclass(frozen=True, slots=True)
class _Convolution:
    """A convolution in a map's number type, whatever that of the weights, which stay as they are."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    padding: tuple[int, int]  #: rows, columns

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, self.weight, self.bias, padding=self.padding)

    def rows(self, x: torch.Tensor, *, above: int, below: int) -> torch.Tensor:
        """Convolve rows of a map that reach into their neighbours; *above*, *below*: zeros beyond the map's edge."""
        if above or below:
            x = functional.pad(x, (0, 0, above, below))
        return functional.conv2d(x, self.weight, self.bias, padding=(0, self.padding[1]))


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
        x = _plain(vae.post_quant_conv, x)(x)
    x = _entering(decoder.conv_in, x)(x).contiguous(memory_format=_layout(x))
    yield
    mid = decoder.mid_block
    x = _resnet(x, mid.resnets[0], limits)
    yield
    if mid.attentions and mid.attentions[0] is not None:
        _attend(x, mid.attentions[0], limits)
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
    # The last sums are made in float32 whatever the maps: float16 has fewer levels than a picture of 16 bits.
    normal = _normaliser(x, decoder.conv_norm_out, limits)
    convolve = _plain(decoder.conv_out, torch.empty((), dtype=torch.float32))
    for top, bottom in _strips(x, limits):
        yield top, _strip_convolved(x, convolve, lambda some: normal(some).float(), top, bottom)


def _resnet(x: torch.Tensor, block: Any, limits: DecodeLimits) -> torch.Tensor:
    """Return diffusers' ResnetBlock2D of *x*, which is used up."""
    normal, convolve = _normaliser(x, block.norm1, limits), _entering(block.conv1, x)
    inner = _map_like(x, block.conv1.out_channels, *x.shape[2:])
    for top, bottom in _strips(x, limits):
        inner[:, :, top:bottom] = _strip_convolved(x, convolve, normal, top, bottom)
    normal, convolve = _normaliser(inner, block.norm2, limits), _entering(block.conv2, x)
    shortcut = None if block.conv_shortcut is None else _within(block.conv_shortcut, x)
    out = x if shortcut is None else _over(x, inner.shape[1])
    for top, bottom in _strips(x, limits):
        made = _strip_convolved(inner, convolve, normal, top, bottom)
        kept = x[:, :, top:bottom]
        made.add_(kept if shortcut is None else shortcut(kept))
        out[:, :, top:bottom] = _scaled(made, block.output_scale_factor)
    return out


def _upsample(x: torch.Tensor, upsampler: Any, limits: DecodeLimits) -> torch.Tensor:
    """Return diffusers' Upsample2D of *x*: every pixel four times, then a convolution."""
    height, width = 2 * x.shape[2], 2 * x.shape[3]
    convolve = _within(upsampler.conv, x)
    out = _map_like(x, upsampler.conv.out_channels, height, width)
    for top, bottom in _strips(out, limits):
        first, last = max(0, top - 1), min(height, bottom + 1)
        source = x[:, :, first // 2 : -(-last // 2)]
        large = functional.interpolate(source, scale_factor=2.0, mode="nearest")[:, :, first % 2 :]
        large = large[:, :, : last - first]
        out[:, :, top:bottom] = convolve.rows(large, above=int(top == 0), below=int(bottom == height))
    return out


def _attend(x: torch.Tensor, attn: Any, limits: DecodeLimits) -> None:
    """Add to *x* its attention to itself, for some queries at a time."""
    channels = x.shape[1]
    tokens = _tokens(_normaliser(x, attn.group_norm, limits)(x))

    def project(layer: Any, states: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        weight, bias = _cast(layer.weight, x, gain), _cast(layer.bias, x, gain)
        projected: torch.Tensor = functional.linear(states, weight, bias)
        return projected

    def heads(states: torch.Tensor) -> torch.Tensor:
        return states.reshape(1, -1, attn.heads, channels // attn.heads).transpose(1, 2)

    query, keys, values = (heads(project(layer, tokens)) for layer in (attn.to_q, attn.to_k, attn.to_v))
    del tokens
    is_fused = x.device.type == "cpu" if limits.is_fused is None else limits.is_fused
    scale = 1 / math.sqrt(channels // attn.heads)
    places = _tokens(x)  # another view of the map
    for start in range(0, query.shape[2], limits.attention_queries):
        part = slice(start, start + limits.attention_queries)
        some = query[:, :, part]
        if is_fused:
            seen = functional.scaled_dot_product_attention(some, keys, values)
        else:
            # Inside, softmax computes in float32 whatever the matrix' type.
            seen = (some * scale @ keys.transpose(-1, -2)).softmax(-1) @ values
        seen = seen.transpose(1, 2).reshape(1, -1, channels)
        made = project(attn.to_out[0], seen, _gain(x)).add_(places[:, part])
        places[:, part] = _scaled(made, attn.rescale_output_factor)


def _scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Return ``x / factor``; for this model the factor is 1, and a whole map need not be divided by it."""
    return x if factor == 1 else x / factor


def _normaliser(x: torch.Tensor, norm: Any, limits: DecodeLimits) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what normalises any rows of *x* by the statistics of all of it (a GroupNorm)."""
    height, channels = x.shape[2], x.shape[1]
    shares, variances, means = [], [], []
    for top, bottom in _strips(x, limits):
        variance, mean = torch.var_mean(x[0, :, top:bottom].float(), dim=(1, 2), correction=0)
        shares.append(torch.full_like(mean, (bottom - top) / height))
        variances.append(variance)
        means.append(mean)
    # A set's variance is its parts' mean variance and the variance of their means: first strips, then channels.
    share, variance, mean = torch.stack(shares), torch.stack(variances), torch.stack(means)
    whole = (share * mean).sum(0)
    variance = (share * (variance + (mean - whole) ** 2)).sum(0).view(norm.num_groups, -1)
    mean = whole.view(norm.num_groups, -1)
    whole = mean.mean(1, keepdim=True)
    variance = (variance + (mean - whole) ** 2).mean(1, keepdim=True)
    mean, variance = (part.expand(-1, channels // norm.num_groups).reshape(-1) for part in (whole, variance))
    weight, bias, eps = norm.weight.float(), norm.bias.float(), norm.eps * _gain(x) ** 2
    return lambda some: functional.batch_norm(some, mean, variance, weight, bias, eps=eps)


def _strip_convolved(
    x: torch.Tensor, convolve: _Convolution, normal: Callable[[torch.Tensor], torch.Tensor], top: int, bottom: int
) -> torch.Tensor:
    """Return rows *top* to *bottom* of the 3 x 3 convolution of the activated, normalised *x*."""
    seen = functional.silu(normal(x[:, :, max(0, top - 1) : bottom + 1]), inplace=True)
    return convolve.rows(seen, above=int(top == 0), below=int(bottom == x.shape[2]))


def _plain(conv: Any, x: torch.Tensor) -> _Convolution:
    """Return *conv* for what is no map before or after: latents, normalised rows, pixels."""
    return _Convolution(_cast(conv.weight, x), _cast(conv.bias, x), conv.padding)


def _entering(conv: Any, x: torch.Tensor) -> _Convolution:
    """Return *conv* for what becomes a map, or is added to one."""
    gain = _gain(x)
    return _Convolution(_cast(conv.weight, x, gain), _cast(conv.bias, x, gain), conv.padding)


def _within(conv: Any, x: torch.Tensor) -> _Convolution:
    """Return *conv* for a map, which becomes another."""
    return _Convolution(_cast(conv.weight, x), _cast(conv.bias, x, _gain(x)), conv.padding)


def _cast(weight: Any, x: torch.Tensor, gain: float = 1.0) -> Any:
    """Return *weight* times *gain* in *x*'s number type; None stays None."""
    if weight is None:
        return None
    return weight.to(x.dtype) if gain == 1 else (weight * gain).to(x.dtype)


def _gain(x: torch.Tensor) -> float:
    return FLOAT16_GAIN if x.dtype == torch.float16 else 1.0


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """Return a view ``[1, h w, c]``."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _layout(x: torch.Tensor) -> torch.memory_format:
    """Return how maps lie in memory: as the device's convolutions want them."""
    return torch.contiguous_format if x.device.type == "cpu" else torch.channels_last


def _map_like(x: torch.Tensor, channels: int, height: int, width: int) -> torch.Tensor:
    size = (1, channels, height, width)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=_layout(x))


def _over(x: torch.Tensor, channels: int) -> torch.Tensor:
    """Return a map of *channels* in the memory of *x*, if it has room.

    Filled from the top it overwrites only rows of *x* that are filled, too.
    """
    height, width = x.shape[2:]
    if channels > x.shape[1]:
        return _map_like(x, channels, height, width)
    is_last = _layout(x) is torch.channels_last
    strides = (channels * width, channels, 1) if is_last else (width, 1, height * width)
    down, across, deep = strides
    return x.as_strided((1, channels, height, width), (channels * height * width, deep, down, across))


def _strips(x: torch.Tensor, limits: DecodeLimits) -> Iterator[tuple[int, int]]:
    height, width = x.shape[2:]
    rows = max(1, limits.strip_pixels // width)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)
