"""Encoders of BERT's kind: attention, add, norm, MLP, add, norm. An architecture names these parts."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
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
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from tl_vzero.errors import ModelError


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


class EncoderAdapter(ArchitectureAdapter):
    """What all encoders with a head for masked words have in common."""

    supports_generation = False

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.normalization_type = "LN"
        self.cfg.positional_embedding_type = "standard"
        self.cfg.attention_dir = "bidirectional"
        self.cfg.final_rms = False
        self.cfg.gated_mlp = False
        self.cfg.attn_only = False

    def _norm(self, name: str) -> NormalizationBridge:
        return NormalizationBridge(name=name, config=self.cfg, use_native_layernorm_autograd=True)


def linear_bridges(paths: Mapping[str, str]) -> dict[str, GeneralizedComponent]:
    """A bridge per linear map, from TransformerLens's names to the paths in the Hugging Face model."""
    return {name: LinearBridge(name=path) for name, path in paths.items()}


class PostNormEncoderAdapter(EncoderAdapter):
    """A post-norm encoder. Subclasses name its parts."""

    # Its norms follow what they belong to: folding would move them into the wrong weights.
    supports_fold_ln = False

    base: ClassVar[str]
    head: ClassVar[tuple[str, str, str]]  # paths of its linear map, its norm and its unembedding
    blocks: ClassVar[str] = "encoder.layer"
    block: ClassVar[BlockNames] = BlockNames()
    has_token_types: ClassVar[bool] = True
    attention_bridge: ClassVar[type[AttentionBridge]] = AttentionBridge

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.weight_processing_conversions = {**self._qkvo_weight_conversions(include_biases=True)}
        dense, norm, unembed = self.head
        self.component_mapping = {
            **self._embeddings(f"{self.base}.embeddings"),
            "blocks": self._blocks(f"{self.base}.{self.blocks}"),
            "mlm_head": LinearBridge(name=dense),
            "ln_final": self._norm(norm),
            "unembed": UnembeddingBridge(name=unembed),
        }

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
        of_attention = {"q": names.query, "k": names.key, "v": names.value, "o": names.output}
        attention = self.attention_bridge(
            name=names.attention, config=self.cfg, submodules=linear_bridges(of_attention)
        )
        of_mlp = {"in": names.mlp_in, "out": names.mlp_out}
        mlp = MLPBridge(name=names.mlp, config=self.cfg, submodules=linear_bridges(of_mlp))
        return BlockBridge(
            name=path,
            config=self.cfg,
            # Without a module of its own, the MLP is seen at its two maps.
            hook_alias_overrides={"hook_mlp_in": "mlp.in.hook_in", "hook_mlp_out": "mlp.out.hook_out"},
            submodules={"attn": attention, "ln1": self._norm(names.norm1), "mlp": mlp, "ln2": self._norm(names.norm2)},
        )


# RoBERTa (Liu et al., 2019) and its kin: BERT's blocks; positions count from behind the padding's.


class RobertaAdapter(PostNormEncoderAdapter):
    """`RobertaForMaskedLM`, `XLMRobertaForMaskedLM`, `CamembertForMaskedLM`."""

    base = "roberta"
    head = ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder")

    def prepare_model(self, hf_model: Any) -> None:
        """A table of 514 positions holds 512 tokens: the first rows, up to the padding's, are never a token's."""
        super().prepare_model(hf_model)
        table = hf_model.get_submodule(f"{self.base}.embeddings.position_embeddings")
        self.cfg.n_ctx = table.num_embeddings - (table.padding_idx + 1)


# DistilBERT (Sanh et al., 2019): BERT's blocks under other names, and no token types.

EPS = 1e-12  # a constant in Hugging Face's code, which the configuration does not name


class DistilBertAdapter(PostNormEncoderAdapter):
    """`DistilBertForMaskedLM`."""

    base = "distilbert"
    blocks = "transformer.layer"
    block = BlockNames(
        query="q_lin",
        key="k_lin",
        value="v_lin",
        output="out_lin",
        norm1="sa_layer_norm",
        mlp="ffn",
        mlp_in="lin1",
        mlp_out="lin2",
        norm2="output_layer_norm",
    )
    head = ("vocab_transform", "vocab_layer_norm", "vocab_projector")
    has_token_types = False

    def prepare_model(self, hf_model: Any) -> None:
        """Read what DistilBERT's configuration calls by names of its own."""
        super().prepare_model(hf_model)
        self.cfg.eps = EPS
        self.cfg.act_fn = hf_model.config.activation
        self.cfg.d_mlp = hf_model.config.hidden_dim


# ELECTRA (Clark et al., ICLR 2020): BERT's blocks, embeddings of a width of their own, and a generator's head.


class ElectraAdapter(PostNormEncoderAdapter):
    """`ElectraForMaskedLM`, the generator; a discriminator has the same encoder under a head without words."""

    base = "electra"
    head = ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head")

    def prepare_model(self, hf_model: Any) -> None:
        """Take in the projection of the embeddings, which is there where they are narrower than the blocks."""
        super().prepare_model(hf_model)
        if hasattr(hf_model.electra, "embeddings_project"):
            self.components["embed_project"] = LinearBridge(name="electra.embeddings_project")


# MPNet (Song et al., NeurIPS 2020): BERT's blocks with a bias by relative position, absolute ones as RoBERTa's.


class PatternOnRequest(AttentionBridge):
    """Asks for the pattern, which this attention hands out to those only who ask."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the attention on its arguments, as its block gives them."""
        return super().forward(*args, **{**kwargs, "output_attentions": True})


class MPNetAdapter(RobertaAdapter):
    """`MPNetForMaskedLM`."""

    base = "mpnet"
    block = BlockNames(query="attn.q", key="attn.k", value="attn.v", output="attn.o", norm1="attention.LayerNorm")
    has_token_types = False
    attention_bridge = PatternOnRequest


# ALBERT (Lan et al., ICLR 2020): one block's weights for all blocks, and embeddings of a width of their own.


class UnsharedEncoder(nn.Module):
    """ALBERT's encoder with a module for each block, so that each has hooks of its own; they share the weights."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        config = encoder.config
        groups = [group.albert_layers for group in encoder.albert_layer_groups]
        per_group = config.num_hidden_layers / len(groups)
        read = [layer for n in range(config.num_hidden_layers) for layer in groups[int(n / per_group)]]
        weights = {id(weight): weight for weight in encoder.parameters()}
        self.embedding_hidden_mapping_in = encoder.embedding_hidden_mapping_in
        self.layer = nn.ModuleList(copy.deepcopy(layer, dict(weights)) for layer in read)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """What ALBERT's own encoder computes."""
        from transformers.modeling_outputs import BaseModelOutput

        hidden_states = self.embedding_hidden_mapping_in(hidden_states)
        for layer in self.layer:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class AlbertAdapter(PostNormEncoderAdapter):
    """`AlbertForMaskedLM`."""

    base = "albert"
    block = BlockNames(
        query="query",
        key="key",
        value="value",
        output="dense",
        norm1="attention.LayerNorm",
        mlp_in="ffn",
        mlp_out="ffn_output",
        norm2="full_layer_layer_norm",
    )
    head = ("predictions.dense", "predictions.LayerNorm", "predictions.decoder")

    def _embeddings(self, path: str) -> dict[str, Any]:
        project = LinearBridge(name="albert.encoder.embedding_hidden_mapping_in")
        return {**super()._embeddings(path), "embed_project": project}

    def prepare_model(self, hf_model: Any) -> None:
        """Give each block a module."""
        super().prepare_model(hf_model)
        if not isinstance(hf_model.albert.encoder, UnsharedEncoder):
            hf_model.albert.encoder = UnsharedEncoder(hf_model.albert.encoder)
        self.cfg.n_layers = len(hf_model.albert.encoder.layer)


# DeBERTa 2 and 3 (He et al., ICLR 2021, ICLR 2023): BERT's blocks; the pattern is of words and of relative positions.


class DebertaV2Adapter(PostNormEncoderAdapter):
    """`DebertaV2ForMaskedLM`. Its own attention runs: words and positions make the pattern, words alone the values."""

    base = "deberta"
    block = BlockNames(query="self.query_proj", key="self.key_proj", value="self.value_proj")
    head = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder")
    has_token_types = False
    attention_bridge = PatternOnRequest

    def prepare_model(self, hf_model: Any) -> None:
        """Leave out the embeddings that most checkpoints lack; refuse what mixes positions between the blocks."""
        super().prepare_model(hf_model)
        embeddings = hf_model.deberta.embeddings
        if hf_model.deberta.encoder.conv is not None:
            raise ModelError(
                "this DeBERTa has a convolution over positions behind its first block (conv_kernel_size "
                f"{hf_model.config.conv_kernel_size}): Value Zeroing would not show what it mixes; expected a DeBERTa "
                "without one, as all of version 3 are"
            )
        if not hf_model.legacy:
            _head_as_legacy(hf_model)
        if embeddings.position_embeddings is None:
            del self.components["pos_embed"]
        if embeddings.token_type_embeddings is not None:
            path = "deberta.embeddings.token_type_embeddings"
            self.components["token_type_embed"] = EmbeddingBridge(name=path)
        if embeddings.embed_proj is not None:
            self.components["embed_project"] = LinearBridge(name="deberta.embeddings.embed_proj")


def _head_as_legacy(hf_model: Any) -> None:
    """Put the later head for words into the modules of the first: it has none for its product with the embeddings."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import LegacyDebertaV2OnlyMLMHead

    later = hf_model.lm_predictions.lm_head
    with torch.device("meta"):
        hf_model.cls = LegacyDebertaV2OnlyMLMHead(hf_model.config).eval()
    first = hf_model.cls.predictions
    first.transform.dense, first.transform.LayerNorm = later.dense, later.LayerNorm
    first.decoder.weight, first.decoder.bias = hf_model.deberta.embeddings.word_embeddings.weight, later.bias
    first.bias = later.bias
    hf_model.legacy = True
    del hf_model.lm_predictions
