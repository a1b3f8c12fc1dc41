"""Encoders of BERT's kind: attention, add, norm, MLP, add, norm. An architecture names these parts."""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    LinearBridge,
    MLPBridge,
    NormalizationBridge,
    PosEmbedBridge,
    UnembeddingBridge,
)


@dataclass(frozen=True)
class BlockNames:
    """Paths inside a block, those of query to output inside its attention; the defaults are BERT's."""

    attention: str = "attention"
    query: str = "self.query"
    key: str = "self.key"
    value: str = "self.value"
    output: str = "output.dense"
    norm1: str = "attention.output.LayerNorm"
    mlp: str | None = None  # BERT has no module of its own for the MLP: its two maps hang on the block
    mlp_in: str = "intermediate.dense"
    mlp_out: str = "output.dense"
    norm2: str = "output.LayerNorm"


@dataclass(frozen=True)
class HeadNames:
    """Paths of a masked language model's head."""

    dense: str
    norm: str
    unembed: str


class PostNormEncoderAdapter(ArchitectureAdapter):
    """A post-norm encoder with a head for masked words. Subclasses name its parts."""

    supports_generation = False
    # Its norms follow what they belong to: folding would move them into the wrong weights.
    supports_fold_ln = False

    base: ClassVar[str]
    head: ClassVar[HeadNames]
    blocks: ClassVar[str] = "encoder.layer"
    block: ClassVar[BlockNames] = BlockNames()
    has_token_types: ClassVar[bool] = True
    attention_bridge: ClassVar[type[AttentionBridge]] = AttentionBridge

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.normalization_type = "LN"
        self.cfg.positional_embedding_type = "standard"
        self.cfg.attention_dir = "bidirectional"
        self.cfg.final_rms = False
        self.cfg.gated_mlp = False
        self.cfg.attn_only = False
        self.weight_processing_conversions = {**self._qkvo_weight_conversions(include_biases=True)}
        self.component_mapping = {
            **self._embeddings(f"{self.base}.embeddings"),
            "blocks": self._blocks(f"{self.base}.{self.blocks}"),
            "mlm_head": LinearBridge(name=self.head.dense),
            "ln_final": self._norm(self.head.norm),
            "unembed": UnembeddingBridge(name=self.head.unembed),
        }

    def _norm(self, name: str) -> NormalizationBridge:
        return NormalizationBridge(name=name, config=self.cfg, use_native_layernorm_autograd=True)

    def _embeddings(self, path: str) -> dict[str, Any]:
        components: dict[str, Any] = {
            "embed": EmbeddingBridge(name=f"{path}.word_embeddings"),
            "pos_embed": PosEmbedBridge(name=f"{path}.position_embeddings"),
            "embed_ln": self._norm(f"{path}.LayerNorm"),
        }
        if self.has_token_types:
            components["token_type_embed"] = EmbeddingBridge(name=f"{path}.token_type_embeddings")
        return components

    def _blocks(self, path: str) -> BlockBridge:
        names = self.block
        attention = self.attention_bridge(
            name=names.attention,
            config=self.cfg,
            submodules={
                "q": LinearBridge(name=names.query),
                "k": LinearBridge(name=names.key),
                "v": LinearBridge(name=names.value),
                "o": LinearBridge(name=names.output),
            },
        )
        mlp = MLPBridge(
            name=names.mlp,
            config=self.cfg,
            submodules={"in": LinearBridge(name=names.mlp_in), "out": LinearBridge(name=names.mlp_out)},
        )
        return BlockBridge(
            name=path,
            config=self.cfg,
            # Without a module of its own, the MLP is seen at its two maps.
            hook_alias_overrides={"hook_mlp_in": "mlp.in.hook_in", "hook_mlp_out": "mlp.out.hook_out"},
            submodules={"attn": attention, "ln1": self._norm(names.norm1), "mlp": mlp, "ln2": self._norm(names.norm2)},
        )
