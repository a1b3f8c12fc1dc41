"""A tiny random model of every class that TransformerLens has an adapter for, built by the names of config fields."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import transformers

VOCABULARY = 64
WIDTH, HEADS, HEAD_WIDTH = 32, 4, 8

# By the end of a field's name, the first that fits.
_SIZES: dict[str, int] = {
    "vocab_size_per_layer_input": VOCABULARY,
    "vocab_size": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "per_layer_input_dim": 8,
    "num_kv_shared_layers": 0,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layers": 2,
    "n_layer": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_decoder_layers": 2,
    "depth": 2,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 2,
    "n_kv_heads": 2,
    "num_attention_heads": HEADS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "mamba_d_head": 8,
    "mamba_head_dim": 8,
    "num_heads": HEADS,
    "n_head": HEADS,
    "n_heads": HEADS,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "qk_head_dim": 8,
    "v_head_dim": 8,
    "global_head_dim": HEAD_WIDTH,
    "head_dim": HEAD_WIDTH,
    "d_kv": HEAD_WIDTH,
    "kv_channels": HEAD_WIDTH,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "o_lora_rank": 8,
    "state_size": 4,
    "d_state": 4,
    "time_step_rank": 2,
    "dt_rank": 2,
    "n_groups": 1,
    "chunk_size": 4,
    "d_conv": 4,
    "lru_width": WIDTH,
    "attention_window_size": 4,
    "attention_window": 4,
    "sliding_window": 4,
    "d_model": WIDTH,
    "hidden_size": WIDTH,
    "attention_hidden_size": WIDTH,
    "n_embd": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "embed_dim": WIDTH,
    "projection_dim": WIDTH,
    "out_hidden_size": WIDTH,
    "rotary_dim": 4,
    "moe_intermediate_size": 16,
    "intermediate_size": 48,
    "intermediate_size_mlp": 48,
    "shared_expert_intermediate_size": 16,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "d_ff": 48,
    "n_inner": 48,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_seq_len": 64,
    "context_length": 64,
    "max_source_positions": 64,
    "max_target_positions": 64,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "image_size": 16,
    "patch_size": 4,
    "num_mel_bins": 16,
    "max_length": 32,
    "conv_dim": 16,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
# What must fit together in ways that small sizes alone do not give.
_MORE: dict[str, dict[str, Any]] = {
    "FalconH1Config": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]]},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"]},
    "Mamba2Config": {"num_heads": 8, "head_dim": 8},
    "NemotronConfig": {"num_key_value_heads": 2},
    "Zamba2Config": {"layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1]},
}
# These need packages that are not here, or files beside their configuration.
UNBUILT = {"Gemma3nForConditionalGeneration", "Emu3ForConditionalGeneration", "MusicFlamingoForConditionalGeneration"}
_TOKENS = ("token_id", "token_index", "start_index", "end_index")


@cache
def adapted_classes() -> dict[str, Any]:
    """The classes of transformers by their names; adapters of models with code of their own have none here."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    return {
        name: getattr(transformers, name) for name in sorted(SUPPORTED_ARCHITECTURES) if hasattr(transformers, name)
    }


def tiny_config(config_class: Any) -> Any:
    """A configuration with every size made small that its defaults name, those of its parts too."""
    return config_class(**_small(config_class))


def _small(config_class: Any) -> dict[str, Any]:
    defaults = config_class()
    parts = {name: _small(type(part)) for name, part in _parts(defaults)}
    return {**dict(_small_fields(defaults)), **parts, **_MORE.get(config_class.__name__, {})}


def _parts(config: Any) -> Iterator[tuple[str, Any]]:
    for name in getattr(type(config), "sub_configs", {}):
        part = getattr(config, name, None)
        if isinstance(part, transformers.PreTrainedConfig):
            yield name, part


def _small_fields(config: Any) -> Iterator[tuple[str, Any]]:
    for name, value in config.to_dict().items():
        if name in ("layer_types", "block_types", "layers_block_type", "mlp_layer_types", "hybrid_override_pattern"):
            continue
        if name.endswith(_TOKENS):
            yield name, VOCABULARY - 1 if "image" in name or "audio" in name or "video" in name else 1
        elif isinstance(value, int) and not isinstance(value, bool):
            if name in _SIZES:
                yield name, _SIZES[name]
        elif name in ("head_dim", "global_head_dim", "d_head") and value is None:
            yield name, HEAD_WIDTH


@cache
def tiny(name: str) -> Any:
    """A random model of that class; raises what transformers does where small sizes alone do not fit together."""
    model_class = adapted_classes()[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_class(tiny_config(model_class.config_class)).eval()
