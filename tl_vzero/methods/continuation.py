"""A continuation of several tokens, explained token by token and all at once."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.choices import at_least_one
from tl_vzero.errors import InputError, InputTypeError, shown
from tl_vzero.inputs.text import encode
from tl_vzero.methods.plan import plan_of
from tl_vzero.models.contracts import check_contracts, is_causal
from tl_vzero.models.facts import context_length, facts_of
from tl_vzero.models.run import quiet, run_word_logits
from tl_vzero.models.turns import takes_turn
from tl_vzero.registry import METHODS
from tl_vzero.scores import Scores
from tl_vzero.targets import check_predicts_words

if TYPE_CHECKING:
    import pandas as pd

WRITTEN = "continuation"


@dataclass(frozen=True, eq=False)
class Continuation:
    """What each token of a continuation was predicted from.

    `steps[n]` has one destination: the token before token n of `written`, whose prediction token n is. The first
    `n_prompt` positions of a step's sources are the prompt's.
    """

    steps: tuple[Scores, ...]
    written: tuple[str, ...]
    n_prompt: int

    def rows(self) -> Float[Tensor, "layer step source"]:
        """Each step's row, its sources the prompt's tokens and, last, the continuation's own tokens together.

        Rows are shares, or of signed scores the scores themselves.
        """
        rows = []
        for step in self.steps:
            row = (step if step.signed else step.normalized()).values[..., 0, :]
            rows.append(torch.cat([row[..., : self.n_prompt], row[..., self.n_prompt :].sum(-1, keepdim=True)], dim=-1))
        return torch.stack(rows, dim=1)

    def total(self) -> Float[Tensor, "layer source"]:
        """The sum over the steps of their rows: shares of a continuation of n tokens sum to n."""
        return self.rows().sum(1)

    def to_frame(self, layer: int = -1) -> "pd.DataFrame":
        """A row for each token of the continuation and one for their sum, a column for each source.

        `layer` is a layer's place among those that were scored. Raises IndexError for one that is not there.
        """
        import pandas as pd

        names = [f"{place} {token}" for place, token in enumerate(self.steps[0].src_tokens[: self.n_prompt])]
        rows = torch.cat([self.rows()[layer], self.total()[layer][None]]).tolist()
        return pd.DataFrame(rows, index=[*self.written, "sum"], columns=[*names, WRITTEN])


@takes_turn
def explain_continuation(
    model: nn.Module,
    prompt: str | Int[Tensor, "position"],
    written: str | Int[Tensor, "token"] | int,
    method: str = "value_zeroing",
    **options: Any,
) -> Continuation:
    """From what a causal language model predicts each token of a continuation, by one method's rows.

    `written` is the text that follows the prompt, its token ids, or how many tokens the model shall write, each time
    the likeliest. `method` is a name of `METHODS` and `options` its own; a method with a target explains the logit of
    the token that follows. A row of layer l says what the block mixes into the position before that token.

    Raises InputError or InputTypeError for a model that is not causal, for no or too many tokens, or for a text whose
    tokens are not the prompt's with more behind them, and what the method raises.

    >>> import torch, tl_vzero
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = tl_vzero.load_model(GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2)).eval())
    >>> explained = tl_vzero.explain_continuation(model, torch.tensor([3, 5, 7]), 2, "attention")
    >>> list(explained.to_frame().columns)
    ['0 3', '1 5', '2 7', 'continuation']
    >>> explained.total().sum(-1).round()
    tensor([2., 2.])
    """
    if not is_causal(model):
        raise InputError(f"{facts_of(model).name} is no causal language model: it writes no continuation")
    check_contracts(model)
    check_predicts_words(model)
    (planned,) = plan_of([method], {method: options}, METHODS)
    ids, n_prompt = _whole(model, prompt, written)
    places = tuple(range(n_prompt - 1, len(ids) - 1))
    if "target" in planned.method.needs:
        steps = [
            _only(planned.called(model, ids[None], 1, target=place, target_ids=int(ids[place + 1]))) for place in places
        ]
    else:
        takes_rows = planned.method.layer is not None or "destinations" in (planned.method.options or ())
        scores = _only(planned.called(model, ids[None], 1, **({"destinations": places} if takes_rows else {})))
        steps = [scores.at_dest(place) for place in places]
    return Continuation(tuple(steps), steps[0].src_tokens[n_prompt:], n_prompt)


def _only(scores: list[Scores]) -> Scores:
    (one,) = scores
    return one


def _whole(model: nn.Module, prompt: object, written: object) -> tuple[Int[Tensor, "position"], int]:
    """The ids of prompt and continuation, and how many are the prompt's."""
    before = _ids_of(model, "prompt", prompt)
    if isinstance(written, str):
        if not isinstance(prompt, str):
            raise InputTypeError("written is a text and prompt is ids: expected both as texts, or both as ids")
        whole = _ids_of(model, "prompt and continuation", prompt + written)
        if len(whole) <= len(before) or not torch.equal(whole[: len(before)], before):
            raise InputError(
                f"the tokens of {shown(prompt + written)} do not begin with those of {shown(prompt)} and go on: begin "
                "the continuation where a token begins (in many models with its space), or give ids"
            )
        return whole, len(before)
    if isinstance(written, Tensor):
        return torch.cat([before, _ids_of(model, "written", written)]), len(before)
    count = at_least_one("written", written, "how many tokens the model shall write")
    return _written_by(model, before, count), len(before)


def _ids_of(model: nn.Module, name: str, text: object) -> Int[Tensor, "position"]:
    if not isinstance(text, str | Tensor) or (isinstance(text, Tensor) and text.ndim != 1):
        raise InputTypeError(f"{name} is {type(text).__name__}: expected a text, or a 1-D tensor of ids")
    (sentence,) = encode(model, text).sentences
    return sentence.ids


def _written_by(model: nn.Module, ids: Int[Tensor, "_"], count: int) -> Int[Tensor, "_"]:
    limit = context_length(model)
    if limit is not None and len(ids) + count > limit:
        raise InputError(f"{len(ids)} tokens and {count} more: the model reads at most {limit}")
    with quiet(model), torch.no_grad():
        for _ in range(count):
            logits = run_word_logits(model, ids[None].to(next(model.parameters()).device), [])
            ids = torch.cat([ids, logits[0, -1:].argmax(-1).to(ids)])
    return ids
