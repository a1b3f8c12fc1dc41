"""Tiny models of every architecture that the closed form knows, and what its tests compare."""

from functools import cache
from typing import Any

import torch
from support.architecture_row import WITH_CAPS
from support.models import HF_BUILDERS, VOCABULARY, legacy, randomise, third_party_warnings_ignored
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import tl_vzero

IDS = torch.tensor([5, 17, 42, 8, 8, 31, 3, 59, 1, 20, 11])
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2, "head_dim": 8}
MORE = {
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GROUPED, **WITH_CAPS)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=4)),
}
ARCHITECTURES = [*HF_BUILDERS, *MORE]


def maps(model: Any, engine: str, ids: Tensor = IDS, **options: Any) -> Tensor:
    scores = tl_vzero.value_zeroing(model, ids, engine=engine, **options)
    assert scores.metadata["engine"] == engine
    return scores.values.double()


def model_in_float64(architecture: str) -> Any:
    hf_model = randomise(MORE[architecture](), 1) if architecture in MORE else HF_BUILDERS[architecture](1)
    return tl_vzero.load_model(hf_model, dtype=torch.float64)


def assert_same(closed: Tensor, hooked: Tensor, tolerance: float) -> None:
    assert torch.equal(closed == 0, hooked == 0)
    assert ((closed - hooked).abs() <= tolerance * hooked.abs().amax()).all()


def hooked_transformer(**shape: Any) -> Any:
    """A random HookedTransformer of a shape of its own, in float64; skips the test on TransformerLens 4."""
    transformer_class = legacy("HookedTransformer")
    from transformer_lens import HookedTransformerConfig

    config = HookedTransformerConfig(
        d_model=16,
        d_head=4,
        n_layers=3,
        n_ctx=64,
        d_vocab=VOCABULARY,
        seed=0,
        device="cpu",
        dtype=torch.float64,
        **shape,
    )
    with third_party_warnings_ignored():
        return randomise(transformer_class(config), 3).eval()


@cache
def shared_model(architecture: str) -> Any:
    """A float64 model for tests that leave it as it is."""
    return model_in_float64(architecture)


def tolerance_of(architecture: str) -> float:
    """How near the engines are in float64: Hugging Face's RMSNorm computes in float32 even there."""
    return 1e-11 if architecture in ("bert", "gpt2", "neox") else 1e-6
