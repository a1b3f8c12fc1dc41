"""Value Zeroing as users call it: the maps, `score` for every method, tables and a rollout made of several maps."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import Positions, chosen, chosen_heads, flag, one_of, positions, positive
from tl_vzero.clean import device_of, read_by
from tl_vzero.difference import HASHED
from tl_vzero.distance import Distance, distance_named
from tl_vzero.errors import InputError, InputTypeError, ScoresError, shown
from tl_vzero.inputs.baselines import BaselineValues, baseline_of
from tl_vzero.inputs.encoder_decoder import DecoderInputs, encode_for
from tl_vzero.inputs.media import Signals
from tl_vzero.inputs.text import Ids, Sentence, Text
from tl_vzero.methods.apply import labelled
from tl_vzero.models.contracts import attention_heads, check_contracts, provenance, result_dtype, value_heads
from tl_vzero.models.run import final_norm_of, quiet
from tl_vzero.models.turns import takes_turn
from tl_vzero.registry import METHODS
from tl_vzero.rollout import roll_out_jointly
from tl_vzero.scores import Scores
from tl_vzero.words import span_label
from tl_vzero.zeroing.engine import SentenceMaps, zeroed_maps
from tl_vzero.zeroing.request import (
    CONFIDENCE,
    ENGINES,
    Request,
    Wanted,
    checked_precision,
    checked_spans,
    checked_tolerance,
    megabytes,
)

if TYPE_CHECKING:
    import pandas as pd

Numbers = Iterable[int] | int | None


@takes_turn
def value_zeroing(
    model: nn.Module,
    inputs: Text | Signals,
    *,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    sampling_rate: int | None = None,
    decoder_inputs: DecoderInputs | None = None,
    stack: str | None = None,
    cache: Any | None = None,
    layers: Numbers = None,
    sources: Positions = None,
    spans: str | Iterable[Positions] | None = None,
    destinations: Positions = None,
    heads: Numbers = None,
    per_head: bool = False,
    distance: str | Distance = "cosine",
    baseline: str | Tensor | BaselineValues = "zero",
    engine: str = "auto",
    final_norm: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
    prepend_bos: bool = False,
    memory_mb: float | None = None,
    precision: str | None = None,
    tolerance: float | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Scores | list[Scores]:
    """Value Zeroing: how far does each block output move when one source's value vector is zeroed?

    `inputs` is a string, a pair `(a, b)`, or ids, as a 1-D tensor or a list of integers: these give one Scores. A list
    of them gives a list, in order; so does a 2-D tensor, with `attention_mask` where it is padded. A tokenizer's own
    output (`BatchEncoding`, or a dict with its names) is read as the ids, mask and segments that it holds.

    A pair is a tuple of two strings, which the model's tokenizer joins; its segments are those that the tokenizer
    returns, where the model tells segments apart. Ids are given theirs by `token_type_ids`, of the shape of the ids
    (default: all 0). `metadata["token_types"]` holds segments that are not all 0.

    `values` are raw distances, `[layer, dest, src]`, or `[layer, head, dest, src]` with `per_head`. `layers`,
    `sources`, `destinations` and `heads` choose a part; negative numbers count from the end, and the text of a token
    that occurs once, such as "[MASK]", stands for its position, here and wherever positions are taken. `spans` are
    zeroed jointly, one column each, which is not the sum of their positions' columns (`span_interaction` tells by how
    much): positions, such as `[[1, 2], [4]]`, or "words", or by spaCy's English parse "noun_chunks" or "subtrees" (of
    what depends on the root). `distance` is a name of `tl_vzero.distance.DISTANCES`, such as "euclidean", or a callable
    (clean, changed). `cache` is the caller's own ActivationCache of the clean run, with the same segments. `final_norm`
    compares the last block after the model's final norm.

    `baseline` is what is put in the place of a value: "zero", the paper's; "mean", the mean of the values over the
    sentence's own positions, without special tokens; vectors `[layer, head, d_head]`, the same at every position, or
    `[layer, position, head, d_head]`, such as another sentence's; or what `mean_values` and `values_of` return. Heads
    are value heads, layers all of the stack, and positions those of the columns. An entry is exactly 0 where no
    zeroed head attends, or the vector is exactly the value. Zero may lie far off what a model ever mixes, and a
    baseline asks what a token adds to a usual one.

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
    `batch_size` is how many copies of a sentence share a forward pass under hooks. `memory_mb` is about how much the
    closed form holds, half for (destination, source) pairs and half for folded weights, which stay with the model until
    a weight changes: 256 by default, and on CUDA a quarter of what is free, rounded down to a power of two.
    `precision="tf32"` lets its float32 products of pairs read 10 bits of each number, on a CUDA GPU from Ampere on.

    `tolerance` lets the closed form guess what is small: no share, an entry of the normalised map, is farther off than
    that, and `error` of the result says how far each may be. Of a whole row all of this holds with probability
    `confidence`. What may be large is exact; the rest is seen in random directions, drawn from `seed`. It is for the
    cosine distance. What has no closed form is exact, and what guesses would not make faster.

    Where the whole pattern of one layer would take more than `memory_mb` and only some `destinations` are chosen, a
    bridge runs Hugging Face's attention fused, and only these rows of the pattern are formed, in memory that grows with
    the length alone: `metadata["attention"]` is "fused", or `metadata["attention_reason"]` says why it is not.

    Raises InputError, InputTypeError or ModelError, DependencyError for phrases without a parser, and leaves the
    model as it was. Warns (InputWarning) of pairs that come without segments.
    Source: Mohebbi et al. 2023, "Quantifying Context Mixing in Transformers", section 3.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = tl_vzero.value_zeroing(model, "the pictures of some hat [MASK] scaring marcus.")
    >>> scores.values.shape[1:]
    torch.Size([11, 11])
    >>> tl_vzero.value_zeroing(model, ("the hat is near.", "the authors [MASK] today.")).metadata["token_types"]
    [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    """
    sites = check_contracts(model, stack)
    one_of("engine", engine, ENGINES)
    distance_name, distance = distance_named(distance)
    if sources is not None and spans is not None:
        raise InputError("sources and spans given: expected one of them, single positions or positions zeroed together")
    request = Request(
        model,
        sites,
        layers=chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers)),
        heads=chosen_heads(heads, value_heads(model, sites.stack), attention_heads(model, sites.stack)),
        per_head=flag("per_head", per_head),
        sources=positions("sources", sources),
        spans=checked_spans(spans),
        destinations=positions("destinations", destinations),
        distance_name=distance_name,
        distance=distance,
        baseline=baseline_of(baseline, model, sites),
        final_norm=flag("final_norm", final_norm),
        engine=engine,
        cache=cache,
        batch_size=positive("batch_size", batch_size),
        memory_mb=megabytes(memory_mb, device_of(model)),
        precision=checked_precision(precision, engine, model),
        tolerance=checked_tolerance(tolerance, confidence, seed, distance_name, engine, precision),
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
    options = {
        "distance": distance_name,
        "baseline": request.baseline.identity,
        "heads": None if request.heads is None else list(request.heads),
        **{name: getattr(request, name) for name in ("per_head", "final_norm", "engine", "batch_size", "memory_mb")},
    }
    if request.precision is not None:
        options["precision"] = request.precision
    if request.tolerance is not None:
        options |= {"tolerance": tolerance, "confidence": confidence, "seed": seed}
    metadata = provenance(model, sites.stack) | {"options": options}
    scored: dict[int, Scores] = {}
    total = len(request.layers) * sum(len(of_sentence.spans) for of_sentence in wanted.values())
    bar = tqdm(total=total, disable=not progress, desc="value zeroing", unit="source", leave=False)
    with quiet(model), bar:
        if request.final_norm:
            ids, beside = read_by(model, encoded.sentences[:1])
            request = replace(request, norm=final_norm_of(model, sites, ids, beside.get("decoder_ids")))
        request = replace(request, advance=bar.update)
        for batch in encoded.batches():
            maps = zeroed_maps(request, batch, wanted, metadata["weights_sha256"])
            for sentence, of_sentence in zip(batch, maps, strict=True):
                scored[sentence.row] = _zeroing_scores(request, wanted[sentence.row], sentence, of_sentence, metadata)
    return encoded.in_order(scored)


def _zeroing_scores(
    request: Request, wanted: Wanted, sentence: Sentence, maps: SentenceMaps, metadata: dict[str, Any]
) -> Scores:
    sources, zeroed_jointly = sentence.sources, request.spans is not None

    def of_each_map(stacked: Tensor) -> Tensor:
        return stacked if request.per_head else stacked.squeeze(1)

    return labelled(
        "value_zeroing",
        of_each_map(maps.values.to(result_dtype(request.model))),
        request.layers,
        wanted.destinations,
        request.sites,
        sentence,
        {**metadata, **maps.how},
        heads=request.zeroed_heads if request.per_head else None,
        src_tokens=tuple(
            span_label(span, sources.tokens, sources.word_ids) if zeroed_jointly else sources.tokens[span[0]]
            for span in wanted.spans
        ),
        src_positions=tuple(span[0] for span in wanted.spans),
        src_spans=wanted.spans if zeroed_jointly else None,
        error=None if maps.error is None else of_each_map(maps.error),
    )


@takes_turn
def score(
    model: nn.Module, inputs: Text | Signals, method: str = "value_zeroing", **options: Any
) -> Scores | list[Scores]:
    """Compute the scores of one method, in the shape that every method shares.

    `inputs` are those of `value_zeroing`, `options` the method's own. Raises InputError for a method that is not in
    `METHODS`.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> tl_vzero.score(model, "the authors [MASK] today.", method="attention").method
    'attention'
    """
    if not isinstance(method, str):
        raise InputTypeError(f"method is {type(method).__name__}: expected a name, one of {', '.join(METHODS)}")
    one_of("method", method, METHODS)
    entry = METHODS[method]
    takes_stack = entry.layer is not None or "stack" in (entry.options or ("stack",))
    if options.get("stack") is not None and not takes_stack and not entry.refusal(options["stack"]):
        raise InputError(
            f"stack={options['stack']!r} given, and {method} is for models with one stack of blocks: take "
            "value_zeroing, or a method that reads the clean run, for an encoder-decoder"
        )
    return entry(model, inputs, **options)


# Tables made of several maps with the same options: which heads mix, and what is more in a span than in its positions.


def _shared_options(options: Mapping[str, Any], table_sets: Mapping[str, str]) -> dict[str, Any]:
    """Options that several calls can read; raises InputError, with its reason, for one that the table sets itself."""
    for name, reason in table_sets.items():
        if name in options:
            raise InputError(f"{name}={options[name]!r} given: {reason}; leave it out")
    return {name: list(value) if isinstance(value, Iterator) else value for name, value in options.items()}


def _maps(model: nn.Module, inputs: Text, **options: Any) -> list[Scores]:
    scores = value_zeroing(model, inputs, **options)
    return scores if isinstance(scores, list) else [scores]


SET_BY_HEADS = dict.fromkeys(("heads", "per_head"), "the table has a row for each head of each layer")
SET_BY_SPANS = {"sources": "the table has a row for each span, and compares it with its own positions"}


@takes_turn
def head_importance(model: nn.Module, inputs: Text, **options: Any) -> "pd.DataFrame":
    """How much of each layer's mixing goes when one head's value is zeroed, as a pandas table.

    One row per layer and value head. Let D(H) be a layer's raw map where only the heads H are zeroed, and |D| its
    mixing: the sum over sources, averaged over destinations, then over sentences. Columns:

    - `mixing`: |D({h})|, in units of the distance: what zeroing this head alone moves;
    - `share`: `mixing` divided by its sum over the layer's heads;
    - `lost`: 1 - |D(all but h)| / |D(all)|, the part of the layer's mixing that goes without this head. Distances are
      not additive, so that `lost` need not sum to one, and is negative where the other heads mix more without it;
    - `context`: the part of `mixing` that comes from other positions than the destination's own;
    - `query_heads`: how many query heads read this value head: 1, or more under grouped-query attention;
    - `n`: the number of sentences.

    A part of nothing is 0. `options` are those of `value_zeroing` but `heads` and `per_head`. It costs about two maps
    per head. Raises what `value_zeroing` raises, and leaves the model as it was.
    Source: the maps are those of Mohebbi et al. 2023, section 3, with some heads zeroed.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> table = tl_vzero.head_importance(model, "the authors [MASK] today.", layers=[1])
    >>> list(table.columns)
    ['layer', 'head', 'query_heads', 'mixing', 'share', 'lost', 'context', 'n']
    >>> round(float(table["share"].sum()), 6)
    1.0
    """
    import pandas as pd

    options = _shared_options(options, SET_BY_HEADS)
    of_heads = _maps(model, inputs, per_head=True, **options)
    layers, heads = of_heads[0].layers, of_heads[0].heads
    assert heads is not None
    mixing, context = _mixing(of_heads), _mixing(of_heads, elsewhere=True)
    whole = _mixing(_maps(model, inputs, **options)).unsqueeze(1)
    without = torch.zeros_like(mixing)  # where there is no other head
    for index, head in enumerate(heads if len(heads) > 1 else ()):
        others = [other for other in heads if other != head]
        without[:, index] = _mixing(_maps(model, inputs, heads=others, **options))
    table = pd.MultiIndex.from_product([layers, heads], names=["layer", "head"]).to_frame(index=False)
    table["query_heads"] = attention_heads(model, options.get("stack")) // len(heads)
    columns = {
        "mixing": mixing,
        "share": head_shares(of_heads),
        "lost": _part(whole - without, whole),
        "context": _part(context, mixing),
    }
    for name, values in columns.items():
        table[name] = values.flatten().numpy()
    table["n"] = len(of_heads)
    return table


def head_shares(maps: Sequence[Scores]) -> Float[Tensor, "layer head"]:
    """The share of every head in its layer's mixing, of maps with one map per head: the `share` of `head_importance`.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> shares = head_shares([tl_vzero.value_zeroing(model, "the authors [MASK] today.", per_head=True)])
    >>> shares.sum(dim=1).round(decimals=6).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    mixing = _mixing(maps)
    return _part(mixing, mixing.sum(dim=1, keepdim=True))


def _mixing(maps: Sequence[Scores], *, elsewhere: bool = False) -> Float[Tensor, "layer *head"]:
    """Summed over sources, averaged over destinations, then over sentences; `elsewhere` leaves out a row's own."""
    sums = []
    for scores in maps:
        values = scores.values.detach().cpu().double()
        if elsewhere and scores.metadata.get("stack") != "cross":  # there all sources are another sequence
            columns = scores.src_spans or [(position,) for position in scores.src_positions]
            values = values * torch.tensor([[dest not in span for span in columns] for dest in scores.dest_positions])
        sums.append(values.sum(dim=-1).mean(dim=-1))
    return torch.stack(sums).mean(dim=0)


def _part(values: Tensor, whole: Tensor) -> Tensor:
    """Values as parts of a whole; of a whole that is exactly 0, 0."""
    return torch.where(whole == 0, torch.zeros_like(values), values / whole)


@takes_turn
def span_interaction(
    model: nn.Module, inputs: Text, spans: str | Iterable[Positions], **options: Any
) -> "pd.DataFrame":
    """How far zeroing a span jointly is from the sum of zeroing its positions one by one, as a pandas table.

    One row per sentence, layer, destination and span; `spans` are as in `value_zeroing`. Columns: `sentence`,
    `layer`, (`head` with `per_head`,) `dest`, `dest_token`, `span` (its words), `positions`, and raw distances:

    - `joint`: the distance when the values of all its positions are zeroed together;
    - `sum`: the sum of the distances when each is zeroed by itself;
    - `interaction`: `joint` - `sum`: above 0 where the positions' parts add up, below 0 where they stand in for one
      another or cancel, and 0 for a span of one position, but for rounding. A cosine distance grows with about the
      square of a small change, so that two positions that bring the same have `joint` at twice the `sum`.

    `options` are those of `value_zeroing` but `sources`. Raises what `value_zeroing` raises, and leaves the model as
    it was. Source: the maps are those of Mohebbi et al. 2023, section 3, with several positions zeroed.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> table = tl_vzero.span_interaction(model, "the authors [MASK] today.", [[1, 2], [4]], layers=[1])
    >>> table["span"].unique().tolist(), len(table)
    (['the authors', 'today'], 14)
    >>> bool((table["interaction"] == table["joint"] - table["sum"]).all())
    True
    """
    import pandas as pd

    if spans is None:
        raise InputTypeError(
            'spans is None: expected positions, such as [[1, 2], [4]], or "words", "noun_chunks" or "subtrees"'
        )
    options = _shared_options(options, SET_BY_SPANS)
    joint = _maps(model, inputs, spans=spans, **options)
    apart = _maps(model, inputs, **options)
    tables = [_interactions(index, *maps) for index, maps in enumerate(zip(joint, apart, strict=True))]
    return pd.concat(tables, ignore_index=True)


def _interactions(index: int, joint: Scores, apart: Scores) -> "pd.DataFrame":
    spans = joint.src_spans
    assert spans is not None
    joint = replace(joint, values=joint.values.cpu().double())
    single = apart.values.cpu().double()
    summed = torch.stack([single[..., list(span)].sum(dim=-1) for span in spans], dim=-1)
    table = joint.to_frame()
    n_rows = len(table) // len(spans)
    table.insert(0, "sentence", index)
    table["positions"] = list(spans) * n_rows
    table["sum"] = replace(joint, values=summed).to_frame()["value"]
    table["interaction"] = table["value"] - table["sum"]
    table = table.drop(columns=["src", "method", "stage"]).rename(columns={"value": "joint", "src_token": "span"})
    first = [name for name in ("sentence", "layer", "head", "dest", "dest_token") if name in table]
    return table[[*first, "span", "positions", "joint", "sum", "interaction"]]


# The rollout through both stacks of an encoder-decoder.

SAME_MEASURE = ("distance", "heads", "final_norm")  # options without which a row of both maps has no one sum


def joint_rollout(encoder: Scores, decoder: Scores, cross: Scores) -> Scores:
    """What each decoder position draws on, through both stacks: decoder positions first, then the encoder's.

    Takes the raw maps of one sentence pair, `stack="encoder"`, "decoder" and "cross" of one method. `values` are
    `[decoder layer, decoder position, decoder position + encoder position]`, stage "rollout", and
    `metadata["encoder_from"]` is the first column of the encoder.

    Both maps of a decoder block are distances of the same output, so a row of them has one sum, S_l + C_l = 1. With
    the encoder's rollout E at its last layer, R_l = S_l @ R_{l-1} + C_l @ [0 | E], R_0 = [1 | 0]; rows sum to one.
    Maps that each stand for their own sublayer (ALTI, information flow, attention norms with the residual connection)
    have what the residual stream brings to the cross-attention in the cross map's metadata, "residual", r: there a row
    of [r | C] has one sum, and S_l, whose rows have their own, is weighed by r. This is ALTI+ where the method is ALTI.

    Raises InputTypeError for what is no Scores, ScoresError for maps that are not whole, raw, and of one sentence pair
    and baseline.
    Source: Mohebbi et al. 2023 (maps), Ferrando et al. 2022, "Towards Opening the Black Box of Neural Machine
    Translation", section 3 (through both stacks).

    >>> import torch, tl_vzero
    >>> def even(stack, dests, sources):
    ...     labels = (tuple(dests), tuple(sources), (0, 1), (0, 1), 2, 2)
    ...     return tl_vzero.Scores(torch.ones(2, 2, 2), "any", (0, 1), *labels, metadata={"stack": stack})
    >>> encoder, decoder, cross = even("encoder", "ab", "ab"), even("decoder", "xy", "xy"), even("cross", "xy", "ab")
    >>> joint = tl_vzero.joint_rollout(encoder, decoder, cross)
    >>> joint.src_tokens, joint.values[-1, 0].tolist()
    (('x', 'y', 'a', 'b'), [0.125, 0.125, 0.375, 0.375])
    """
    maps = {"encoder": encoder, "decoder": decoder, "cross": cross}
    for stack, scores in maps.items():
        _check_whole(stack, scores)
    _check_alike(maps)
    n_dest, n_src = cross.values.shape[-2:]
    residual = cross.metadata.get("residual")
    rolled = roll_out_jointly(
        decoder.values,
        cross.values,
        encoder.rollout().values[-1].to(decoder.values),
        identity=decoder.identity,
        residual=None if residual is None else torch.tensor(residual).to(cross.values),
    )
    return replace(
        decoder,
        values=rolled,
        src_tokens=decoder.dest_tokens + cross.src_tokens,
        src_positions=tuple(range(n_dest + n_src)),
        n_src_positions=n_dest + n_src,
        src_word_ids=_words_of_both(decoder, encoder),
        stage="rollout",
        metadata={**decoder.metadata, "stack": "joint", "encoder_from": n_dest},
    )


def _check_whole(stack: str, scores: object) -> None:
    if not isinstance(scores, Scores):
        raise InputTypeError(
            f"{stack} is {type(scores).__name__}: expected the Scores of one sentence pair with stack={stack!r}"
        )
    actual = scores.metadata.get("stack")
    if actual != stack:
        raise ScoresError(f"{stack} holds a map of stack={actual!r}: expected the Scores of stack={stack!r}")
    reason = None
    if scores.stage != "raw":
        reason = f"it is {scores.stage}, and raw maps are needed: a row is divided by the sum of both its maps"
    elif scores.heads is not None:
        reason = "it has one map per head; compute it without per_head"
    elif scores.unit != "token":
        reason = "its pieces are joined to words; call words() on the joint rollout"
    elif scores.partial or scores.layers != tuple(range(scores.n_layers)):
        reason = "it is a part of a map; compute it with all layers, destinations and sources"
    if reason is not None:
        raise ScoresError(f"joint_rollout is undefined for this {stack} map: {reason}")


def _check_alike(maps: dict[str, Scores]) -> None:
    encoder, decoder, cross = maps["encoder"], maps["decoder"], maps["cross"]
    weights = {scores.metadata.get("weights_sha256") for scores in maps.values()}
    if len({scores.method for scores in maps.values()}) > 1 or len(weights) > 1:
        raise ScoresError("the maps are of several methods or models: expected one method of one model")
    # The vectors of two stacks differ, and their name is that of how they came to be.
    baselines = {stack: scores.baseline.partition(HASHED)[0] for stack, scores in maps.items()}
    if len(set(baselines.values())) > 1:
        named = ", ".join(f"{stack} {shown(baseline)}" for stack, baseline in baselines.items())
        raise ScoresError(f"the maps are of several baselines: {named}; expected one")
    for option in SAME_MEASURE:
        of_decoder, of_cross = (scores.metadata.get("options", {}).get(option) for scores in (decoder, cross))
        if of_decoder != of_cross:
            raise ScoresError(
                f"decoder map with {option}={of_decoder!r}, cross map with {of_cross!r}: expected the same, as their "
                "rows are summed together"
            )
    read = decoder.metadata.get("encoder_tokens", list(cross.src_tokens))
    same_rows = decoder.dest_tokens == cross.dest_tokens and decoder.n_layers == cross.n_layers
    if not same_rows or encoder.src_tokens != cross.src_tokens or list(read) != list(cross.src_tokens):
        raise ScoresError(
            f"the maps are of different sentences: encoder {list(encoder.src_tokens)}, decoder "
            f"{list(decoder.dest_tokens)} beside {list(read)}, cross {list(cross.dest_tokens)} on "
            f"{list(cross.src_tokens)}; expected one sentence pair"
        )


def _words_of_both(decoder: Scores, encoder: Scores) -> tuple[int | None, ...] | None:
    if decoder.word_ids is None or encoder.word_ids is None:
        return None
    first = 1 + max((word for word in decoder.word_ids if word is not None), default=-1)
    return decoder.word_ids + tuple(None if word is None else first + word for word in encoder.word_ids)
