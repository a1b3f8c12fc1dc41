"""DistilBERT (Sanh et al., 2019): BERT's blocks under other names, and no token types."""

from typing import Any

from tl_vzero.models.adapters.post_norm import BlockNames, HeadNames, PostNormEncoderAdapter

# Hugging Face's constant, which the configuration does not name.
EPS = 1e-12


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
    head = HeadNames("vocab_transform", "vocab_layer_norm", "vocab_projector")
    has_token_types = False

    def prepare_model(self, hf_model: Any) -> None:
        """Read what DistilBERT's configuration calls by names of its own."""
        super().prepare_model(hf_model)
        self.cfg.eps = EPS
        self.cfg.act_fn = hf_model.config.activation
        self.cfg.d_mlp = hf_model.config.hidden_dim
