"""ModernBERT (Warner et al., 2024): pre-norm, rotary positions, fused projections, local and global attention."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    GatedMLPBridge,
    RotaryEmbeddingBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from tl_vzero.models.adapters.post_norm import EncoderAdapter, linear_bridges

# A linear map that computes several things side by side, seen as one module for each of them.


class Part(nn.Linear):
    """Some rows of a fused map's weight. They stay the fused map's own, so that nothing is held twice."""

    def __init__(self, fused: nn.Linear, rows: slice) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = fused.in_features, rows.stop - rows.start
        self._rows = rows
        # In a tuple it is no submodule: the parameters belong to one module only.
        self._fused = (fused,)

    @property
    def weight(self) -> Float[Tensor, "row feature"]:  # type: ignore[override]
        return self._fused[0].weight[self._rows]

    @property
    def bias(self) -> Float[Tensor, "row"] | None:  # type: ignore[override]
        bias = self._fused[0].bias
        return None if bias is None else bias[self._rows]


class SplitLinear(nn.Linear):
    """The fused map, computed part by part; its weight and bias are those of the one it stands for."""

    def __init__(self, fused: nn.Linear, names: Sequence[str]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = fused.in_features, fused.out_features
        self.weight, self.bias = fused.weight, fused.bias
        self._names = tuple(names)
        size = fused.out_features // len(names)
        for first, name in zip(range(0, fused.out_features, size), names, strict=True):
            self.add_module(name, Part(self, slice(first, first + size)))

    def forward(self, rows: Float[Tensor, "*row feature"]) -> Float[Tensor, "*row fused"]:
        """What the fused map computes."""
        return torch.cat([self.get_submodule(name)(rows) for name in self._names], dim=-1)


def split_in_place(parent: nn.Module, name: str, parts: Sequence[str]) -> None:
    """Put a SplitLinear in the place of a module's fused map, unless that was done before."""
    fused = parent.get_submodule(name)
    if isinstance(fused, nn.Linear) and not isinstance(fused, SplitLinear):
        setattr(parent, name, SplitLinear(fused, parts))


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


class ModernBertAdapter(EncoderAdapter):
    """`ModernBertForMaskedLM`. Hugging Face's own attention runs, with its windows; only its projection is split."""

    # The first block's attention reads the residual stream without a norm.
    supports_fold_ln = False
    supports_center_writing_weights = False

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.positional_embedding_type = "rotary"
        self.cfg.gated_mlp = True
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

    def _blocks(self) -> BlockBridge:
        of_attention = {"q": "Wqkv.q", "k": "Wqkv.k", "v": "Wqkv.v", "o": "Wo"}
        attention = FiniteMask(name="attn", config=self.cfg, submodules=linear_bridges(of_attention))
        of_mlp = {"gate": "Wi.gate", "in": "Wi.up", "out": "Wo"}
        mlp = GatedMLPBridge(name="mlp", config=self.cfg, submodules=linear_bridges(of_mlp))
        return BlockBridge(
            name="model.layers",
            config=self.cfg,
            submodules={"ln1": self._norm("attn_norm"), "attn": attention, "ln2": self._norm("mlp_norm"), "mlp": mlp},
        )
