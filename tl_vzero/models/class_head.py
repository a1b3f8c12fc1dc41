"""A classifier's trained head: its labels, where it reads, and its logits from the blocks that a bridge runs.

TransformerLens reads a classifier as a model of words. The classifier stays around the same base model, into which
TransformerLens puts its modules: called itself, it runs the hooked blocks and then its own pooler and head. A model of
images or sounds is wrapped with its head; of a CTC head the classes are letters.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.distance import relative_difference
from tl_vzero.models.blocks import SAME_BLOCK
from tl_vzero.models.run import quiet, temporary_hooks
from tl_vzero.models.signals import Read, signal_read_by
from tl_vzero.models.sites import Sites

PROBE_LENGTH = 5
OUTSIDE = "O"  # what taggers call a token of no class
HEARD = 1e-3  # of the largest change of a logit: less is rounding


def _of_sentence(whole: Any, ids: Tensor, beside: dict[str, Tensor]) -> Tensor:
    logits: Tensor = whole(input_ids=ids, **beside).logits
    return logits.unsqueeze(1).expand(-1, ids.shape[1], -1)


def _of_tokens(whole: Any, ids: Tensor, beside: dict[str, Tensor]) -> Tensor:
    logits: Tensor = whole(input_ids=ids, **beside).logits
    return logits


def _of_scores(whole: Any, ids: Tensor, beside: dict[str, Tensor]) -> Tensor:
    """Before the model picks the last token: without a padding token it cannot do that for several copies."""
    logits: Tensor = whole.score(whole.base_model(input_ids=ids, **beside)[0])
    return logits


def _of_span(whole: Any, ids: Tensor, beside: dict[str, Tensor]) -> Tensor:
    output = whole(input_ids=ids, **beside)
    return torch.stack([output.start_logits, output.end_logits], dim=-1)


def _of_choice(whole: Any, ids: Tensor, beside: dict[str, Tensor]) -> Tensor:
    """Each copy is a question with one choice: no choice's logit depends on another choice."""
    one = {name: rows.unsqueeze(1) for name, rows in beside.items()}
    logits: Tensor = whole(input_ids=ids.unsqueeze(1), **one).logits
    return logits.unsqueeze(1).expand(-1, ids.shape[1], -1)


def _of_image(whole: Any, images: Tensor, beside: dict[str, Tensor]) -> Tensor:
    signal = signal_read_by(whole)
    assert signal is not None
    n_positions = len(signal.labels(tuple(images.shape[1:])))
    logits: Tensor = whole(images, **beside).logits
    return logits.unsqueeze(1).expand(-1, n_positions, -1)


def _of_frames(whole: Any, sounds: Tensor, beside: dict[str, Tensor]) -> Tensor:
    logits: Tensor = whole(sounds, **beside).logits
    return logits


Compute = Callable[[Any, Tensor, dict[str, Tensor]], Tensor]

# By the end of a class's name: how logits are computed, and labels where the configuration has none.
_KINDS: dict[str, tuple[Compute, tuple[str, ...] | None]] = {
    "ForSequenceClassification": (_of_sentence, None),
    "ForTokenClassification": (_of_tokens, None),
    "ForQuestionAnswering": (_of_span, ("start", "end")),
    "ForMultipleChoice": (_of_choice, ("choice",)),
    "ForNextSentencePrediction": (_of_sentence, ("next", "random")),
    "ForImageClassification": (_of_image, None),
    "ForCTC": (_of_frames, None),
}
OF_SIGNALS = frozenset({"ForImageClassification", "ForCTC"})
HEADS_OF_TEXT = frozenset(_KINDS) - OF_SIGNALS

# Why a head's logits are not computed, as the end of "its head ...".
OF_NO_TEXT = "is for images or sounds in a form that is not read here"
OF_TWO_STACKS = "reads both stacks of an encoder-decoder, and predicts no words"


def kind_of_classifier(class_names: list[str]) -> str | None:
    """The end of a class's name that says that its head predicts classes or spans, and no words."""
    return next((end for end in (*_KINDS, "Classification") if any(name.endswith(end) for name in class_names)), None)


@dataclass(frozen=True, eq=False)
class ClassHead:
    """The head of a classifier whose blocks are a loaded model's own.

    `reads` is where: the first position ([CLS]), the last token that is no padding, or each position for itself.
    `labels` are by class number, those in `nothing` say that a position is of none.
    """

    whole: Any
    compute: Compute
    labels: tuple[str, ...]
    reads: Literal["first", "last", "each"] = "each"
    nothing: frozenset[int] = frozenset()

    def logits(
        self, ids: Read, token_types: Int[Tensor, "copy position"] | None = None
    ) -> Float[Tensor, "copies position class"]:
        """The logits at each position; of a head that reads one for the sentence, the same at every position."""
        base = next(self.whole.base_model.parameters())
        if any(weight.dtype != base.dtype or weight.device != base.device for weight in self.whole.parameters()):
            # A bridge that was moved or cast took its blocks along, and what lies behind them is not its part.
            self.whole.to(device=base.device, dtype=base.dtype)
        return self.compute(self.whole, ids, {} if token_types is None else {"token_type_ids": token_types})

    def position(self, ids: Int[Tensor, "position"]) -> int | None:
        """The position of a sentence that the head reads; None where it reads each."""
        if self.reads != "last":
            return 0 if self.reads == "first" else None
        padding = self.whole.config.get_text_config().pad_token_id
        read = [position for position, token_id in enumerate(ids.tolist()) if token_id != padding]
        return len(ids) - 1 if padding is None else max(read, default=0)

    @property
    def reads_each(self) -> bool:
        """Whether its logits at a position are what it makes of that position."""
        return self.compute in (_of_tokens, _of_span, _of_scores, _of_frames)

    @property
    def is_span(self) -> bool:
        """Whether its logits are of where a span begins and ends."""
        return self.compute is _of_span

    @property
    def chooses(self) -> bool:
        """Whether its logits choose one class of several: not a regression's, a span's, or those of several classes."""
        is_number = self._problem in ("regression", "multi_label_classification")
        return len(self.labels) > 1 and self.compute is not _of_span and not is_number

    @property
    def has_probabilities(self) -> bool:
        """Whether its logits stand for probabilities of classes."""
        return self.chooses or self._problem == "multi_label_classification"

    def probabilities(self, logits: Float[Tensor, "*rows class"]) -> Float[Tensor, "*rows class"]:
        """The probabilities of classes: each for itself where a sentence may be of several, else they sum to 1."""
        return logits.sigmoid() if self._problem == "multi_label_classification" else logits.softmax(dim=-1)

    @property
    def _problem(self) -> str | None:
        problem: str | None = getattr(self.whole.config, "problem_type", None)
        return problem


def head_of(whole: Any, tokenizer: Any | None = None) -> ClassHead | str:
    """The head of a Hugging Face classifier, or why its logits are not computed, as the end of "its head ...".

    The classes of a CTC head are the tokenizer's tokens, or their ids where there is none.
    """
    end = kind_of_classifier([cls.__name__ for cls in type(whole).__mro__])
    if end not in _KINDS or (whole.main_input_name != "input_ids" and signal_read_by(whole) is None):
        return OF_NO_TEXT
    if getattr(whole.config, "is_encoder_decoder", False):
        return OF_TWO_STACKS
    compute, labels = _KINDS[end]
    if compute is _of_sentence and hasattr(whole, "score"):
        compute = _of_scores
    if compute is _of_frames:
        numbers = list(range(whole.config.vocab_size))
        named_tokens = numbers if tokenizer is None else tokenizer.convert_ids_to_tokens(numbers)
        labels = tuple(str(n if token is None else token) for n, token in zip(numbers, named_tokens, strict=True))
        blank = whole.config.pad_token_id
        return ClassHead(whole, compute, labels, nothing=frozenset(() if blank is None else (blank,)))
    if labels is None:
        named = whole.config.id2label
        labels = tuple(str(named.get(n, f"LABEL_{n}")) for n in range(whole.config.num_labels))
    outside = {number for number, label in enumerate(labels) if label == OUTSIDE and compute is _of_tokens}
    return ClassHead(whole, compute, labels, nothing=frozenset(outside))


def probe_of(head: ClassHead) -> Tensor | None:
    """The logits of a few tokens, to compare before and after TransformerLens puts modules in; None on failure."""
    with torch.no_grad(), suppress(Exception):  # whatever it is, the blocks can be read without their head
        return head.logits(_probe_read(head)).clone()
    return None


def checked_head(head: ClassHead, model: nn.Module, sites: Sites, before: Tensor | None) -> ClassHead | str:
    """The head with where it reads, found by changing one position at a time; or why it cannot be used.

    `before` are the logits of `probe_of` before TransformerLens read the model.
    """
    read = _probe_read(head)

    def move(output: Tensor, *, hook: Any) -> Tensor:
        moved = output.clone()
        moved[range(PROBE_LENGTH), range(PROBE_LENGTH)] *= -2
        return moved

    with quiet(model):
        after = probe_of(head)
        tolerance = 10 * SAME_BLOCK.get(next(model.parameters()).dtype, SAME_BLOCK[torch.bfloat16])
        if before is None or after is None or not relative_difference(after, before) <= tolerance:
            return "computes other logits on the blocks that TransformerLens runs"
        with temporary_hooks(model, [(sites.outputs[-1], move)]):
            rows = head.logits(read.expand(PROBE_LENGTH + 1, *read.shape[1:]))
    change = (rows[:-1] - rows[-1]).abs().amax(dim=-1)  # [moved, position]
    heard = (change > HEARD * change.max()).cpu()[:, :PROBE_LENGTH]
    if head.reads_each:
        if not torch.equal(heard, torch.eye(PROBE_LENGTH, dtype=torch.bool)):
            return "reads other positions than the one that it predicts the class of"
        return replace(head, reads="last" if head.compute is _of_scores else "each")
    positions = heard[:, 0].nonzero().flatten().tolist()
    return (
        replace(head, reads="first") if positions == [0] else f"reads positions {positions} of {PROBE_LENGTH} at once"
    )


def _probe_read(head: ClassHead) -> Read:
    weight, signal = next(head.whole.parameters()), signal_read_by(head.whole)
    if signal is not None:
        return signal.probe(PROBE_LENGTH).to(weight).unsqueeze(0)
    size: int = head.whole.config.get_text_config().vocab_size
    # From the end of the vocabulary: special tokens are mostly at its beginning.
    return ((size - 1 - 7 * torch.arange(PROBE_LENGTH, device=weight.device)) % size).unsqueeze(0)
