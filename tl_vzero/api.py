"""The calls that users make: value_zeroing, score, compare, and the registry METHODS."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import one_of
from tl_vzero.clean import read_by
from tl_vzero.comparison import Comparison, compare_methods
from tl_vzero.distance import Distance
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.inputs.encoder_decoder import DecoderInputs, described, encode_for
from tl_vzero.inputs.media import Signals
from tl_vzero.inputs.text import Ids, Inputs, Sentence, Text
from tl_vzero.methods.apply import rollout_rule
from tl_vzero.methods.method import Method, Methods
from tl_vzero.methods.registry import OTHER_METHODS
from tl_vzero.models.contracts import attention_heads, check_contracts, provenance, result_dtype, value_heads
from tl_vzero.models.run import FinalNorm, final_norm_of, quiet
from tl_vzero.models.sites import Sites
from tl_vzero.models.turns import takes_turn
from tl_vzero.scores import Scores
from tl_vzero.targets import TargetIds
from tl_vzero.words import span_label
from tl_vzero.zeroing.engine import Used, Work, check_engine, zeroed_maps
from tl_vzero.zeroing.request import MEMORY_MB, Request, Wanted, make_request

Given = Text | Signals
Numbers = Iterable[int] | int | None


@takes_turn
def value_zeroing(
    model: nn.Module,
    inputs: Given,
    *,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    sampling_rate: int | None = None,
    decoder_inputs: DecoderInputs | None = None,
    stack: str | None = None,
    cache: Any | None = None,
    layers: Numbers = None,
    sources: Numbers = None,
    spans: str | Iterable[Iterable[int] | int] | None = None,
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

    `inputs` is a string, a pair `(a, b)`, or ids, as a 1-D tensor or a list of integers: these give one Scores. A list
    of them gives a list, in order; so does a 2-D tensor, with `attention_mask` where it is padded. A tokenizer's own
    output (`BatchEncoding`, or a dict with its names) is read as the ids, mask and segments that it holds.

    A pair is a tuple of two strings, which the model's tokenizer joins; its segments are those that the tokenizer
    returns, where the model tells segments apart. Ids are given theirs by `token_type_ids`, of the shape of the ids
    (default: all 0). `metadata["token_types"]` holds segments that are not all 0.

    `values` are raw distances, `[layer, dest, src]`, or `[layer, head, dest, src]` with `per_head`. `layers`,
    `sources`, `destinations` and `heads` choose a part; negative numbers count from the end. `spans` are zeroed
    jointly, one column each, which is not the sum of their positions' columns (`span_interaction` tells by how much):
    positions, such as `[[1, 2], [4]]`, or "words", or by spaCy's English parse "noun_chunks" or "subtrees" (of what
    depends on the root). `distance` is "cosine", "euclidean" or a callable (clean, changed). `cache` is the caller's
    own ActivationCache of the clean run, with the same segments. `final_norm` compares the last block after the
    model's final norm.

    A vision model reads images, floats `[channel, height, width]`, and its positions are "[CLS]" and patches by row and
    column, "r2c5"; a speech encoder reads sounds, `[samples]`, and its positions are frames by when they begin,
    "0.32 s" (`frames` finds them by seconds). One more axis or a list gives a list. Resizing, scaling and normalising
    are the caller's, by the model's own processor; `sampling_rate` is checked against the model's.

    An encoder-decoder needs `stack`: "encoder", "decoder", or "cross", the decoder's blocks with one of the encoder's
    positions zeroed, `[layer, decoder position, encoder position]`. For the last two, `decoder_inputs` are what the
    decoder reads, one sentence or a list like `inputs` (of 1-D tensors where lengths differ). Ids are taken as they
    are; text is read as labels are in training, the token that starts the decoder in front and without its last
    special token.

    `engine` is "hooks", "closed_form", or "auto": the closed form where the model's blocks are recognised, nothing
    of the user's acts on them and both engines agree on a probe, else hooks; `metadata` says which and why.
    `batch_size` is how many copies of a sentence share a forward pass under hooks; `memory_mb` is about how much
    the closed form holds, half for (destination, source) pairs and half for folded weights, which stay with the model
    for calls to come until a weight changes.

    Raises InputError, InputTypeError or ModelError, DependencyError for phrases without a parser, and leaves the
    model as it was. Warns (InputWarning) of pairs that come without segments.
    Source: Mohebbi et al. 2023, "Quantifying Context Mixing in Transformers", section 3.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = tl_vzero.value_zeroing(model, "the pictures of some hat [MASK] scaring marcus.")
    >>> scores.values.shape[1:]
    torch.Size([11, 11])
    >>> tl_vzero.value_zeroing(model, ("the hat is near.", "the authors [MASK] here.")).metadata["token_types"]
    [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    """
    check_engine(engine)
    sites = check_contracts(model, stack)
    request = make_request(
        n_layers=sites.n_layers,
        n_heads=value_heads(model, sites.stack),
        n_query_heads=attention_heads(model, sites.stack),
        layers=layers,
        heads=heads,
        per_head=per_head,
        sources=sources,
        spans=spans,
        destinations=destinations,
        distance=distance,
        final_norm=final_norm,
        batch_size=batch_size,
        memory_mb=memory_mb,
    )
    encoded = encode_for(
        model,
        sites.stack,
        inputs,
        decoder_inputs,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
        prepend_bos=prepend_bos,
        sampling_rate=sampling_rate,
    )
    wanted = {sentence.row: request.wanted(sentence) for sentence in encoded.sentences}
    metadata = provenance(model, sites.stack) | {"options": _options(request, engine)}
    scored: dict[int, Scores] = {}
    with quiet(model), _sources_bar(wanted, request, progress) as bar:
        norm = _final_norm(model, sites, encoded) if request.final_norm else None
        work = Work(model, sites, request, wanted, engine, metadata["weights_sha256"], norm, cache, bar.update)
        for batch in encoded.batches():
            maps, used = zeroed_maps(work, batch)
            for sentence, values in zip(batch, maps, strict=True):
                own, asked = values.to(result_dtype(model)), wanted[sentence.row]
                scored[sentence.row] = _zeroing_scores(sites, request, asked, sentence, own, metadata | _how(used))
    return encoded.in_order(scored)


def _final_norm(model: nn.Module, sites: Sites, encoded: Inputs) -> FinalNorm:
    ids, beside = read_by(model, encoded.sentences[:1])
    return final_norm_of(model, sites, ids, beside.get("decoder_ids"))


def _how(used: Used) -> dict[str, Any]:
    return {"engine": used.engine, "engine_reason": used.reason, "routes": list(used.routes)}


def _sources_bar(wanted: Mapping[int, Wanted], request: Request, progress: bool) -> Any:
    n_sources = sum(len(each.spans) for each in wanted.values())
    total = n_sources * len(request.layers)
    return tqdm(total=total, disable=not progress, desc="value zeroing", unit="source", leave=False)


def _zeroing_scores(
    sites: Sites, request: Request, wanted: Wanted, sentence: Sentence, values: Tensor, metadata: dict[str, Any]
) -> Scores:
    heads = None
    if request.per_head:
        heads = request.heads or tuple(range(values.shape[1]))
    sources = sentence.sources
    return Scores(
        values=values if request.per_head else values.squeeze(1),
        method="value_zeroing",
        layers=request.layers,
        heads=heads,
        dest_tokens=tuple(sentence.tokens[i] for i in wanted.destinations),
        src_tokens=_source_labels(request, wanted, sources),
        dest_positions=wanted.destinations,
        src_positions=tuple(span[0] for span in wanted.spans),
        src_spans=None if request.spans is None else wanted.spans,
        n_layers=sites.n_layers,
        n_positions=len(sentence),
        word_ids=sentence.word_ids,
        n_src_positions=len(sources) if sentence.cross else None,
        src_word_ids=sources.word_ids if sentence.cross else None,
        identity=False,
        metadata=metadata
        | {"special": list(sentence.special), "rollout": rollout_rule(identity=False)}
        | described(sites.stack, sentence),
    )


def _source_labels(request: Request, wanted: Wanted, sources: Sentence) -> tuple[str, ...]:
    if request.spans is None:
        return tuple(sources.tokens[span[0]] for span in wanted.spans)
    return tuple(span_label(span, sources.tokens, sources.word_ids) for span in wanted.spans)


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


METHODS: Mapping[str, Method] = Methods(
    {
        "value_zeroing": Method(
            value_zeroing,
            "distance of each block output when one source's value is zeroed",
            "Mohebbi et al. 2023",
            "any block with values to zero",
            ("clean run",),
        ),
        **OTHER_METHODS,
    }
)


@takes_turn
def compare(
    model: nn.Module,
    inputs: Text,
    methods: Sequence[str] | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    layers: Numbers = None,
    target: int | Sequence[int] | None = None,
    target_ids: TargetIds | None = None,
    prepend_bos: bool = False,
    progress: bool = False,
) -> Comparison | list[Comparison]:
    """Several methods side by side, from one clean run, with the effect on the prediction.

    `methods` are names of `METHODS`; by default Value Zeroing and every method that reads the clean run, is defined
    for the model and is not too dear for the sentence (`left_out` says which are not, and why). `options` are a
    method's own by its name, such as `{"hta": {"to": "embeddings"}}`. `inputs`, `attention_mask`, `token_type_ids` and
    `layers` are as in `value_zeroing`; a list of sentences gives a list. `target` is a position, or one for each
    sentence (default: the only mask token), and `target_ids` are as in `zero_ablation`. A Comparison is a mapping from
    a method's name to its raw Scores, `[layer, dest, src]`, with `effect` and `table()`.

    Raises InputError or InputTypeError for a bad argument, ModelError where a method that was named is undefined for
    the model, and leaves the model as it was.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> compared = tl_vzero.compare(model, "the authors [MASK] here.", ["value_zeroing", "attention"], layers=[1])
    >>> compared["attention"].values.shape
    torch.Size([1, 7, 7])
    >>> compared.table()[["method", "layer"]].to_dict("records")
    [{'method': 'value_zeroing', 'layer': 1}, {'method': 'attention', 'layer': 1}]
    """
    return compare_methods(
        METHODS,
        model,
        inputs,
        methods,
        options=options,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
        layers=layers,
        target=target,
        target_ids=target_ids,
        prepend_bos=prepend_bos,
        progress=progress,
    )


@takes_turn
def score(model: nn.Module, inputs: Given, method: str = "value_zeroing", **options: Any) -> Scores | list[Scores]:
    """Compute the scores of one method, in the shape that every method shares.

    `inputs` are those of `value_zeroing`, `options` the method's own. Raises InputError for a method that is not in
    `METHODS`.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> tl_vzero.score(model, "the authors [MASK] here.", method="attention").method
    'attention'
    """
    if not isinstance(method, str):
        raise InputTypeError(f"method is {type(method).__name__}: expected a name, one of {', '.join(METHODS)}")
    one_of("method", method, METHODS)
    chosen = METHODS[method]
    if options.get("stack") is not None and chosen.layer is None and "stack" not in (chosen.options or ("stack",)):
        raise InputError(
            f"stack={options['stack']!r} given, and {method} is for models with one stack of blocks: take "
            "value_zeroing or attention for an encoder-decoder"
        )
    return chosen(model, inputs, **options)
