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


def _refused(
    name: str, model: str, shape: dict[str, Any], reason: str = NO_VALUES, config: str = "", **more: Any
) -> Refused:
    config = config or model.removesuffix("ForCausalLM") + "Config"
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
    _refused("JetMoE", "JetMoeForCausalLM", TWO_LAYERS, kv_channels=8, num_key_value_heads=2, intermediate_size=32),
    _refused("Falcon H1", "FalconH1ForCausalLM", GROUPED, BESIDE_VALUES, **MAMBA_2, mamba_d_ssm=32),
    _refused(
        "Gemma 4 with shared values",
        "Gemma4ForCausalLM",
        {**GROUPED, "num_hidden_layers": 4},
        "has no hook blocks.2.attn.hook_v .2 of 4 blocks lack it.",
        config="Gemma4TextConfig",
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=60,
        hidden_size_per_layer_input=8,
    ),
    Refused("DeBERTa 1", partial(tiny_model, "DebertaConfig", "DebertaForMaskedLM", **ENCODER), NO_ADAPTER),
    Refused(
        "DeBERTa 2 with a convolution",
        partial(tiny_model, "DebertaV2Config", "DebertaV2ForMaskedLM", **ENCODER, conv_kernel_size=3),
        r"a convolution over positions behind its first block \(conv_kernel_size 3\)",
    ),
    Refused("Qwen 2 VL", partial(_of_text_and_images, "Qwen2VL"), NO_ADAPTER),
)
