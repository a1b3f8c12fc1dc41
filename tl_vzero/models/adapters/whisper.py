"""Whisper (Radford et al., 2023): a pre-norm encoder of spectrogram frames, and a decoder of tokens that reads it."""

from typing import Any

from torch import nn
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    MLPBridge,
    PosEmbedBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from tl_vzero.models.adapters.post_norm import EncoderAdapter, linear_bridges


def _as_features(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """TransformerLens gives every model of sound `input_values`, a waveform; Whisper's name is for a spectrogram."""
    if "input_values" in named:
        named["input_features"] = named.pop("input_values")
    return args, named


class WhisperAdapter(EncoderAdapter):
    """`WhisperForConditionalGeneration`, by the names that TransformerLens gives the parts of a BART."""

    # Each stack ends in a norm of its own, which the folding of TransformerLens does not know.
    supports_fold_ln = False
    supports_center_writing_weights = False

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.is_audio_model = True
        self.weight_processing_conversions = {}
        decoder = {"self_attn": self._attention("self_attn"), "cross_attn": self._attention("encoder_attn", True)}
        norms = {"ln1": "self_attn_layer_norm", "ln2": "encoder_attn_layer_norm", "ln3": "final_layer_norm"}
        self.component_mapping = {
            "encoder_blocks": self._blocks(
                "model.encoder.layers",
                {"ln1": "self_attn_layer_norm", "ln2": "final_layer_norm"},
                {"attn": self._attention("self_attn")},
            ),
            "encoder_ln_final": self._norm("model.encoder.layer_norm"),
            "decoder_embed": EmbeddingBridge(name="model.decoder.embed_tokens"),
            "decoder_pos_embed": PosEmbedBridge(name="model.decoder.embed_positions"),
            "decoder_blocks": self._blocks("model.decoder.layers", norms, decoder),
            "decoder_ln_final": self._norm("model.decoder.layer_norm"),
            "unembed": UnembeddingBridge(name="proj_out"),
        }

    def prepare_model(self, hf_model: Any) -> None:
        """Take the sizes of the decoder, which is what reads tokens, and the spectrogram by Whisper's name for it."""
        super().prepare_model(hf_model)
        config = hf_model.config
        self.cfg.n_ctx, self.cfg.act_fn = config.max_target_positions, config.activation_function
        hf_model.register_forward_pre_hook(_as_features, with_kwargs=True)

    def _attention(self, path: str, reads_encoder: bool = False) -> AttentionBridge:
        paths = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
        parts = linear_bridges(paths)
        return AttentionBridge(name=path, config=self.cfg, submodules=parts, is_cross_attention=reads_encoder)

    def _blocks(self, path: str, norms: dict[str, str], attentions: dict[str, AttentionBridge]) -> BlockBridge:
        mlp = MLPBridge(name=None, config=self.cfg, submodules=linear_bridges({"in": "fc1", "out": "fc2"}))
        of_attention = ("attn_in", "q_input", "k_input", "v_input")
        first = next(iter(attentions))
        aliases = {f"hook_{name}": f"{first}.hook_{name}" for name in of_attention} | {
            "hook_attn_out": f"{first}.hook_out",
            "hook_mlp_in": "mlp.in.hook_in",
            "hook_mlp_out": "mlp.out.hook_out",
        }
        of_norms = {name: self._norm(norm) for name, norm in norms.items()}
        parts: dict[str, GeneralizedComponent] = {**of_norms, **attentions, "mlp": mlp}
        return BlockBridge(name=path, hook_alias_overrides=aliases, submodules=parts)
