"""Decoders, one row each: parallel blocks, local attention, grouped queries, post-norms, soft caps, experts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from support.architecture_row import (
    WINDOW,
    WITH_CAPS,
    Architecture,
    after_queries_and_keys,
    last_third,
    one_after_queries,
    third_of_each_head,
    tiny_model,
)
from support.models import CONTEXT, VOCABULARY, hf_gpt2, hf_llama, hf_neox
from torch import Tensor

V_PROJ = ("model.layers", "self_attn.v_proj")
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SLIDING_AND_FULL = ["sliding_attention", "full_attention", "sliding_attention"]


def decoder(name: str, **changes: Any) -> Callable[[], Any]:
    """A decoder in the spelling of Llama: 4 query heads and 2 value heads."""
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    }
    return _builder(name, {**shape, **changes})


def ungrouped(name: str, **changes: Any) -> Callable[[], Any]:
    """The same for classes that know no grouped queries."""
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
    return _builder(name, {**shape, **changes})


def gpt2_spelling(name: str, **changes: Any) -> Callable[[], Any]:
    """A decoder in the spelling of GPT-2."""
    return _builder(name, {"n_embd": 16, "n_head": 4, "n_layer": 3, "n_positions": CONTEXT, **changes})


def _builder(name: str, shape: dict[str, Any]) -> Callable[[], Any]:
    config, _, head = name.partition(" ")
    return partial(tiny_model, f"{config}Config", head or f"{config.removesuffix('Text')}ForCausalLM", **shape)


def second_of_each_part(config: Any) -> Tensor:
    """CodeGen's four parts, made for four devices: each has queries, values, keys of a quarter of the heads."""
    return torch.arange(3 * config.n_embd).view(4, 3, -1)[:, 1].reshape(config.n_head, -1)


def last_of_each_group(config: Any) -> Tensor:
    """Some queries, their key and their value, then the next such group."""
    groups, width = config.num_kv_heads, config.hidden_size // config.num_attention_heads
    return torch.arange((config.num_attention_heads + 2 * groups) * width).view(groups, -1, width)[:, -1]


def behind_each_key(config: Any) -> Tensor:
    """What a latent is made into: key and value of one head, then those of the next."""
    width = config.qk_nope_head_dim + config.v_head_dim
    return torch.arange(config.num_attention_heads * width).view(-1, width)[:, config.qk_nope_head_dim :]


def latent(name: str, **changes: Any) -> Architecture:
    """A decoder with multi-head latent attention, its values wider than its keys without position."""
    shape = {
        "num_key_value_heads": 4,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 6,
    }
    build = decoder(name.partition(": ")[2], **shape, **changes)
    return Architecture(name.partition(": ")[0], build, "model.layers", "self_attn.kv_b_proj", behind_each_key)


ROUTED = {"n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "n_shared_experts": 1}
ROUTED |= {"first_k_dense_replace": 2, "n_group": 1, "topk_group": 1}
LATENT = (
    latent("DeepSeek V2: DeepseekV2", **ROUTED),
    latent("DeepSeek V3: DeepseekV3", **ROUTED),
    latent("GLM 4 MoE Lite: Glm4MoeLite", **ROUTED),
    latent("GLM MoE DSA: GlmMoeDsa", **ROUTED, index_topk=4, index_head_dim=8, index_n_heads=2),
    latent("Youtu: Youtu"),
)
# load_model mends what TransformerLens's own adapters leave out: a bridge of the user's own is refused.
MENDED = {*(row.name for row in LATENT), "Falcon, new decoder", "OpenAI GPT"}

DECODERS = (
    Architecture("GPT-2", hf_gpt2, "transformer.h", "attn.c_attn", last_third),
    Architecture("GPT-NeoX, Pythia", hf_neox, "gpt_neox.layers", "attention.query_key_value", third_of_each_head),
    Architecture(
        "GPT-Neo",
        _builder(
            "GPTNeo",
            {
                "hidden_size": 16,
                "num_layers": 4,
                "num_heads": 4,
                "attention_types": [[["global", "local"], 2]],
                "window_size": WINDOW,
                "max_position_embeddings": CONTEXT,
            },
        ),
        "transformer.h",
        "attn.attention.v_proj",
    ),
    Architecture("GPT-J", gpt2_spelling("GPTJ", rotary_dim=4), "transformer.h", "attn.v_proj"),
    Architecture(
        "CodeGen", gpt2_spelling("CodeGen", rotary_dim=4), "transformer.h", "attn.qkv_proj", second_of_each_part
    ),
    Architecture(
        "OpenAI GPT", gpt2_spelling("OpenAIGPT OpenAIGPTLMHeadModel"), "transformer.h", "attn.c_attn", last_third
    ),
    Architecture("GPT-BigCode", gpt2_spelling("GPTBigCode"), "transformer.h", "attn.c_attn", one_after_queries),
    Architecture(
        "MPT",
        _builder("Mpt", {"d_model": 16, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2, "max_seq_len": CONTEXT}),
        "transformer.blocks",
        "attn.Wqkv",
        last_third,
    ),
    Architecture(
        "XGLM",
        _builder("XGLM", {"d_model": 16, "num_layers": 3, "attention_heads": 4, "ffn_dim": 32}),
        *V_PROJ,
    ),
    Architecture(
        "OPT",
        ungrouped("OPT", ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=CONTEXT),
        "model.decoder.layers",
        "self_attn.v_proj",
    ),
    Architecture(
        "OPT, post-norm",
        ungrouped(
            "OPT", ffn_dim=32, word_embed_proj_dim=8, max_position_embeddings=CONTEXT, do_layer_norm_before=False
        ),
        "model.decoder.layers",
        "self_attn.v_proj",
    ),
    Architecture("BLOOM", ungrouped("Bloom"), "transformer.h", "self_attention.query_key_value", third_of_each_head),
    Architecture(
        "Falcon", ungrouped("Falcon", bias=True), "transformer.h", "self_attention.query_key_value", one_after_queries
    ),
    Architecture(
        "Falcon, new decoder",
        ungrouped("Falcon", new_decoder_architecture=True, num_kv_heads=2),
        "transformer.h",
        "self_attention.query_key_value",
        last_of_each_group,
    ),
    Architecture("Llama", hf_llama, *V_PROJ),
    Architecture("Llama 4", decoder("Llama4Text Llama4ForCausalLM", head_dim=8, moe_layers=[]), *V_PROJ),
    Architecture("Mistral", decoder("Mistral", sliding_window=WINDOW), *V_PROJ),
    Architecture("Ministral 3", decoder("Ministral3", head_dim=8), *V_PROJ),
    Architecture("Mixtral", decoder("Mixtral", **LOCAL_EXPERTS), *V_PROJ),
    Architecture("Qwen 2", decoder("Qwen2"), *V_PROJ),
    Architecture("Qwen 2 MoE", decoder("Qwen2Moe", **EXPERTS, shared_expert_intermediate_size=16), *V_PROJ),
    Architecture("Qwen 3", decoder("Qwen3", head_dim=8), *V_PROJ),
    Architecture("Qwen 3 MoE", decoder("Qwen3Moe", head_dim=8, **EXPERTS), *V_PROJ),
    Architecture("Gemma", decoder("Gemma", head_dim=4), *V_PROJ),
    Architecture(
        "Gemma 2",
        decoder(
            "Gemma2",
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=WINDOW,
            # Low enough to bend the scores and logits of so small a model.
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
            **WITH_CAPS,
        ),
        *V_PROJ,
    ),
    Architecture(
        "Gemma 3",
        decoder(
            "Gemma3Text",
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=WINDOW,
            layer_types=SLIDING_AND_FULL,
        ),
        *V_PROJ,
    ),
    Architecture(
        "Gemma 4",
        decoder(
            "Gemma4Text Gemma4ForCausalLM",
            head_dim=8,
            global_head_dim=16,
            num_global_key_value_heads=1,
            sliding_window=WINDOW,
            layer_types=SLIDING_AND_FULL,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=VOCABULARY,
            num_kv_shared_layers=0,
        ),
        *V_PROJ,
    ),
    Architecture(
        "VaultGemma", decoder("VaultGemma", head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW), *V_PROJ
    ),
    Architecture("Phi", decoder("Phi", num_key_value_heads=4), *V_PROJ),
    Architecture("Phi 3", decoder("Phi3"), "model.layers", "self_attn.qkv_proj", after_queries_and_keys),
    Architecture(
        "gpt-oss",
        decoder("GptOss", head_dim=8, **LOCAL_EXPERTS, sliding_window=WINDOW, layer_types=SLIDING_AND_FULL),
        *V_PROJ,
    ),
    Architecture("OLMo", decoder("Olmo"), *V_PROJ),
    Architecture("OLMo 2", decoder("Olmo2"), *V_PROJ),
    Architecture("OLMo 3", decoder("Olmo3", sliding_window=WINDOW, layer_types=SLIDING_AND_FULL), *V_PROJ),
    Architecture("OLMoE", decoder("Olmoe", num_experts=4, num_experts_per_tok=2), *V_PROJ),
    # TransformerLens 3.9 rotates queries and keys otherwise than these models do, and is refused.
    Architecture("Command R", decoder("Cohere"), *V_PROJ, lines=("4.3",)),
    Architecture("Command R 7B", decoder("Cohere2", sliding_window=WINDOW), *V_PROJ, lines=("4.3",)),
    Architecture("MiniMax M2", decoder("MiniMaxM2", head_dim=8, **LOCAL_EXPERTS), *V_PROJ),
    Architecture("Granite MoE", decoder("GraniteMoe", **LOCAL_EXPERTS), *V_PROJ),
    Architecture("Granite", decoder("Granite", residual_multiplier=0.5, attention_multiplier=0.3), *V_PROJ),
    Architecture("StarCoder 2", decoder("Starcoder2"), *V_PROJ),
    Architecture("Seed-OSS", decoder("SeedOss"), *V_PROJ),
    Architecture("Ernie 4.5", decoder("Ernie4_5"), *V_PROJ),
    Architecture("Arcee", decoder("Arcee"), *V_PROJ),
    # TransformerLens 3.9 computes other queries and keys, and is refused.
    Architecture("HunYuan", decoder("HunYuanDenseV1", head_dim=4), *V_PROJ, lines=("4.3",)),
    Architecture("StableLM", decoder("StableLm", partial_rotary_factor=0.5, use_qkv_bias=True), *V_PROJ),
    Architecture("SmolLM 3", decoder("SmolLM3"), *V_PROJ),
    Architecture("GLM", decoder("Glm", head_dim=8), *V_PROJ),
    Architecture("GLM 4 MoE", decoder("Glm4Moe", head_dim=8, **ROUTED), *V_PROJ),
    Architecture("GLM 4", decoder("Glm4", head_dim=8), *V_PROJ),
    Architecture("EXAONE 4", decoder("Exaone4", sliding_window=WINDOW), *V_PROJ),
    Architecture("Nemotron", decoder("Nemotron"), *V_PROJ),
    Architecture("Apertus", decoder("Apertus"), *V_PROJ),
    *LATENT,
)
