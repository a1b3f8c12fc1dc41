"""Sentence pairs: what a tokenizer gives for them, and two independent ways to have a model read their segments.

1. Plain torch hooks on the Hugging Face model, which is called with token_type_ids.
2. A model of one segment with twice the vocabulary: the second half holds each word's vector plus what segment 1 adds
   to it. What it computes of `ids + VOCABULARY * segment` is what the first one computes of ids and segments.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from support.models import VOCABULARY, tokenizer_folder
from support.plain_hooks import plain_value_zeroing, wide_copy
from torch import Tensor
from transformers import PreTrainedTokenizerFast

Pair = tuple[str, str]

# Of different lengths, and so that a batch of them is padded.
PAIRS: list[Pair] = [
    ("the dog [MASK] near.", "a hat of some dogs"),
    ("some hat", "the dog is near [MASK] of the hat."),
    ("dogs [MASK].", "barking"),
]


def tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """The tests' tokenizer as BERT's is: it returns segments too."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast.from_pretrained(tokenizer_folder(), model_input_names=names, **options)


def encoded(pair: Pair) -> Any:
    """One pair as its tokenizer returns it, tensors of one row."""
    return tokenizer()(*pair, return_tensors="pt")


def ids_and_types(pair: Pair) -> tuple[Tensor, Tensor]:
    """Ids and segments of one pair, `[position]` each."""
    encoding = encoded(pair)
    return encoding["input_ids"][0], encoding["token_type_ids"][0]


def reference_maps(
    hf_model: Any,
    ids: Tensor,
    token_types: Tensor,
    blocks: str = "bert.encoder.layer",
    value: str = "attention.self.value",
) -> Tensor:
    """Raw Value Zeroing maps `[layer, dest, src]`, in float64, of the Hugging Face model called with its segments."""
    run = partial(_called, token_types=token_types)
    return plain_value_zeroing(hf_model, ids.tolist(), blocks=blocks, value=value, run=run)


def _called(model: Any, ids: Tensor, token_types: Tensor) -> Any:
    return model(input_ids=ids, token_type_ids=token_types.reshape(1, -1))


@torch.no_grad()
def reference_logits(
    hf_model: Any,
    ids: Tensor,
    token_types: Tensor,
    change: dict[tuple[int, int], Tensor] | None = None,
    values: list[Tensor] | None = None,
) -> Tensor:
    """Logits `[position, vocabulary]` of the Hugging Face model; `change` are values by (layer, source), to be put in.

    What each layer's values were is appended to `values`.
    """
    wide = wide_copy(hf_model)

    def put_in(layer: int, output: Tensor) -> Tensor:
        output = output.clone()
        for (at, source), value in (change or {}).items():
            if at == layer:
                output[0, source] = value
        if values is not None:
            values.append(output[0])
        return output

    for layer, block in enumerate(wide.bert.encoder.layer):
        block.attention.self.value.register_forward_hook(lambda module, inputs, output, at=layer: put_in(at, output))
    return _called(wide, ids.reshape(1, -1), token_types).logits[0]


@torch.no_grad()
def of_one_segment(hf_model: Any) -> Any:
    """The BERT with twice the vocabulary, which reads `ids + VOCABULARY * segment`."""
    config = copy.deepcopy(hf_model.config)
    config.vocab_size = 2 * VOCABULARY
    wider = type(hf_model)(config).to(hf_model.dtype).eval()
    state = hf_model.state_dict()
    first, second = state["bert.embeddings.token_type_embeddings.weight"]
    words = state["bert.embeddings.word_embeddings.weight"]
    for name, weight in wider.state_dict().items():
        if name in state and weight.shape == state[name].shape:
            weight.copy_(state[name])
    wider.bert.embeddings.word_embeddings.weight.copy_(torch.cat([words, words + second - first]))
    for name in ("bias", "decoder.bias"):
        bias = wider.state_dict()[f"cls.predictions.{name}"]
        bias[:VOCABULARY] = state[f"cls.predictions.{name}"]
        bias[VOCABULARY:] = -1e3  # so that no word of the second half is the likeliest
    return wider


def joined(ids: Sequence[int] | Tensor, token_types: Sequence[int] | Tensor) -> Tensor:
    """Ids and segments as ids of the model of one segment."""
    return torch.as_tensor(ids) + VOCABULARY * torch.as_tensor(token_types)
