"""ModernBERT (Warner et al., 2024): pre-norm, rotary positions, fused projections, local and global attention."""

from typing import Any

import torch
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    GatedMLPBridge,
    LinearBridge,
    NormalizationBridge,
    RotaryEmbeddingBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from tl_vzero.models.adapters.fused import split_in_place


class FiniteMask(AttentionBridge):
    """Keeps the mask finite in float32, where this attention takes its softmax, also in a float64 model.

    Padding beyond every window sees nothing, and a row of minus infinity would become NaN and spread.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the attention on its arguments, as its block gives them."""
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.dtype == torch.float64:
            kwargs["attention_mask"] = mask.clamp_min(torch.finfo(torch.float32).min)
        return super().forward(*args, **kwargs)


class ModernBertAdapter(ArchitectureAdapter):
    """`ModernBertForMaskedLM`. Hugging Face's own attention runs, with its windows; only its projection is split."""

    supports_generation = False
    # The first block's attention reads the residual stream without a norm.
    supports_fold_ln = False
    supports_center_writing_weights = False

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.normalization_type = "LN"
        self.cfg.positional_embedding_type = "rotary"
        self.cfg.attention_dir = "bidirectional"
        self.cfg.final_rms = False
        self.cfg.gated_mlp = True
        self.cfg.attn_only = False
        self.weight_processing_conversions = {}
        self.component_mapping = {
            "embed": EmbeddingBridge(name="model.embeddings.tok_embeddings"),
            "embed_ln": self._norm("model.embeddings.norm"),
            "rotary_emb": RotaryEmbeddingBridge(name="model.rotary_emb", config=self.cfg),
            "blocks": self._blocks(),
            "ln_final": self._norm("model.final_norm"),
            "prediction_head": GeneralizedComponent(name="head"),
            "unembed": UnembeddingBridge(name="decoder"),
        }

    def prepare_model(self, hf_model: Any) -> None:
        """Make the parts of the fused projections modules, so that there is something to hook."""
        super().prepare_model(hf_model)
        for block in hf_model.model.layers:
            split_in_place(block.attn, "Wqkv", ("q", "k", "v"))
            # The first half of what Hugging Face calls the MLP's input goes through the activation.
            split_in_place(block.mlp, "Wi", ("gate", "up"))

    def _norm(self, name: str) -> NormalizationBridge:
        return NormalizationBridge(name=name, config=self.cfg, use_native_layernorm_autograd=True)

    def _blocks(self) -> BlockBridge:
        attention = FiniteMask(
            name="attn",
            config=self.cfg,
            submodules={
                "q": LinearBridge(name="Wqkv.q"),
                "k": LinearBridge(name="Wqkv.k"),
                "v": LinearBridge(name="Wqkv.v"),
                "o": LinearBridge(name="Wo"),
            },
        )
        mlp = GatedMLPBridge(
            name="mlp",
            config=self.cfg,
            submodules={
                "gate": LinearBridge(name="Wi.gate"),
                "in": LinearBridge(name="Wi.up"),
                "out": LinearBridge(name="Wo"),
            },
        )
        return BlockBridge(
            name="model.layers",
            config=self.cfg,
            submodules={"ln1": self._norm("attn_norm"), "attn": attention, "ln2": self._norm("mlp_norm"), "mlp": mlp},
        )
