"""The calls that users make: value_zeroing, score, and the registry METHODS."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.clean import clean_from_cache, clean_run, ids_of
from tl_vzero.distance import Distance
from tl_vzero.errors import InputTypeError, unknown_name
from tl_vzero.inputs import Inputs, Sentence, encode
from tl_vzero.methods.attention import attention, attention_heads
from tl_vzero.models.contracts import check_contracts, value_heads
from tl_vzero.models.facts import facts_of, library_versions
from tl_vzero.models.final_norm import final_norm_of
from tl_vzero.models.run import quiet
from tl_vzero.models.sites import Sites, kind_of
from tl_vzero.models.weights import weights_hash
from tl_vzero.scores import Scores
from tl_vzero.zeroing.engine import Used, Work, check_engine, zeroed_maps
from tl_vzero.zeroing.request import MEMORY_MB, Request, chosen, make_request, positions_of

Text = str | Sequence[str] | Tensor
Numbers = Iterable[int] | int | None

TOKENS_A_BATCH = 2048


def value_zeroing(
    model: nn.Module,
    inputs: Text,
    *,
    attention_mask: Tensor | None = None,
    cache: Any | None = None,
    layers: Numbers = None,
    sources: Numbers = None,
    destinations: Numbers = None,
    heads: Numbers = None,
    per_head: bool = False,
    distance: str | Distance = "cosine",
    engine: str = "auto",
    final_norm: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
    prepend_bos: bool = False,
    memory_mb: float = MEMORY_MB,
) -> Scores | list[Scores]:
    """Value Zeroing: how far does each block output move when one source's value vector is zeroed?

    `inputs` is a string, a list of strings, a 1-D tensor of ids, or a 2-D tensor with `attention_mask`; a list
    or a 2-D tensor gives a list of Scores. `values` are raw distances, `[layer, dest, src]`, or
    `[layer, head, dest, src]` with `per_head`. `layers`, `sources`, `destinations` and `heads` choose a part;
    negative numbers count from the end. `distance` is "cosine", "euclidean" or a callable (clean, changed).
    `cache` is the caller's own ActivationCache of the clean run. `final_norm` compares the last block after the
    model's final norm.

    `engine` is "hooks", "closed_form", or "auto": the closed form where the model's blocks are recognised, nothing
    of the user's acts on them and both engines agree on a probe, else hooks; `metadata` says which and why.
    `batch_size` is how many copies of a sentence share a forward pass under hooks; `memory_mb` is about how much
    the closed form holds for (destination, source) pairs at a time.

    Raises InputError, InputTypeError or ModelError, and leaves the model as it was.
    Source: Mohebbi et al. 2023, "Quantifying Context Mixing in Transformers", section 3.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = tl_vzero.value_zeroing(model, "the pictures of some hat [MASK] scaring marcus.")
    >>> scores.values.shape[1:]
    torch.Size([11, 11])
    """
    check_engine(engine)
    sites = check_contracts(model)
    request = make_request(
        n_layers=sites.n_layers,
        n_heads=value_heads(model),
        layers=layers,
        heads=heads,
        per_head=per_head,
        sources=sources,
        destinations=destinations,
        distance=distance,
        final_norm=final_norm,
        batch_size=batch_size,
        memory_mb=memory_mb,
    )
    encoded = encode(model, inputs, attention_mask=attention_mask, prepend_bos=prepend_bos)
    for sentence in encoded.sentences:
        positions_of("sources", request.sources, len(sentence))
        positions_of("destinations", request.destinations, len(sentence))
    metadata = _metadata(model) | {"options": _options(request, engine)}
    scored: dict[int, Scores] = {}
    with quiet(model), _sources_bar(encoded, request, progress) as bar:
        norm = final_norm_of(model, ids_of(model, encoded.sentences[:1])) if final_norm else None
        work = Work(model, sites, request, engine, metadata["weights_sha256"], norm, cache, bar.update)
        for batch in _batches(encoded):
            maps, used = zeroed_maps(work, batch)
            for sentence, values in zip(batch, maps, strict=True):
                own = values.to(_result_dtype(model))
                scored[sentence.row] = _zeroing_scores(sites, request, sentence, own, metadata | _how(used))
    return _in_order(encoded, scored)


def _how(used: Used) -> dict[str, Any]:
    return {"engine": used.engine, "engine_reason": used.reason, "routes": list(used.routes)}


def _sources_bar(encoded: Inputs, request: Request, progress: bool) -> Any:
    n_sources = sum(len(request.sources or sentence.ids) for sentence in encoded.sentences)
    total = n_sources * len(request.layers)
    return tqdm(total=total, disable=not progress, desc="value zeroing", unit="source", leave=False)


def _batches(encoded: Inputs) -> Iterator[list[Sentence]]:
    """Sentences that are worked on together, from short to long."""
    batch: list[Sentence] = []
    held = 0
    for sentence in sorted(encoded.sentences, key=len):
        if batch and held + len(sentence) > TOKENS_A_BATCH:
            yield batch
            batch, held = [], 0
        batch.append(sentence)
        held += len(sentence)
    yield batch


def _in_order(encoded: Inputs, scored: Mapping[int, Scores]) -> Scores | list[Scores]:
    ordered = [scored[sentence.row] for sentence in encoded.sentences]
    return ordered[0] if encoded.single else ordered


def _result_dtype(model: nn.Module) -> torch.dtype:
    own = next(nn.Module.parameters(model)).dtype
    return torch.float64 if own == torch.float64 else torch.float32


def _zeroing_scores(
    sites: Sites, request: Request, sentence: Sentence, values: Tensor, metadata: dict[str, Any]
) -> Scores:
    heads = None
    if request.per_head:
        heads = request.heads or tuple(range(values.shape[1]))
    sources = positions_of("sources", request.sources, len(sentence))
    destinations = positions_of("destinations", request.destinations, len(sentence))
    return Scores(
        values=values if request.per_head else values.squeeze(1),
        method="value_zeroing",
        layers=request.layers,
        heads=heads,
        dest_tokens=tuple(sentence.tokens[i] for i in destinations),
        src_tokens=tuple(sentence.tokens[i] for i in sources),
        dest_positions=destinations,
        src_positions=sources,
        n_layers=sites.n_layers,
        n_positions=len(sentence),
        word_ids=sentence.word_ids,
        identity=False,
        metadata=metadata | {"special": list(sentence.special)},
    )


def _metadata(model: nn.Module) -> dict[str, Any]:
    facts = facts_of(model)
    grouped = getattr(model.cfg, "n_heads", value_heads(model)) != value_heads(model)
    return {
        "model": facts.name,
        "model_class": kind_of(model),
        "model_head": facts.head,
        "weights_sha256": weights_hash(model),
        "dtype": str(next(nn.Module.parameters(model)).dtype).removeprefix("torch."),
        "value_heads": "key-value" if grouped else "query",
        "versions": library_versions(),
    }


def _options(request: Request, engine: str) -> dict[str, Any]:
    return {
        "distance": request.distance_name,
        "heads": None if request.heads is None else list(request.heads),
        "per_head": request.per_head,
        "final_norm": request.final_norm,
        "engine": engine,
        "batch_size": request.batch_size,
        "memory_mb": request.memory_mb,
    }


def attention_scores(
    model: nn.Module,
    inputs: Text,
    *,
    attention_mask: Tensor | None = None,
    cache: Any | None = None,
    layers: Numbers = None,
    per_head: bool = False,
    prepend_bos: bool = False,
) -> Scores | list[Scores]:
    """Raw attention, averaged over heads: `[layer, dest, src]`, or every query head's pattern with `per_head`.

    Options are those of `value_zeroing`. The rollout adds the identity (Abnar & Zuidema 2020).
    """
    sites = check_contracts(model)
    chosen_layers = chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
    encoded = encode(model, inputs, attention_mask=attention_mask, prepend_bos=prepend_bos)
    metadata = _metadata(model) | {"engine": "clean run", "options": {"per_head": per_head}}
    scored: dict[int, Scores] = {}
    with quiet(model):
        for group in (list(group) for batch in _batches(encoded) for _, group in groupby(batch, key=len)):
            if cache is None:
                clean = clean_run(model, sites, ids_of(model, group), chosen_layers)
            else:
                clean = clean_from_cache(cache, model, sites, group, chosen_layers)
            read = attention_heads if per_head else attention
            maps = torch.stack([read(clean[layer]) for layer in chosen_layers], dim=1).to(_result_dtype(model))
            for sentence, values in zip(group, maps, strict=True):
                whole = tuple(range(len(sentence)))
                scored[sentence.row] = Scores(
                    values=values,
                    method="attention",
                    layers=chosen_layers,
                    heads=tuple(range(values.shape[1])) if per_head else None,
                    dest_tokens=sentence.tokens,
                    src_tokens=sentence.tokens,
                    dest_positions=whole,
                    src_positions=whole,
                    n_layers=sites.n_layers,
                    n_positions=len(sentence),
                    word_ids=sentence.word_ids,
                    identity=True,
                    metadata=metadata | {"special": list(sentence.special)},
                )
    return _in_order(encoded, scored)


@dataclass(frozen=True)
class Method:
    """A context-mixing method: call it like `value_zeroing`; `reference` is its paper."""

    function: Callable[..., Scores | list[Scores]]
    summary: str
    reference: str

    def __call__(self, model: nn.Module, inputs: Text, **options: Any) -> Scores | list[Scores]:
        return self.function(model, inputs, **options)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "value_zeroing": Method(
            value_zeroing,
            "distance of each block output when one source's value is zeroed",
            "Mohebbi et al. 2023",
        ),
        "attention": Method(attention_scores, "attention pattern, averaged over heads", "Vaswani et al. 2017"),
    }
)


def score(model: nn.Module, inputs: Text, method: str = "value_zeroing", **options: Any) -> Scores | list[Scores]:
    """Compute the scores of one method, in the shape that every method shares.

    `options` are the method's own. Raises InputError for a method that is not in `METHODS`.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> tl_vzero.score(model, "the authors [MASK] here.", method="attention").method
    'attention'
    """
    if not isinstance(method, str):
        raise InputTypeError(f"method is {type(method).__name__}: expected a name, one of {', '.join(METHODS)}")
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    return METHODS[method](model, inputs, **options)
