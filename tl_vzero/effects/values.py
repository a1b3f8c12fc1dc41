"""Vectors to put in a value's place: those of a sentence, the mean of a corpus, and the constant that hurts least.

1. The mean of a layer's and head's values is over the positions of all texts that hold text: special tokens and
   padding are left out. Texts are read a few at a time, and nothing but sums is held.
2. The optimised constant begins at that mean. In the running model it takes the place of one head's values at every
   position, and a few steps of Adam lower KL(clean || changed) of the prediction at the target, averaged over the
   sentences, for each layer and head by itself. It is the mean where that is no worse.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import Position, at_least_one, integer
from tl_vzero.clean import read_by
from tl_vzero.distance import wide_dtype
from tl_vzero.effects.measure import Intervention, intervene
from tl_vzero.errors import InputError, InputTypeError, ModelError, TLVZeroError, shortened, warn_caller
from tl_vzero.inputs.baselines import BaselineValues
from tl_vzero.inputs.encoder_decoder import DecoderInputs, described, encode_for
from tl_vzero.inputs.media import Signals
from tl_vzero.inputs.text import Ids, Inputs, Sentence, Text, is_pair, warned_before
from tl_vzero.models.contracts import check_contracts, provenance, result_dtype
from tl_vzero.models.facts import class_head_of, facts_of, vocabulary_size
from tl_vzero.models.run import LOGITS_PER_BATCH, NamedHook, TargetLogits, copied, quiet, remembering_hooks, run_to
from tl_vzero.models.sites import Sites
from tl_vzero.models.turns import takes_turn
from tl_vzero.targets import check_trained_head, one_per_sentence

TEXTS_AT_ONCE = 64  # read together, so that those of one length share a run
SENTENCES_A_STEP = 8  # drawn for a step: more of them cost as much again and turn the gradient little
COPIES_AT_ONCE = 32  # of a sentence: a gradient keeps all activations of all of them
NAME_LENGTH = 40  # characters of a sentence in a name


@takes_turn
def values_of(
    model: nn.Module,
    text: Text | Signals,
    stack: str | None = None,
    *,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    decoder_inputs: DecoderInputs | None = None,
    prepend_bos: bool = False,
) -> BaselineValues:
    """The values of one clean run, `[layer, position, head, d_head]`, to put in those of a sentence of as many tokens.

    `text` and the options are those of `value_zeroing`, of one sentence. Raises InputTypeError for several, and what
    `value_zeroing` raises for its inputs; leaves the model as it was.

    >>> import tl_vzero
    >>> values = tl_vzero.values_of(tl_vzero.load_model("agreement-mini"), "the author [MASK] today.")
    >>> values.name, list(values.values.shape[:2])
    ("values of '[CLS] the author [MASK] today . [SEP]'", [4, 7])
    """
    sites = check_contracts(model, stack)
    beside: dict[str, Any] = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
    encoded = encode_for(model, sites.stack, text, decoder_inputs, prepend_bos=prepend_bos, **beside)
    if len(encoded.sentences) != 1:
        raise InputTypeError("several sentences given: expected one, as its values are put in position by position")
    (sentence,) = encoded.sentences
    with quiet(model):
        values = [value[0] for value in _clean_values(model, sites, [sentence])]
    tokens = sentence.sources.tokens
    name = f"values of {shortened(' '.join(token.strip() for token in tokens), NAME_LENGTH)!r}"
    read = _Texts(model, sites, [], None, prepend_bos)
    read.count(sentence)
    about = read.metadata(len(tokens)) | described(sites.stack, sentence) | {"tokens": list(tokens)}
    return BaselineValues(_stacked(values), name, about)


@takes_turn
def mean_values(
    model: nn.Module,
    texts: Iterable[Text | Signals],
    stack: str | None = None,
    *,
    decoder_inputs: Iterable[str | Tensor] | None = None,
    batch_size: int = TEXTS_AT_ONCE,
    progress: bool = False,
    prepend_bos: bool = False,
) -> BaselineValues:
    """The mean of the values over all text positions of a corpus, `[layer, head, d_head]`.

    `texts` is any iterable of sentences, pairs or ids, which is read once, `batch_size` at a time: of a corpus of any
    size nothing but sums is held. Special tokens and padding are no text. `stack` and `decoder_inputs`, one for each
    text, are as in `value_zeroing`. `metadata` holds the `weights_sha256`, how many texts and positions there were, and
    a hash of what the model read.

    Raises InputError for no texts or none with text, InputTypeError for a single text, what `value_zeroing` raises for
    an input, with its place among the texts, and ModelError for values that are not finite; leaves the model as it was.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> mean = tl_vzero.mean_values(model, ["the authors near the hat [MASK] today.", "the author [MASK] today."])
    >>> mean, mean.metadata["positions"]
    (BaselineValues(mean of 2 texts, [4, 4, 32]), 13)
    """
    sites = check_contracts(model, stack)
    read = _Texts(model, sites, texts, decoder_inputs, prepend_bos)
    sums = _Sums(sites.n_layers)
    bar = tqdm(disable=not progress, desc="mean values", unit="text", leave=False)
    with quiet(model), bar:
        for part in read.parts(at_least_one("batch_size", batch_size)):
            sums.add_all(model, sites, part)
            bar.update(len(part.sentences))
    read.warn()
    mean, _ = sums.mean_and_size()
    return BaselineValues(
        mean.to(result_dtype(model)), f"mean of {read.counted:,} texts", read.metadata(sums.positions)
    )


@dataclass(eq=False)
class _Texts:
    """Texts as they are read: how many there were, a hash of what the model read, and what may not have been meant."""

    model: nn.Module
    sites: Sites
    texts: Any
    decoder_inputs: Any
    prepend_bos: bool
    predicting: bool = False
    counted: int = 0
    noted: int = 0
    first_note: str = ""
    digest: Any = field(default_factory=hashlib.sha256)

    def parts(self, size: int) -> Iterator[Inputs]:
        """All texts as the model reads them, some at a time."""
        sentences = self._sentences()
        while part := tuple(islice(sentences, size)):
            yield Inputs(part, single=False)
        if not self.counted:
            raise InputError("texts are empty: expected at least one text")

    def _sentences(self) -> Iterator[Sentence]:
        texts = self.texts
        if isinstance(texts, str | bytes | Mapping) or is_pair(texts) or not isinstance(texts, Iterable):
            raise InputTypeError(
                f"texts is {type(texts).__name__}: expected several, as a list or another iterable; of one text "
                "values_of gives the values"
            )
        for text, beside in self._with_decoder_inputs():
            try:
                with warned_before():
                    how: Any = {"prepend_bos": self.prepend_bos, "predicting": self.predicting}
                    read = encode_for(self.model, self.sites.stack, [text], beside, **how)
            except TLVZeroError as error:
                message = str(error).removeprefix("inputs[0] ")
                raise type(error)(f"texts[{self.counted}]: {message}") from error
            if read.single:
                raise InputTypeError(f"texts hold {type(text).__name__}: expected sentences, pairs or ids of sentences")
            (sentence,) = read.sentences
            self.count(sentence)
            yield sentence

    def _with_decoder_inputs(self) -> Iterator[tuple[Any, Any]]:
        if self.decoder_inputs is None:
            yield from ((text, None) for text in self.texts)
            return
        decoder_inputs, missing = iter(self.decoder_inputs), object()
        for text in self.texts:
            if (beside := next(decoder_inputs, missing)) is missing:
                raise InputError(f"decoder_inputs hold {self.counted}: expected one for each text")
            yield text, [beside]

    def count(self, sentence: Sentence) -> None:
        """Take note of a sentence."""
        for read in (sentence.read, *(() if sentence.encoder is None else (sentence.encoder.read,))):
            self.digest.update(f"{list(read.shape)} {sentence.token_types}".encode())
            self.digest.update(read.detach().cpu().double().numpy().tobytes())
        if sentence.notes:
            self.noted += 1
            self.first_note = self.first_note or f"texts[{self.counted}]: {'; '.join(sentence.notes)}"
        self.counted += 1

    def warn(self) -> None:
        """One warning for all notes."""
        if self.noted:
            warn_caller(f"{self.first_note}; read as given ({self.noted} of {self.counted} texts have such notes)")

    def metadata(self, positions: int) -> dict[str, Any]:
        """What values that were computed from these texts say of them and of the model."""
        return provenance(self.model, self.sites.stack) | {
            "stack": self.sites.stack,
            "texts": self.counted,
            "positions": positions,
            "texts_sha256": self.digest.hexdigest(),
        }


class _Sums:
    """Running sums of the values at text positions and of their squares, in the widest dtype."""

    def __init__(self, n_layers: int) -> None:
        self._values: list[Any] = [0.0] * n_layers
        self._squares: list[Any] = [0.0] * n_layers
        self.positions = 0

    def add_all(self, model: nn.Module, sites: Sites, sentences: Inputs) -> None:
        """Run sentences, those of one shape together, and add the values of their text."""
        for alike in sentences.alike():
            is_text = torch.tensor([sentence.sources.special for sentence in alike]).logical_not()
            self.positions += int(is_text.sum())
            for layer, value in enumerate(_clean_values(model, sites, alike)):
                of_text = value[is_text.to(value.device)].to(wide_dtype(value.device))
                self._values[layer] += of_text.sum(dim=0)
                self._squares[layer] += of_text.square().sum(dim=0)

    def mean_and_size(self) -> tuple[Float[Tensor, "layer head d_head"], Float[Tensor, "layer head 1"]]:
        """The mean, and the root mean square of a head's values; raises for no text and what is not finite."""
        if not self.positions:
            raise InputError("the texts hold special tokens only: expected some text, over which to average")
        mean, squares = (_stacked(sums) / self.positions for sums in (self._values, self._squares))
        if not torch.isfinite(mean).all():
            raise ModelError(
                "the mean of the values is NaN or infinite: check the weights, and the model's dtype (float16 "
                "overflows easily)"
            )
        return mean, squares.mean(dim=-1, keepdim=True).sqrt()


def _clean_values(model: nn.Module, sites: Sites, sentences: list[Sentence]) -> list[Tensor]:
    """By layer the values `[sentence, position, head, d_head]` of a clean run of sentences of one shape."""
    activations: dict[str, Tensor] = {}
    ids, beside = read_by(model, sentences)
    run_to(model, ids, remembering_hooks(sites.values, activations), last=sites.values[-1], **beside)
    return [activations[name] for name in sites.values]


def _stacked(by_layer: Sequence[Tensor]) -> Float[Tensor, "layer *position head d_head"]:
    shapes = list(dict.fromkeys(tuple(value.shape[-2:]) for value in by_layer))
    if len(shapes) > 1:
        raise ModelError(f"the values of this model are of shapes {shapes} by layer: expected the same in all layers")
    return torch.stack(list(by_layer)).detach().cpu()


# The constant that hurts the prediction least.


@takes_turn
def optimised_values(
    model: nn.Module,
    texts: Iterable[Text],
    target: Position | Sequence[Position] | None = None,
    *,
    steps: int = 20,
    learning_rate: float = 0.1,
    seed: int = 0,
    progress: bool = False,
    prepend_bos: bool = False,
    stack: str | None = None,
    decoder_inputs: Iterable[str | Tensor] | None = None,
) -> BaselineValues:
    """The constant of every layer and head that hurts the prediction least, `[layer, head, d_head]`.

    It takes the place of that head's values at every position of the running model, all else being left alone, and is
    found from the mean of the values by `steps` of Adam on KL(clean || changed) of the prediction at the target,
    averaged over `texts`. A step reads up to 8 of them, drawn by `seed`, and moves by `learning_rate` times the root
    mean square of the head's values. Where the mean is no worse on all texts, the mean is kept. `target` is a position
    or one for each text (default: as in `zero_ablation`), and of an encoder-decoder so are `stack` and one of
    `decoder_inputs` for each text. `metadata["loss"]` is in nats, `[layer][head]`, of both.
    A step costs about three runs of each text it reads for every layer and head.

    Raises what `mean_values` and `zero_ablation` raise; weights and their gradients stay as they were.
    Source: Li & Janson 2024, "Optimal ablation for interpretability".

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> constants = tl_vzero.optimised_values(model, ["the author near the hats [MASK] today."], steps=2)
    >>> loss = constants.metadata["loss"]
    >>> all(best <= mean for of_layer in zip(loss["optimised"], loss["mean"]) for best, mean in zip(*of_layer))
    True
    """
    sites = check_contracts(model, stack)
    check_trained_head(model)
    head = class_head_of(model)
    if head is not None and not head.chooses:
        raise ModelError(
            f"the head of {facts_of(model).name} does not choose among classes, so there is no distribution to keep: "
            "use mean_values"
        )
    steps, seed, rate = at_least_one("steps", steps), integer("seed", seed), _checked_rate(learning_rate)
    read = _Texts(model, sites, texts, decoder_inputs, prepend_bos, predicting=True)
    sentences = [sentence for part in read.parts(TEXTS_AT_ONCE) for sentence in part.sentences]
    read.warn()
    targets = one_per_sentence(target, len(sentences))
    places = zip(sentences, targets, strict=True)
    interventions = [intervene(model, sentence, at, None, None, True, stack=stack) for sentence, at in places]
    sums = _Sums(sites.n_layers)
    bar = tqdm(total=steps, disable=not progress, desc="optimised values", unit="step", leave=False)
    with quiet(model), bar:
        sums.add_all(model, sites, Inputs(tuple(sentences), single=False))
        mean, size = sums.mean_and_size()
        runs = TargetLogits(model)
        losses = [_Loss.of(intervention, runs) for intervention in interventions]
        end = mean + size * _descended(losses, mean, size, steps, rate, seed, bar)
        # Rounded first, so that what is returned is what was measured.
        mean, end = (values.to(result_dtype(model)) for values in (mean, end))
        before, after = (torch.stack([loss.at(values) for loss in losses]).mean(dim=0) for values in (mean, end))
    is_better = after < before
    about = {
        "targets": [intervention.target for intervention in interventions],
        "options": {"steps": steps, "learning_rate": rate, "seed": seed},
        "loss": {"mean": before.tolist(), "optimised": after.where(is_better, before).tolist()},
    }
    name = f"constants optimised on {read.counted:,} texts"
    return BaselineValues(end.where(is_better[..., None], mean), name, read.metadata(sums.positions) | about)


def _checked_rate(rate: object) -> float:
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise InputTypeError(f"learning_rate is {type(rate).__name__}: expected a positive number")
    if not (isfinite(rate) and rate > 0):
        raise InputError(f"learning_rate is {rate}: expected a positive number, such as 0.1")
    return float(rate)


def _descended(
    losses: Sequence["_Loss"], mean: Tensor, size: Tensor, steps: int, rate: float, seed: int, bar: Any
) -> Float[Tensor, "layer head d_head"]:
    """How far the constants move from the mean, in units of their size."""
    moved = torch.zeros_like(mean, requires_grad=True)
    adam, generator = torch.optim.Adam([moved], lr=rate), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        drawn = torch.randperm(len(losses), generator=generator)[:SENTENCES_A_STEP].tolist()
        moved.grad = sum((losses[index].gradient(moved, mean, size) for index in drawn), torch.zeros_like(mean))
        moved.grad /= len(drawn)
        adam.step()
        bar.update()
    return moved.detach()


@dataclass(frozen=True, eq=False)
class _Loss:
    """KL(clean || changed) at one sentence's target, for the constant of each layer and head by itself."""

    intervention: Intervention
    runs: TargetLogits
    clean: Float[Tensor, "vocabulary"]  # log probabilities

    @classmethod
    def of(cls, intervention: Intervention, runs: TargetLogits) -> "_Loss":
        """The loss of a sentence, whose clean prediction is computed here."""
        loss = cls(intervention, runs, torch.empty(0))
        return cls(intervention, runs, loss._log_probabilities([], 1)[0])

    def at(self, values: Float[Tensor, "layer head d_head"]) -> Float[Tensor, "layer head"]:
        """The loss of each constant."""
        parts = [self._of_part(values, part) for part in self._parts(values)]
        return torch.cat(parts).reshape(values.shape[:2]).cpu()

    def gradient(self, moved: Tensor, mean: Tensor, size: Tensor) -> Float[Tensor, "layer head d_head"]:
        """The gradient of all losses by how far their constants moved: a constant is in one loss only."""
        total = torch.zeros_like(mean)
        for part in self._parts(mean):
            with torch.enable_grad():
                measured = self._of_part(mean + size * moved, part).sum()
                total += torch.autograd.grad(measured, [moved])[0]
        return total

    def _parts(self, values: Tensor) -> Iterator[list[tuple[int, int]]]:
        places = list(product(range(values.shape[0]), range(values.shape[1])))
        ids, beside = read_by(self.intervention.model, [self.intervention.sentence])
        width = self.runs.positions_unembedded(ids, **beside) * vocabulary_size(self.intervention.model)
        count = max(1, min(COPIES_AT_ONCE, LOGITS_PER_BATCH // width))
        yield from (places[start : start + count] for start in range(0, len(places), count))

    def _of_part(self, values: Tensor, places: list[tuple[int, int]]) -> Float[Tensor, "place"]:
        changed = self._log_probabilities(_put_everywhere(self.intervention.sites, values, places), len(places))
        return (self.clean.exp() * (self.clean - changed)).sum(dim=-1)

    def _log_probabilities(self, hooks: list[NamedHook], copies: int) -> Float[Tensor, "copy vocabulary"]:
        one = self.intervention
        ids, beside = read_by(one.model, [one.sentence])
        at = torch.full((copies,), one.target, device=ids.device)
        logits = self.runs.at(ids.expand(copies, *ids.shape[1:]), at, hooks, **copied(beside, copies))
        return logits.to(wide_dtype(logits.device)).log_softmax(dim=-1)


def _put_everywhere(sites: Sites, values: Tensor, places: list[tuple[int, int]]) -> list[NamedHook]:
    """Hooks that put the constant of one layer and head in at every position, in each copy another one's."""

    def put_in(layer: int) -> NamedHook:
        copies, heads = zip(*((copy, head) for copy, (at, head) in enumerate(places) if at == layer), strict=True)

        def hook_function(value: Tensor, *, hook: Any) -> Tensor:
            value = value.clone()
            value[list(copies), :, list(heads)] = values[layer, list(heads)].unsqueeze(1).to(value)
            return value

        return sites.values[layer], hook_function

    return [put_in(layer) for layer in sorted({layer for layer, _ in places})]
