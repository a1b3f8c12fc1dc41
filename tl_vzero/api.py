"""The calls that users make: value_zeroing, score, and the registry METHODS."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.clean import Clean, clean_from_cache, clean_run, ids_of
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
from tl_vzero.zeroing.hooked import hooked_maps
from tl_vzero.zeroing.request import Request, chosen, make_request, positions_of

Text = str | Sequence[str] | Tensor
Numbers = Iterable[int] | int | None

ENGINES = ("auto", "hooks")
TOKENS_A_CLEAN_RUN = 2048


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
) -> Scores | list[Scores]:
    """Value Zeroing: how far does each block output move when one source's value vector is zeroed?

    `inputs` is a string, a list of strings, a 1-D tensor of ids, or a 2-D tensor with `attention_mask`; a list
    or a 2-D tensor gives a list of Scores. `values` are raw distances, `[layer, dest, src]`, or
    `[layer, head, dest, src]` with `per_head`. `layers`, `sources`, `destinations` and `heads` choose a part;
    negative numbers count from the end. `distance` is "cosine", "euclidean" or a callable (clean, changed).
    `cache` is the caller's own ActivationCache of the clean run. `final_norm` compares the last block after the
    model's final norm. `batch_size` is how many copies of a sentence share a forward pass.

    Raises InputError, InputTypeError or ModelError, and leaves the model as it was.
    Source: Mohebbi et al. 2023, "Quantifying Context Mixing in Transformers", section 3.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = tl_vzero.value_zeroing(model, "the pictures of some hat [MASK] scaring marcus.")
    >>> scores.values.shape[1:]
    torch.Size([11, 11])
    """
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
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
    )
    encoded = encode(model, inputs, attention_mask=attention_mask, prepend_bos=prepend_bos)
    for sentence in encoded.sentences:
        positions_of("sources", request.sources, len(sentence))
        positions_of("destinations", request.destinations, len(sentence))
    metadata = _metadata(model, "hooks") | {"options": _options(request, engine, batch_size)}
    scored: dict[int, Scores] = {}
    with quiet(model), _copies_bar(encoded, request, value_heads(model), progress) as bar:
        norm = final_norm_of(model, ids_of(model, encoded.sentences[:1])) if final_norm else None
        for group in _groups(encoded):
            clean = _clean(model, sites, group, request.layers, cache)
            length = len(group[0])
            maps = hooked_maps(
                model,
                sites,
                ids_of(model, group),
                clean,
                request,
                positions_of("sources", request.sources, length),
                positions_of("destinations", request.destinations, length),
                final_norm=norm,
                advance=bar.update,
            )
            for sentence, values in zip(group, maps.to(_result_dtype(model)), strict=True):
                scored[sentence.row] = _zeroing_scores(sites, request, sentence, values, metadata)
    return _in_order(encoded, scored)


def _copies_bar(encoded: Inputs, request: Request, n_heads: int, progress: bool) -> Any:
    n_maps = len(request.heads or range(n_heads)) if request.per_head else 1
    total = sum(len(request.sources or sentence.ids) for sentence in encoded.sentences) * n_maps
    return tqdm(total=total, disable=not progress, desc="value zeroing", unit="source", leave=False)


def _clean(model: nn.Module, sites: Sites, group: list[Sentence], layers: Sequence[int], cache: Any) -> Clean:
    if cache is not None:
        return clean_from_cache(cache, model, sites, group, layers)
    return clean_run(model, sites, ids_of(model, group), layers)


def _groups(encoded: Inputs) -> Iterator[list[Sentence]]:
    """Sentences of one length share a run, so that no padding is ever needed."""
    by_length: dict[int, list[Sentence]] = defaultdict(list)
    for sentence in encoded.sentences:
        by_length[len(sentence)].append(sentence)
    for length, sentences in by_length.items():
        size = max(1, TOKENS_A_CLEAN_RUN // length)
        for start in range(0, len(sentences), size):
            yield sentences[start : start + size]


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


def _metadata(model: nn.Module, engine: str) -> dict[str, Any]:
    facts = facts_of(model)
    grouped = getattr(model.cfg, "n_heads", value_heads(model)) != value_heads(model)
    return {
        "model": facts.name,
        "model_class": kind_of(model),
        "model_head": facts.head,
        "weights_sha256": weights_hash(model),
        "dtype": str(next(nn.Module.parameters(model)).dtype).removeprefix("torch."),
        "value_heads": "key-value" if grouped else "query",
        "engine": engine,
        "versions": library_versions(),
    }


def _options(request: Request, engine: str, batch_size: int | None) -> dict[str, Any]:
    return {
        "distance": request.distance_name,
        "heads": None if request.heads is None else list(request.heads),
        "per_head": request.per_head,
        "final_norm": request.final_norm,
        "engine": engine,
        "batch_size": batch_size,
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
    metadata = _metadata(model, "clean run") | {"options": {"per_head": per_head}}
    scored: dict[int, Scores] = {}
    with quiet(model):
        for group in _groups(encoded):
            clean = _clean(model, sites, group, chosen_layers, cache)
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
