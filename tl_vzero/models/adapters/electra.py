"""ELECTRA (Clark et al., ICLR 2020): BERT's blocks, embeddings of a width of their own, and a generator's head."""

from typing import Any

from transformer_lens.model_bridge.generalized_components import LinearBridge

from tl_vzero.models.adapters.post_norm import HeadNames, PostNormEncoderAdapter


class ElectraAdapter(PostNormEncoderAdapter):
    """`ElectraForMaskedLM`, the generator; a discriminator has the same encoder under a head without words."""

    base = "electra"
    head = HeadNames("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head")

    def prepare_model(self, hf_model: Any) -> None:
        """Take in the projection of the embeddings, which is there where they are narrower than the blocks."""
        super().prepare_model(hf_model)
        if hasattr(hf_model.electra, "embeddings_project"):
            self.components["embed_project"] = LinearBridge(name="electra.embeddings_project")
