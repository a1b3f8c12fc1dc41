"""RoBERTa (Liu et al., 2019) and its kin: BERT's blocks; positions count from behind the padding's."""

from typing import Any

from tl_vzero.models.adapters.post_norm import HeadNames, PostNormEncoderAdapter


class RobertaAdapter(PostNormEncoderAdapter):
    """`RobertaForMaskedLM`, `XLMRobertaForMaskedLM`, `CamembertForMaskedLM`."""

    base = "roberta"
    head = HeadNames("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder")

    def prepare_model(self, hf_model: Any) -> None:
        """A table of 514 positions holds 512 tokens: the first rows, up to the padding's, are never a token's."""
        super().prepare_model(hf_model)
        table = hf_model.get_submodule(f"{self.base}.embeddings.position_embeddings")
        self.cfg.n_ctx = table.num_embeddings - (table.padding_idx + 1)
