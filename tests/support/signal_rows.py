"""Tiny random models of images and of speech, what they are given, and their maps by plain hooks in float64.

A new architecture costs a row.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import transformers
from support.architecture_row import LINE, LINES
from support.models import randomise, third_party_warnings_ignored
from support.plain_hooks import plain_value_zeroing
from torch import Tensor

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION = {**SHAPE, "image_size": (24, 32), "patch_size": 8}
# Frames begin 20 samples apart and hear 30 samples each.
SPEECH = {
    **SHAPE,
    "vocab_size": 12,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}

IMAGE = torch.randn(3, 24, 32, generator=torch.Generator().manual_seed(1))
SOUND = torch.randn(215, generator=torch.Generator().manual_seed(2))


@dataclass(frozen=True)
class SignalRow:
    """`signal` is an image or a sound that makes `positions` positions; the rest is as in Architecture."""

    name: str
    build: Callable[..., Any]
    blocks: str
    value: str
    signal: Tensor
    positions: int
    lines: tuple[str, ...] = LINES

    def tiny(self) -> Any:
        """The model in float32, made once; whoever changes it takes a copy."""
        return _made(self)

    def reference(self, signal: Tensor | None = None, **options: Any) -> Tensor:
        """Raw maps `[layer, dest, src]` by plain hooks, in float64; options are those of `plain_value_zeroing`."""
        batch = (self.signal if signal is None else signal).double().unsqueeze(0)
        paths = {"blocks": self.blocks, "value": self.value}
        return plain_value_zeroing(
            self.tiny(), range(self.positions), run=lambda model, _: model(batch), **paths, **options
        )


@cache
def _made(row: SignalRow) -> Any:
    return row.build()


def signal_model(name: str, config: dict[str, Any], seed: int = 0, **changes: Any) -> Any:
    """A random model by its class's name, `Config` and the shape given."""
    base = name.partition("Model")[0].partition("For")[0]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomise(getattr(transformers, name)(getattr(transformers, f"{base}Config")(**config, **changes)), seed)


def _vision(name: str, prefix: str, model: str, positions: int) -> SignalRow:
    build = partial(signal_model, model, VISION)
    return SignalRow(name, build, f"{prefix}layers", "attention.v_proj", IMAGE, positions)


def _speech(name: str, prefix: str, model: str, lines: tuple[str, ...] = LINES, **changes: Any) -> SignalRow:
    build = partial(signal_model, model, SPEECH, **changes)
    return SignalRow(name, build, f"{prefix}encoder.layers", "attention.v_proj", SOUND, 10, lines)


SIGNALS = {
    row.name: row
    for row in (
        _vision("ViT", "vit.", "ViTForImageClassification", 13),
        _vision("ViT without a head", "", "ViTModel", 13),
        _vision("DeiT", "deit.", "DeiTForImageClassification", 14),
        _speech("HuBERT", "hubert.", "HubertForCTC"),
        _speech("HuBERT without a head", "", "HubertModel"),
        _speech("HuBERT, pre-norm", "hubert.", "HubertForCTC", **STABLE),
        _speech("wav2vec2", "wav2vec2.", "Wav2Vec2ForCTC", lines=("4.3",)),
        _speech("wav2vec2 without a head", "", "Wav2Vec2Model", lines=("4.3",)),
        _speech("wav2vec2, pre-norm", "wav2vec2.", "Wav2Vec2ForCTC", lines=("4.3",), **STABLE),
    )
}
ON_THIS_LINE = [name for name, row in SIGNALS.items() if LINE in row.lines]


@cache
def reference(name: str) -> Tensor:
    """A row's maps of what it is given."""
    return SIGNALS[name].reference()


@cache
def model_of(name: str) -> Any:
    """The row's model as load_model gives it."""
    import tl_vzero

    return tl_vzero.load_model(copy.deepcopy(SIGNALS[name].tiny()))


def own_bridge(hf_model: Any, attention: str = "sdpa") -> Any:
    """A bridge of the user's own making, around a copy, by TransformerLens alone."""
    from transformer_lens.model_bridge import TransformerBridge

    inner = copy.deepcopy(hf_model)
    inner.config.architectures = [type(inner).__name__]
    inner.set_attn_implementation(attention)
    # From a folder, so that nothing is looked for on the hub.
    with third_party_warnings_ignored(), tempfile.TemporaryDirectory() as folder:
        return TransformerBridge.boot_transformers(folder, hf_model=inner, tokenizer=None, device="cpu").eval()
