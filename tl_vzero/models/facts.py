"""Facts about a model beyond its weights: name, tokenizer, head, vocabulary, context length, segments."""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

import tl_vzero
from tl_vzero.models.sites import hf_model_of, roots_of

if TYPE_CHECKING:
    from tl_vzero.models.class_head import ClassHead

Head = Literal["trained", "absent", "unknown"]


@dataclass(frozen=True)
class Facts:
    """Where a model came from. `tokenizer` is as its folder has it, before TransformerLens adds to it.

    `head` is the one for words; a classifier's, trained for classes, is `classes`, or the reason why its logits are
    not computed, as the end of "its head ...". `misreads_media`: TransformerLens makes something else of an image or a
    sound than the model itself.
    """

    name: str
    tokenizer: Any | None
    head: Head
    classes: "ClassHead | str | None" = None
    misreads_media: bool = False


# An attribute of the model, so that its copies have it too: these are models that tl_vzero loaded, never a user's.
_FACTS = "_tl_vzero_facts"


def remember(model: nn.Module, facts: Facts) -> None:
    """Attach facts to a model that tl_vzero loaded."""
    vars(model)[_FACTS] = facts


def facts_of(model: nn.Module) -> Facts:
    """The facts attached at loading; for a user's own model, its configured name and tokenizer."""
    facts = vars(model).get(_FACTS)
    if isinstance(facts, Facts):
        return facts
    name = getattr(getattr(model, "cfg", None), "model_name", None) or type(model).__name__
    return Facts(str(name), getattr(model, "tokenizer", None), head="unknown")


def class_head_of(model: nn.Module) -> "ClassHead | None":
    """The trained head of a classifier; None for a model of words, and where a classifier's logits are not computed."""
    classes = facts_of(model).classes
    return None if isinstance(classes, str) else classes


# In a Hugging Face configuration, so that folders that `finetune` writes keep it.
ON_TWO_FORMS = "tl_vzero_trained_on_two_forms"


def trained_on_two_forms(model: nn.Module) -> bool:
    """Whether `finetune` trained the head to choose between two forms: its p over a vocabulary then means nothing."""
    return bool(getattr(getattr(hf_model_of(model), "config", None), ON_TWO_FORMS, False))


def vocabulary_size(model: nn.Module) -> int:
    """How many token ids the model's embedding has rows for."""
    return int(model.cfg.d_vocab)  # type: ignore[union-attr, arg-type]


def context_length(model: nn.Module) -> int | None:
    """The longest sentence the model takes, in tokens; None where it has no limit."""
    length = getattr(model.cfg, "n_ctx", None)
    return int(length) if length and length > 0 else None


def segment_count(model: nn.Module) -> int:
    """How many segments a model tells apart by token_type_ids; 1 where it has no embedding for them."""
    for root in roots_of(model):
        for name, weight in nn.Module.named_parameters(root):
            if any(part.startswith("token_type_embed") for part in name.split(".")):
                return len(weight)
    return 1


def decoder_start(model: nn.Module) -> int | None:
    """The token that an encoder-decoder's decoder starts with; None where nothing names it."""
    inside = hf_model_of(model)
    configs: list[Any] = [model.cfg]
    if inside is not None:
        configs = [inside.config, getattr(inside, "generation_config", None)]
    named = [getattr(config, "decoder_start_token_id", None) for config in configs]
    if inside is None:  # what HookedEncoderDecoder itself starts with
        named.append(getattr(facts_of(model).tokenizer, "pad_token_id", None))
    return next((int(token) for token in named if token is not None), None)


@cache
def library_versions() -> dict[str, str]:
    """The versions of the packages that decide the scores."""
    others = {name: version(name) for name in ("torch", "transformer-lens", "transformers")}
    return {"tl-vzero": tl_vzero.__version__, **others}
