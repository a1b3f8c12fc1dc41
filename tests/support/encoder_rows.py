"""Encoders, one row each: post-norm blocks under various names, and pre-norm ones with local attention."""

import copy
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
# As in version 3: words and positions meet in the pattern alone, at distances in buckets.
DISENTANGLED = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "position_buckets": 4,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}


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


def albert_of_as_many_groups(hf_model: Any) -> Any:
    """An ALBERT that shares no block's weights, and holds in each what the shared ones hold."""
    config = copy.deepcopy(hf_model.config)
    config.num_hidden_groups = config.num_hidden_layers
    unshared = type(hf_model)(config).to(hf_model.dtype).eval()
    unshared.load_state_dict(hf_model.state_dict(), strict=False)
    groups, shared = unshared.albert.encoder.albert_layer_groups, hf_model.albert.encoder.albert_layer_groups
    for layer, group in enumerate(groups):
        group.load_state_dict(shared[layer * len(shared) // len(groups)].state_dict())
    return unshared


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
    Architecture(
        "ALBERT",
        encoder("Albert", embedding_size=8, num_hidden_groups=2),
        "albert.encoder.albert_layer_groups",
        "albert_layers.0.attention.value",
        unshared=albert_of_as_many_groups,
    ),
    Architecture(
        "DeBERTa 2, 3",
        encoder("DebertaV2", **DISENTANGLED),
        "deberta.encoder.layer",
        "attention.self.value_proj",
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

# Read by adapters of tl_vzero's.
OURS = [row.name for row in ENCODERS if row.name not in ("BERT", "MiniLM")]
