"""What a row of the table of architectures says, and what rows are made with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
import transformers
from support.models import VOCABULARY, randomise
from support.plain_hooks import Columns, head_width, plain_value_zeroing, value_heads
from torch import Tensor

LINES = ("3.9", "4.3")
LINE = "3.9" if version("transformer-lens").startswith("3.") else "4.3"
# What the lowest transformers that is declared does not run, or has in another layout than TransformerLens reads.
NOT_HERE = {"GLM MoE DSA", "Qwen 2 Audio"} if version("transformers").startswith("5.9.") else set()

# Longer than the window below; no id is a special token's.
IDS = [17, 5, 41, 9, 31, 28, 9, 52, 12]
WINDOW = 4

# For Gemma 2: its default in Transformers before 5.21 is sdpa, which leaves its soft caps out.
WITH_CAPS = {"attn_implementation": "eager"}


@dataclass(frozen=True)
class Architecture:
    """A tiny random Hugging Face model of an architecture, and where it keeps its values.

    `blocks` is the path to the blocks, `value` the path in a block to the module that computes values, `columns` which
    of its outputs are values where it computes more. `lines` are the TransformerLens lines that read it. `unshared`
    makes a model of the same function whose blocks are modules of their own, where the model's are not.
    """

    name: str
    build: Callable[..., Any]
    blocks: str
    value: str
    columns: Columns | None = None
    lines: tuple[str, ...] = LINES
    unshared: Callable[[Any], Any] = lambda hf_model: hf_model

    def tiny(self) -> Any:
        """The model in float32, made once; whoever changes it takes a copy."""
        return _made(self)

    def heads(self) -> tuple[int, int]:
        """How many query heads and how many value heads there are."""
        config = self.tiny().config
        return config.num_attention_heads, value_heads(config) if self.columns is None else len(self.columns(config))

    def reference(self, ids: list[int] = IDS, **options: Any) -> Tensor:
        """Raw maps `[layer, dest, src]` by plain hooks, in float64; options are those of `plain_value_zeroing`."""
        return plain_value_zeroing(
            self.unshared(self.tiny()), ids, blocks=self.blocks, value=self.value, columns=self.columns, **options
        )


@cache
def _made(row: Architecture) -> Any:
    return row.build()


def tiny_model(config: str, model: str, /, seed: int = 0, **shape: Any) -> Any:
    """A random model of a Hugging Face class, by the names of its configuration and of itself."""
    shape = {"vocab_size": VOCABULARY, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, **shape}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomise(getattr(transformers, model)(getattr(transformers, config)(**shape)), seed)


def last_third(config: Any) -> Tensor:
    """Query, key and value side by side, each head after head."""
    width = config.num_attention_heads * head_width(config)
    return 2 * width + torch.arange(width).view(config.num_attention_heads, -1)


def third_of_each_head(config: Any) -> Tensor:
    """Query, key and value of one head, then those of the next."""
    return torch.arange(3 * config.hidden_size).view(config.num_attention_heads, 3, -1)[:, 2]


def after_queries_and_keys(config: Any) -> Tensor:
    """All queries, the keys of the value heads, their values."""
    return _after_queries(value_heads(config), config)


def one_after_queries(config: Any) -> Tensor:
    """All queries, one key for them all, one value."""
    return _after_queries(1, config)


def _after_queries(count: int, config: Any) -> Tensor:
    width = head_width(config)
    first = (config.num_attention_heads + count) * width
    return first + torch.arange(count * width).view(count, width)
