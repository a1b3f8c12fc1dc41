"""Models that TransformerLens reads and tl_vzero refuses: a builder and a part of the stated reason for each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import transformers
from support.architecture_row import LINES, tiny_model
from support.models import VOCABULARY, randomise

NO_VALUES = "has no hook blocks.0.attn.hook_v"
NO_ADAPTER = "Could not determine supported architecture"
BESIDE_VALUES = "mixes positions by other means than the values"

TWO_LAYERS = {"hidden_size": 16, "num_hidden_layers": 2}
ENCODER = {**TWO_LAYERS, "intermediate_size": 32, "num_attention_heads": 2}
GROUPED = {**TWO_LAYERS, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
MAMBA = {"state_size": 4, "expand": 2}
MAMBA_2 = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1, "mamba_chunk_size": 4}


@dataclass(frozen=True)
class Refused:
    """A tiny random Hugging Face model that is refused at load, on these TransformerLens lines."""

    name: str
    build: Callable[[], Any]
    reason: str
    lines: tuple[str, ...] = LINES


def _refused(name: str, model: str, shape: dict[str, Any], reason: str = NO_VALUES, **more: Any) -> Refused:
    config = model.removesuffix("ForCausalLM") + "Config"
    return Refused(name, partial(tiny_model, config, model, **shape, **more), reason)


def _of_text_and_images(name: str) -> Any:
    """A model that also reads images, of text alone."""
    text = {
        **GROUPED,
        "vocab_size": VOCABULARY,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0]},
    }
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16}
    )
    return randomise(getattr(transformers, f"{name}ForConditionalGeneration")(config), 0)


REFUSED = (
    _refused("Mamba", "MambaForCausalLM", TWO_LAYERS, **MAMBA, time_step_rank=2),
    _refused("Mamba 2", "Mamba2ForCausalLM", TWO_LAYERS, **MAMBA, num_heads=4, head_dim=8, n_groups=1, chunk_size=4),
    _refused("Falcon Mamba", "FalconMambaForCausalLM", TWO_LAYERS, **MAMBA, time_step_rank=2),
    _refused("RWKV", "RwkvForCausalLM", TWO_LAYERS, context_length=64, attention_hidden_size=16, intermediate_size=32),
    _refused(
        "Jamba",
        "JambaForCausalLM",
        GROUPED,
        # Transformers before 5.13 cannot run it wrapped: they tell its blocks apart by class.
        f"{NO_VALUES}|cannot run JambaForCausalLM",
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=2,
        use_mamba_kernels=False,
        mamba_d_state=4,
        mamba_dt_rank=2,
    ),
    _refused("Bamba", "BambaForCausalLM", GROUPED, attn_layer_indices=[1], mamba_expand=2, **MAMBA_2),
    _refused(
        "Granite 4 H",
        "GraniteMoeHybridForCausalLM",
        GROUPED,
        "cannot run GraniteMoeHybridForCausalLM, which runs by itself",
        layer_types=["mamba", "attention"],
        mamba_expand=2,
        **MAMBA_2,
        num_local_experts=0,
        shared_intermediate_size=32,
    ),
    _refused("LFM 2", "Lfm2ForCausalLM", GROUPED, layer_types=["conv", "full_attention"]),
    _refused(
        "RecurrentGemma",
        "RecurrentGemmaForCausalLM",
        {**GROUPED, "num_key_value_heads": 4},
        block_types=["recurrent", "attention"],
        attention_window_size=4,
        lru_width=16,
    ),
    _refused(
        "Qwen 3 Next",
        "Qwen3NextForCausalLM",
        GROUPED,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"],
    ),
    _refused("Falcon H1", "FalconH1ForCausalLM", GROUPED, BESIDE_VALUES, **MAMBA_2, mamba_d_ssm=32),
    _refused(
        "DeepSeek V2",
        "DeepseekV2ForCausalLM",
        {**GROUPED, "num_key_value_heads": 4},
        r"hook_v has shape \[\d+, 4, 5, 4\] on a block input of shape",
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=4,
        n_routed_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        n_shared_experts=1,
        first_k_dense_replace=2,
    ),
    Refused(
        "OpenAI GPT",
        partial(tiny_model, "OpenAIGPTConfig", "OpenAIGPTLMHeadModel", n_embd=16, n_head=4, n_layer=3, n_positions=64),
        "hook_out' never fired",
    ),
    Refused(
        "ALBERT",
        partial(tiny_model, "AlbertConfig", "AlbertForMaskedLM", **ENCODER, embedding_size=8),
        NO_ADAPTER,
    ),
    Refused("Qwen 2 VL", partial(_of_text_and_images, "Qwen2VL"), NO_ADAPTER),
    Refused("DeBERTa 2", partial(tiny_model, "DebertaV2Config", "DebertaV2ForMaskedLM", **ENCODER), NO_ADAPTER),
)
