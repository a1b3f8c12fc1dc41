"""Does a rollout tell the truth? A method's row of the target against what attention knockout does to the prediction.

1. The target is cut off from one token in all layers from l on, and the model is run; so for every token and layer l.
2. Spearman correlation, example by example, of the drops of p(right form) with the method's row of the target, rolled
   out to the last layer; its mean over examples, with a bootstrap interval. An example in which one side is constant,
   or with fewer than three tokens, has no correlation, and is counted.

Source: Geva et al. 2023, section 5 (knockout); Abnar & Zuidema 2020 (the correlation, with blank-out).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from tl_vzero.choices import flag
from tl_vzero.corpus import Corpus
from tl_vzero.data.examples import Example, Skipped
from tl_vzero.effects.knockout import attention_knockout
from tl_vzero.evaluate.faithfulness import Change, Conventions, Over, RankedRows, Ranking, correlations_of
from tl_vzero.evaluate.results import COLUMNS, Result, Row, means_by_paradigm
from tl_vzero.evaluate.rows import Options, check_wrong_forms
from tl_vzero.evaluate.sentences import Protocol, TokenizedExample, tokenize_examples
from tl_vzero.models.contracts import check_contracts
from tl_vzero.statistics import Array, Estimate, Interval
from tl_vzero.targets import check_predicts_words


@dataclass(frozen=True)
class KnockoutCorrelation(Row):
    """The mean rank correlation of one method's rows with the drops where a token is cut off from a layer on.

    `rho` is None where no example has one, and `undefined` counts the examples without. `row_layer` is the row's, and
    `rolled_out` says whether it goes through all layers below.
    """

    method: str
    paradigm: str
    from_layer: int
    rho: Estimate | None = field(metadata={COLUMNS: ""})
    undefined: int
    row_layer: int
    rolled_out: bool


@dataclass(frozen=True)
class KnockoutAgreement(Result):
    """Correlations with knockout, by method, paradigm (or "all") and the layer from which a token is cut off.

    `left_out` are methods that were not named and not computed, `skipped` examples that the protocol cannot hold.
    """

    correlations: tuple[KnockoutCorrelation, ...]
    left_out: Mapping[str, str]
    skipped: tuple[Skipped, ...]
    settings: Mapping[str, Any]


def knockout_agreement(
    model: nn.Module,
    examples: Sequence[Example],
    methods: Sequence[str] | None = None,
    *,
    options: Options | None = None,
    corpus: Corpus | None = None,
    change: Change = "signed",
    over: Over = "vocabulary",
    special_tokens: bool = False,
    renormalise: bool = False,
    protocol: Protocol = "masked",
    interval: Interval | None = None,
    progress: bool = False,
) -> KnockoutAgreement:
    """How well each method's rolled-out row ranks the tokens by what cutting the target off from them does.

    `methods`, `options` and `corpus` are as in `faithfulness`, whose rows these are; `change`, `over` and
    `special_tokens` are as in its `Conventions`. With `renormalise` the rest of a row keeps its sum, as in
    `attention_knockout`.

    Raises what `faithfulness` and `attention_knockout` raise, and leaves the model as it was.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> result = knockout_agreement(model, agreement_examples()[:5], ["value_zeroing"])
    >>> [row.from_layer for row in result.correlations if row.paradigm == "all"]
    [0, 1, 2, 3]
    """
    conventions = Conventions(change=change, over=over, special_tokens=flag("special_tokens", special_tokens))
    flag("renormalise", renormalise)
    check_contracts(model)
    check_predicts_words(model)
    tokenized = tokenize_examples(model, examples, protocol=protocol)
    if over == "forms":
        check_wrong_forms(tokenized.examples, 'over="forms"')
    ranked = Ranking(methods, options, corpus).rows(model, tokenized, progress)
    drops = []
    for sentence in tqdm(ranked.examples, disable=not progress, desc="knockout", unit="sentence", leave=False):
        drop = _drops(model, sentence, over, renormalise)[:, list(conventions.positions(sentence))]
        drops.append(np.abs(drop) if change == "absolute" else drop)
    interval = interval or Interval()
    settings = {
        **ranked.settings,
        "change": change,
        "over": over,
        "special_tokens": special_tokens,
        "renormalise": renormalise,
        **interval.settings,
    }
    means = means_by_paradigm(correlations_of(ranked, conventions, drops), ranked.examples, interval)
    return KnockoutAgreement(tuple(_rows(ranked, means)), ranked.left_out, tokenized.skipped, settings)


def _drops(model: nn.Module, sentence: TokenizedExample, over: Over, renormalise: bool) -> Array:
    """How far p(right form) drops, `[layer, position]`, where each position is cut off from each layer on."""
    encoding, forms = sentence.encoding, over == "forms"
    # Of two forms p is the sigmoid of the difference of their logits.
    target_ids: Any = (encoding.good_id, encoding.bad_id) if forms else encoding.good_id
    effect = attention_knockout(
        model,
        encoding.ids,
        target=sentence.dest,
        target_ids=target_ids,
        metric="logit" if forms else "probability",
        window=None,
        renormalise=renormalise,
    )
    values = effect.values.double()
    if forms:
        clean = torch.tensor(effect.clean, dtype=torch.float64, device=values.device)
        values = (values + clean).sigmoid() - clean.sigmoid()
    return np.asarray(-values.cpu().numpy())


def _rows(ranked: RankedRows, means: Mapping[str, tuple[list[int], Array]]) -> Iterator[KnockoutCorrelation]:
    for method, name in enumerate(ranked.rows):
        for paradigm, (indices, mean) in means.items():
            for layer, estimate in enumerate(mean[method]):
                undefined = len(indices) - (estimate.n if estimate else 0)
                yield KnockoutCorrelation(name, paradigm, layer, estimate, undefined, *ranked.places[name])
