"""MPNet (Song et al., NeurIPS 2020): BERT's blocks with a bias by relative position, absolute ones as RoBERTa's."""

from typing import Any

from transformer_lens.model_bridge.generalized_components import AttentionBridge

from tl_vzero.models.adapters.post_norm import BlockNames
from tl_vzero.models.adapters.roberta import RobertaAdapter


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
