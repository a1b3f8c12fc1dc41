"""Encoders, one row each: post-norm blocks under various names, and pre-norm ones with local attention."""

from collections.abc import Callable
from functools import partial
from typing import Any

from support.architecture_row import WINDOW, Architecture, last_third, tiny_model
from support.models import CONTEXT, hf_bert

from tl_vzero.models.adapters import register

# Tests make bridges by TransformerLens's own boot as well, which is to read these.
register()

BERT_LIKE = ("bert.encoder.layer", "attention.self.value")
ROBERTA_LIKE = ("roberta.encoder.layer", "attention.self.value")
# Positions count on from the padding's id, so that the first rows of their table are never a token's.
AFTER_PADDING = {"pad_token_id": 1, "max_position_embeddings": CONTEXT + 2}
BIASED = {"norm_bias": True, "attention_bias": True, "mlp_bias": True}


def encoder(name: str, **changes: Any) -> Callable[[], Any]:
    """An encoder in the spelling of BERT, of 3 layers and 4 heads; `name` may name its head, for words if not."""
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
    }
    wanted = {key: value for key, value in {**shape, **changes}.items() if value is not None}
    config, _, head = name.partition(" ")
    return partial(tiny_model, f"{config}Config", f"{config}{head or 'ForMaskedLM'}", **wanted)


ENCODERS = (
    Architecture("BERT", hf_bert, *BERT_LIKE),
    Architecture("MiniLM", lambda: hf_bert(layers=6, heads=4, width=24), *BERT_LIKE),
    Architecture("RoBERTa", encoder("Roberta", **AFTER_PADDING), *ROBERTA_LIKE),
    Architecture("XLM-RoBERTa", encoder("XLMRoberta", **AFTER_PADDING), *ROBERTA_LIKE),
    Architecture("CamemBERT", encoder("Camembert", **AFTER_PADDING), *ROBERTA_LIKE),
    Architecture("ELECTRA", encoder("Electra", embedding_size=8), "electra.encoder.layer", "attention.self.value"),
    Architecture(
        "DistilBERT",
        encoder("DistilBert", intermediate_size=None, hidden_dim=40),
        "distilbert.transformer.layer",
        "attention.v_lin",
    ),
    Architecture("MPNet", encoder("MPNet", **AFTER_PADDING), "mpnet.encoder.layer", "attention.attn.v"),
    Architecture(
        "ModernBERT",
        encoder("ModernBert", local_attention=WINDOW, global_attn_every_n_layers=2, **BIASED),
        "model.layers",
        "attn.Wqkv",
        last_third,
    ),
)
