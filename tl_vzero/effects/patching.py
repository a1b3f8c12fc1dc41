"""Value patching: TransformerLens's own, from a clean sentence into a corrupted one, position by position.

1. The clean sentence runs once, and every block's values are kept.
2. The corrupted sentence runs once for each place, with the clean value put in there; later blocks see the change.
3. The effect is the metric of the patched run minus the metric of the corrupted sentence.

`transformer_lens.patching` forwards tokens only, and in 3.9 takes away hooks that a user left behind: so it is given
a stand-in that runs one sentence without padding, segments included, with our own temporary hooks.
"""

from functools import partial
from importlib import import_module
from threading import RLock
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import Position, Positions, integers, positions_in
from tl_vzero.clean import device_of
from tl_vzero.effects.measure import (
    Intervention,
    Metric,
    MetricFunction,
    Numbers,
    PatchingEffect,
    intervene,
    metric_for,
    one_sentence,
)
from tl_vzero.errors import InputError
from tl_vzero.inputs.text import Ids, Text
from tl_vzero.models.run import quiet, remembering_hooks
from tl_vzero.models.turns import takes_turn, turn_on
from tl_vzero.targets import TargetIds, find_target

_ONE_BAR = RLock()


@takes_turn
def value_patching(
    model: nn.Module,
    clean: Text,
    corrupted: Text,
    *,
    target: Position | None = None,
    target_ids: TargetIds | None = None,
    metric: str | MetricFunction = "logit",
    layers: Numbers = None,
    sources: Positions = None,
    per_head: bool = False,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    corrupted_attention_mask: Ids | None = None,
    corrupted_token_type_ids: Ids | None = None,
    progress: bool = False,
    prepend_bos: bool = False,
) -> PatchingEffect:
    """Run the corrupted sentence with one position's value taken from the clean sentence, layer by layer.

    Both are one sentence each, of as many tokens: a minimal pair is a ready one. `target` is a position, the same
    in both (default: see `zero_ablation`). `target_ids`, `metric`, `layers`, `sources` and `per_head` are those of
    `zero_ablation`; the likeliest token is the clean sentence's. Values are `[layer, src]`, or `[layer, head, src]`,
    in units of the metric; `recovered` are shares of the way to the clean metric. Costs one forward pass per value.

    Raises InputError for sentences of different length or of the same tokens, and what `zero_ablation` raises.
    Source: TransformerLens, `transformer_lens.patching`.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> clean, corrupted = "the authors [MASK] today.", "the author [MASK] today."
    >>> effect = tl_vzero.value_patching(model, clean, corrupted, target_ids=("are", "is"))
    >>> effect.clean > 0 > effect.corrupted
    True
    """
    inputs = (clean, attention_mask, token_type_ids), (corrupted, corrupted_attention_mask, corrupted_token_type_ids)
    first, second = both = [one_sentence(model, *of_text, prepend_bos) for of_text in inputs]
    tokens = f"clean {list(first.tokens)}, corrupted {list(second.tokens)}"
    # Before targets are looked for: that of a shorter corrupted sentence may be outside of it.
    if len(first) != len(second):
        raise InputError(
            f"the clean sentence has {len(first)} tokens and the corrupted one {len(second)}: expected as many, so "
            f"that each position has its counterpart; {tokens}"
        )
    # A text is of the clean sentence: where the two differ, the corrupted one has another there.
    layers, sources = integers("layers", layers), positions_in(first.tokens, "sources", sources)
    target = find_target(model, first, target) if isinstance(target, str) else target
    from_clean, into_corrupted = (intervene(model, one, target, layers, sources, per_head) for one in both)
    if first.identity == second.identity:
        raise InputError(f"clean and corrupted are the same tokens: expected two sentences that differ; {tokens}")
    if from_clean.target != into_corrupted.target:
        raise InputError(
            f"the target is position {from_clean.target} of the clean and {into_corrupted.target} of the corrupted "
            f"sentence: expected the same; give a target; {tokens}"
        )
    make_metric = metric_for(model, metric, target_ids)
    values: dict[str, Tensor] = {}
    with quiet(model):
        names = [from_clean.sites.values[layer] for layer in from_clean.layers]
        logits = from_clean.logits(remembering_hooks(names, values))
        measure = make_metric(into_corrupted.target, logits[0, into_corrupted.target])
        clean_metric = measure(logits)
        before = measure(into_corrupted.logits([]))
        after = _patched(into_corrupted, values, measure, progress)
    return PatchingEffect(
        values=into_corrupted.as_values(after - before),
        method="value_patching",
        corrupted=before.item(),
        corrupted_tokens=tuple(into_corrupted.sentence.tokens[i] for i in into_corrupted.sources),
        **from_clean.labels(measure, clean_metric, logits),
    )


def _patched(
    intervention: Intervention, values: dict[str, Tensor], metric: Metric, progress: bool
) -> Float[Tensor, "place"]:
    import pandas as pd

    patching: Any = import_module("transformer_lens.patching")  # its types ask for more than it uses
    places = pd.DataFrame(intervention.places(), columns=["layer", "head", "pos"])
    by_position = places[["layer", "pos"]] if intervention.heads is None else places[["layer", "pos", "head"]]
    setter = (
        patching.layer_pos_patch_setter if intervention.heads is None else patching.layer_pos_head_vector_patch_setter
    )
    measured: list[Tensor] = []

    def measure(logits: Tensor) -> Tensor:
        """Keep the number itself: the library's table is float32 whatever the model is."""
        measured.append(metric(logits)[0])
        return measured[-1]

    # What the library uses of a model: it runs the one sentence, and a user's own hooks on the model stay.
    of_sentence: Any = SimpleNamespace(
        cfg=SimpleNamespace(device=device_of(intervention.model)),
        run_with_hooks=lambda ids, fwd_hooks: intervention.logits(fwd_hooks),
    )
    # Its bar, always shown, gives way to ours; there is one place for the bars of all models, so patchings take turns.
    with _ONE_BAR, turn_on(intervention.model) as turn:
        turn.undo_by(partial(setattr, patching, "tqdm", patching.tqdm))
        patching.tqdm = partial(tqdm, disable=not progress, desc="value patching", unit="source", leave=False)
        patching.generic_activation_patch(
            of_sentence, intervention.ids, values, measure, setter, "v", index_df=by_position
        )
    return torch.stack(measured)
