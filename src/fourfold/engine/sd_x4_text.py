"""What the UNet hears of a prompt: tokens, embeddings, and each attention's keys and values, made once and kept."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeAlias, TypeVar

import torch
from diffusers.models.attention_processor import Attention
from torch.nn import functional

from fourfold.engine.sd_x4_load import Modules

KEPT_PROMPTS: Final = 16
"""Prompts whose keys and values are kept: some 6 MB each at the real model's widths in 16 bit."""

KeysValues: TypeAlias = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Attention's name -> keys and values, each ``[rows, heads, tokens, d]``."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Lru(Generic[_Key, _Value]):
    """The most recently used values, made where they are not there."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[_Key, _Value] = OrderedDict()

    def get(self, key: _Key, make: Callable[[], _Value]) -> _Value:
        """Return the value of *key*; the least recently used one leaves for a new one."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        if len(self._values) > self._size:
            self._values.popitem(last=False)
        return value

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True, slots=True)
class TextAttention:
    """diffusers' attention processor, but for the text's keys and values, which come ready made."""

    name: str

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        text: KeysValues | None = None,
    ) -> torch.Tensor:
        """Attend to the text where there is one for this attention, else to *hidden_states* itself."""
        rows, tokens, _ = hidden_states.shape
        query = _heads(attn, attn.to_q(hidden_states))
        if encoder_hidden_states is None:
            keys, values = _heads(attn, attn.to_k(hidden_states)), _heads(attn, attn.to_v(hidden_states))
        else:
            assert text is not None
            keys, values = text[self.name]
        seen = functional.scaled_dot_product_attention(query, keys, values)
        seen = seen.transpose(1, 2).reshape(rows, tokens, -1)
        projected: torch.Tensor = attn.to_out[0](seen)
        return projected


class Prompts:
    """The prompts of one model. One thread uses it."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._attentions = {
            name: module for name, module in modules.unet.named_modules() if isinstance(module, Attention)
        }
        for name, attention in self._attentions.items():
            attention.set_processor(TextAttention(name))
        self._text_to_kv: Lru[str, KeysValues] = Lru(KEPT_PROMPTS)
        self._texts_to_batch: Lru[tuple[str, ...], KeysValues] = Lru(2)

    def tokens_beyond(self, text: str) -> int:
        """Return how many tokens of *text* the model will not see."""
        count = len(self._modules.tokenizer(text, verbose=False)["input_ids"])  # else it warns of what we tell
        return max(0, count - int(self._modules.tokenizer.model_max_length))

    def rows(self, texts: Sequence[str]) -> KeysValues:
        """Return the keys and values of *texts*, a row each, in order."""
        return self._texts_to_batch.get(tuple(texts), lambda: self._stack(texts))

    def clear(self) -> None:
        """Forget every prompt."""
        self._text_to_kv.clear()
        self._texts_to_batch.clear()

    def embed(self, text: str) -> torch.Tensor:
        """Return the text encoder's ``[1, tokens, width]``, as the stock pipeline makes it."""
        tokenizer, encoder = self._modules.tokenizer, self._modules.text_encoder
        tokens = tokenizer(
            text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
        device = self._modules.device
        embedded: torch.Tensor = encoder(tokens.input_ids.to(device), None if mask is None else mask.to(device))[0]
        return embedded.to(self._modules.dtype)

    def _stack(self, texts: Sequence[str]) -> KeysValues:
        each = [self._text_to_kv.get(text, partial(self._keys_values, text)) for text in texts]
        return {
            name: (torch.cat([kv[name][0] for kv in each]), torch.cat([kv[name][1] for kv in each])) for name in each[0]
        }

    def _keys_values(self, text: str) -> KeysValues:
        embedded = self.embed(text)
        return {
            name: (_heads(attn, attn.to_k(embedded)), _heads(attn, attn.to_v(embedded)))
            for name, attn in self._attentions.items()
            if attn.is_cross_attention
        }


def _heads(attn: Any, states: torch.Tensor) -> torch.Tensor:
    """Return ``[rows, heads, tokens, d]`` of ``[rows, tokens, heads * d]``."""
    rows, tokens, width = states.shape
    return states.view(rows, tokens, attn.heads, width // attn.heads).transpose(1, 2)
