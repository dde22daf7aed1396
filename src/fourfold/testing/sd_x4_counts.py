"""What a step and a decode take of any model, counted without computing: on torch's meta device, in seconds.

The meta device knows shapes, number types and layouts, and takes our GPU's path. It does not know what a kernel needs
beside its inputs and outputs, nor that a GPU's eager GroupNorm hands its result on in another layout.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fourfold.engine.sd_x4_decode import DecodeLimits, decode
from fourfold.engine.sd_x4_text import KeysValues, TextAttention
from fourfold.engine.sd_x4_unet import predict
from fourfold.testing.sd_x4 import REAL, Widths, make_unet, make_vae

TOKENS = 77
_META = torch.device("meta")


class LiveBytes(TorchDispatchMode):  # type: ignore[misc]  # torch is not checked
    """Follows what is allocated below it, by storage: each one counts from its first tensor to its last."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if _is_meta(leaf)}
        for leaf in tree_leaves(out):  # those that share an input's memory, a weight's say, are not new
            if _is_meta(leaf) and leaf.untyped_storage()._cdata not in given:
                self._born(leaf.untyped_storage())
        return out

    def _born(self, storage: Any) -> None:
        name = storage._cdata
        if name in self._sizes:
            return
        self._sizes[name] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, name)

    def _gone(self, name: int) -> None:
        self.live -= self._sizes.pop(name)


class Inputs(TorchDispatchMode):  # type: ignore[misc]
    """Notes the first input of every convolution below it, and what is on another device than that."""

    def __init__(self) -> None:
        super().__init__()
        self.convolved: list[torch.Tensor] = []
        self.elsewhere: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("convolution", "conv2d"):
            self.convolved.append(args[0])
        if any(isinstance(leaf, torch.Tensor) and not _is_meta(leaf) for leaf in tree_leaves((args, kwargs))):
            self.elsewhere.append(name)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class MetaModel:
    """A model without numbers, in float16 and laid out as on a GPU."""

    widths: Widths
    unet: Any
    vae: Any

    @classmethod
    def make(cls, widths: Widths = REAL) -> "MetaModel":
        """Return a model of these widths."""
        with torch.device(_META):
            unet, vae = make_unet(widths), make_vae(widths)
        vae.encoder = vae.quant_conv = None
        for module in (unet, vae):
            module.half().eval().requires_grad_(False).to(memory_format=torch.channels_last)
        return cls(widths, unet, vae)

    def step(self, height: int, width: int, *, rows: int = 1, ways: int = 2) -> Callable[[], torch.Tensor]:
        """Return a call of our network: `predict` of *rows* rows of latents of this size."""
        channels = self.unet.config.in_channels
        sample = torch.empty((rows, channels, height, width), device=_META, dtype=torch.float16)
        sample = sample.contiguous(memory_format=torch.channels_last)
        embedding = torch.empty((rows, self.unet.time_embedding.linear_2.out_features), device=_META).half()
        text = self.text(ways * rows)
        return lambda: predict(self.unet, sample, embedding, text, ways=ways)

    def stock_step(self, height: int, width: int) -> Callable[[], torch.Tensor]:
        """Return a call of diffusers' own network for both ways of one row, by its own attention."""
        with torch.device(_META):
            unet = make_unet(self.widths).half().eval().requires_grad_(False)
        sample = torch.empty((2, unet.config.in_channels, height, width), device=_META, dtype=torch.float16)
        states = torch.empty((2, TOKENS, unet.config.cross_attention_dim), device=_META, dtype=torch.float16)
        times = torch.zeros(2, device=_META)
        levels = torch.zeros(2, device=_META, dtype=torch.long)
        return lambda: unet(sample, times, encoder_hidden_states=states, class_labels=levels, return_dict=False)[0]

    def decode(self, height: int, width: int, *, limits: DecodeLimits | None = None) -> Callable[[], None]:
        """Return a decode of latents of this size, to its last strip."""
        latents = torch.empty((1, self.vae.config.latent_channels, height, width), device=_META)

        def work() -> None:
            going = decode(self.vae, latents, dtype=torch.float16, limits=limits or DecodeLimits())
            for _strip in _returned(going):
                pass

        return work

    def text(self, rows: int) -> KeysValues:
        """Return keys and values of *rows* prompts, and have the attentions take them."""
        text: KeysValues = {}
        for name, module in self.unet.named_modules():
            if not isinstance(module, Attention):
                continue
            module.set_processor(TextAttention(name))
            if module.is_cross_attention:
                width = module.to_k.out_features // module.heads
                shape = (rows, module.heads, TOKENS, width)
                text[name] = torch.empty(shape, device=_META).half(), torch.empty(shape, device=_META).half()
        return text


def teraflops(work: Callable[[], Any]) -> float:
    """Return the floating point operations of *work*'s products, two for each multiplication, in 10^12."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) / 1e12


def peak_bytes(work: Callable[[], Any]) -> int:
    """Return the most that *work* holds at once, beside what was there before."""
    with torch.inference_mode(), LiveBytes() as memory:
        work()
    peak: int = memory.peak
    return peak


def _is_meta(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "meta"


def _returned(generator: Any) -> Iterator[Any]:
    """Run *generator* to its end; yield from what it returns."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            yield from end.value
            return
