"""Fine-tuning on minimal pairs, as in the paper: the right form against the wrong one at the mask.

1. The target is replaced by the mask token; the model gives the logits [good, bad] there.
2. Their cross-entropy is minimised by AdamW, with a linear warm-up and a linear decay.
3. An encoder without a trained head gets a fresh one, tied to its embeddings, with a learning rate of its own.

Source: Mohebbi et al. (2023), *Quantifying Context Mixing in Transformers*, section 4.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from tl_vzero.clean import device_of
from tl_vzero.data.examples import HALVES, Example, Half
from tl_vzero.errors import InputError, InputTypeError, ModelError, unknown_name
from tl_vzero.evaluate import store
from tl_vzero.evaluate.rows import check_wrong_forms, padded
from tl_vzero.evaluate.sentences import TokenizedExample, tokenize_examples
from tl_vzero.evaluate.statistics import Estimate, bootstrap_mean
from tl_vzero.evaluate.store import State
from tl_vzero.files import folder_of
from tl_vzero.models.facts import context_length, facts_of, library_versions
from tl_vzero.models.heads import Trainable, trainable_copy
from tl_vzero.models.load import load_model
from tl_vzero.models.run import quiet, run_logits
from tl_vzero.models.weights import hash_of_tensors
from tl_vzero.targets import check_trained_head

if TYPE_CHECKING:
    import pandas as pd


# The logits of an example's two forms at its mask, by a plain Hugging Face model that may be in training.


def logits_of_forms(hf_model: Any, examples: Sequence[TokenizedExample]) -> Float[Tensor, "example form"]:
    """The logits [good, bad] of each example, in one padded batch.

    The head reads the target's position only: the logits of all others would cost as much as the encoder.
    """
    device = next(hf_model.parameters()).device
    ids, mask = (each.to(device) for each in padded(examples))
    rows = torch.arange(len(examples), device=device)
    targets = torch.tensor([each.dest for each in examples], device=device)

    def at_target(_module: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[rows, targets].unsqueeze(1)
        return output

    handle = getattr(hf_model, hf_model.base_model_prefix).register_forward_hook(at_target)
    try:
        logits: Tensor = hf_model(input_ids=ids, attention_mask=mask.long()).logits
    finally:
        handle.remove()
    return logits[:, 0].gather(1, ids_of_forms(examples).to(device))


def ids_of_forms(examples: Sequence[TokenizedExample]) -> Int[Tensor, "example form"]:
    """The ids [good, bad] of each example."""
    return torch.tensor([[each.encoding.good_id, each.encoding.bad_id] for each in examples])


def in_batches(examples: Sequence[TokenizedExample], size: int) -> list[list[TokenizedExample]]:
    """Examples in their order, some at a time."""
    return [list(examples[start : start + size]) for start in range(0, len(examples), size)]


# One epoch of fine-tuning: seeded batches, AdamW, a learning rate that rises and then falls linearly.
#
# An epoch draws from numbers of its own, so that training goes on after an interruption with the same batches and the
# same dropout, and gives the same weights.

# Sentences of near lengths go together, within so many batches: less padding, and the order stays random.
BATCHES_SORTED_TOGETHER = 8


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned; `warm_up` is the part of all steps in which the learning rate rises."""

    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    warm_up: float
    seed: int

    def steps_an_epoch(self, examples: int) -> int:
        return -(-examples // self.batch_size)


def optimizer_of(trainable: Trainable, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over all weights; those of a fresh head, far from where they will end, take larger steps."""
    named = dict(trainable.model.named_parameters())
    groups = [
        ([each for name, each in named.items() if name not in trainable.fresh], recipe.learning_rate),
        ([each for name, each in named.items() if name in trainable.fresh], recipe.head_learning_rate),
    ]
    return torch.optim.AdamW([{"params": own, "lr": rate, "peak": rate} for own, rate in groups if own])


def share_of_peak(step: int, steps: int, warm_up: float) -> float:
    """The learning rate of a step, counted from 0, as a share of its peak.

    >>> [share_of_peak(step, 10, 0.2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.125]
    """
    rising = round(warm_up * steps)
    return (step + 1) / rising if step < rising else (steps - step) / (steps - rising)


def batches_of(examples: Sequence[TokenizedExample], recipe: Recipe, epoch: int) -> list[list[TokenizedExample]]:
    """All examples once, in an order that seed and epoch decide."""
    generator = torch.Generator().manual_seed(_seed_of(recipe.seed, epoch, "order"))
    shuffled = [examples[number] for number in torch.randperm(len(examples), generator=generator).tolist()]
    window = BATCHES_SORTED_TOGETHER * recipe.batch_size
    ordered = [each for part in in_batches(shuffled, window) for each in sorted(part, key=len)]
    batches = in_batches(ordered, recipe.batch_size)
    return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]


def train_epoch(
    trainable: Trainable,
    optimizer: torch.optim.AdamW,
    examples: Sequence[TokenizedExample],
    recipe: Recipe,
    epoch: int,
    bar: Any,
) -> float:
    """Train on all examples once; `epoch` counts from 1. Returns the mean loss, in nats.

    Raises ModelError where the loss is no longer finite.
    """
    model, total = trainable.model, 0.0
    a_epoch = recipe.steps_an_epoch(len(examples))
    model.train()
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(_seed_of(recipe.seed, epoch, "dropout"))
        for step, batch in enumerate(batches_of(examples, recipe, epoch), start=(epoch - 1) * a_epoch):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share_of_peak(step, recipe.epochs * a_epoch, recipe.warm_up)
            optimizer.zero_grad()
            loss = _loss(logits_of_forms(model, batch))
            if not torch.isfinite(loss):
                raise ModelError(
                    f"the loss is {loss.item()} in epoch {epoch}: expected a finite number; take a lower "
                    f"learning_rate than {recipe.learning_rate:g}, head_learning_rate than "
                    f"{recipe.head_learning_rate:g}"
                )
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
            bar.update()
    return total / len(examples)


def _loss(logits: Tensor) -> Tensor:
    """Cross-entropy of the right form, the first, over the two."""
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def good_wins(trainable: Trainable, examples: Sequence[TokenizedExample], batch_size: int) -> list[bool]:
    """Whether the right form has the higher logit, for each example, without dropout."""
    trainable.model.eval()
    with torch.no_grad():
        logits = [logits_of_forms(trainable.model, batch) for batch in in_batches(examples, batch_size)]
    return [bool(good > bad) for good, bad in torch.cat(logits)]


def _seed_of(seed: int, epoch: int, what: str) -> int:
    digest = hashlib.sha256(f"{seed} {epoch} {what}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


BATCH_SIZE = 32
# The paper's, for weights that were trained before; a fresh head learns little at it in three epochs.
LEARNING_RATE = 3e-5
HEAD_LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Epoch:
    """An epoch: its mean loss in nats, and the accuracy after it on the held-out examples; number 0 is before all.

    `loss` is None for number 0, `accuracy` where nothing was held out.
    """

    number: int
    loss: float | None
    accuracy: Estimate | None


@dataclass(frozen=True)
class FineTuned:
    """A finished fine-tuning: the model's folder, its epochs, and the settings and data hashes that made it."""

    folder: Path
    history: tuple[Epoch, ...]
    settings: Mapping[str, Any]

    @property
    def accuracy(self) -> Estimate | None:
        """The accuracy after the last epoch, on the held-out examples; None where nothing was held out."""
        return self.history[-1].accuracy

    def load(self, device: str | torch.device | None = None) -> nn.Module:
        """The fine-tuned model, as `tl_vzero.load_model` gives it."""
        return load_model(self.folder, device=device)

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table, one row for each epoch: loss, accuracy, its interval and n."""
        import pandas as pd

        rows = [
            {"epoch": each.number, "loss": each.loss}
            | ({} if each.accuracy is None else {"accuracy": each.accuracy.mean, **asdict(each.accuracy)})
            for each in self.history
        ]
        columns = ["epoch", "loss", "accuracy", "low", "high", "n"]
        return pd.DataFrame(rows).reindex(columns=columns).set_index("epoch")


def finetune(
    model: nn.Module | str | Path,
    examples: Sequence[Example],
    folder: str | Path,
    *,
    half: Half | None = "train",
    epochs: int = 3,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    head_learning_rate: float = HEAD_LEARNING_RATE,
    warm_up: float = 0.1,
    seed: int = 0,
    resume: bool = True,
    progress: bool = False,
) -> FineTuned:
    """Fine-tune a copy of a masked model on minimal pairs, and save it into `folder` in Hugging Face format.

    `model` is what `load_model` gives, or its name. Trained on are the examples of one `half`, or all with None; the
    other half is held out, and the accuracy on it is measured before and after each epoch, but decides nothing.
    `head_learning_rate` is that of a fresh head and of nothing else. `warm_up` is the part of all steps in which the
    learning rates rise.

    Every epoch leaves a checkpoint. Called again with the same arguments, an interrupted fine-tuning goes on after
    its last whole epoch, and ends with the same weights; a finished one is read. `resume=False` starts anew.

    Raises InputError or InputTypeError for a bad option, no examples in the half, examples without a wrong form,
    a form that is not one token, or a folder with a fine-tuning of other data or options; ModelError for a causal
    model; OutputPathError for a folder that cannot be written or holds other files.

    >>> import tempfile
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tuned = finetune("agreement-mini", agreement_examples()[:8], folder, half=None, epochs=1)
    ...     tuned.history[1].number, accuracy(tuned.load(), agreement_examples()[8:40], half=None).n
    (1, 32)
    """
    recipe = Recipe(epochs, batch_size, learning_rate, head_learning_rate, warm_up, seed)
    _check_recipe(recipe)
    where = folder_of(folder)
    loaded = load_model(model) if isinstance(model, str | Path) else model
    trainable = trainable_copy(loaded, seed=seed)
    training = _laid_out(loaded, examples, half)
    held_out = _held_out(loaded, examples, half)
    settings = _settings(recipe, trainable, training, held_out)
    store.prepare(where)
    state = store.read_state(where) if resume else None
    if state is None:
        about = {"model": facts_of(loaded).name, "versions": library_versions()}
        state = store.begin(where, settings, about)
    store.check_same_settings(where, state, settings)
    if not state.finished:
        job = _Job(where, trainable, recipe, training, held_out, facts_of(loaded).tokenizer)
        state = job.run(state, progress)
    store.check_published(where)
    return FineTuned(where, tuple(_epoch(record) for record in state.history), state.settings)


def accuracy(
    model: nn.Module, examples: Sequence[Example], *, half: Half | None = "test", batch_size: int = 64
) -> Estimate:
    """How often a masked model prefers the right form at the mask, with a bootstrap interval and n.

    A tie counts as wrong. `half` says which examples count; None: all.

    Raises HeadlessModelError for a model without a trained head, ModelError for a causal model, InputError for no
    examples in the half, examples without a wrong form, or a form that is not one token.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> accuracy(tl_vzero.load_model("agreement-mini"), agreement_examples()[:50], half=None).mean
    1.0
    """
    _check_count("batch_size", batch_size)
    check_trained_head(model)
    by_length: dict[int, list[TokenizedExample]] = {}
    for each in _laid_out(model, examples, half):
        by_length.setdefault(len(each), []).append(each)
    # Sentences of one length need no padding, and so every class of model takes them alike.
    batches = [batch for group in by_length.values() for batch in in_batches(group, batch_size)]
    with quiet(model):
        return bootstrap_mean([win for batch in batches for win in _good_wins(model, batch)])


def _good_wins(model: nn.Module, batch: Sequence[TokenizedExample]) -> list[float]:
    ids = torch.stack([each.encoding.ids for each in batch]).to(device_of(model))
    logits = run_logits(model, ids, [])[range(len(batch)), [each.dest for each in batch]]
    forms = logits.gather(1, ids_of_forms(batch).to(logits.device))
    return (forms[:, 0] > forms[:, 1]).double().tolist()


@dataclass(frozen=True, eq=False)
class _Job:
    """One fine-tuning, from wherever its folder says it is to its end."""

    folder: Path
    trainable: Trainable
    recipe: Recipe
    training: Sequence[TokenizedExample]
    held_out: Sequence[TokenizedExample]
    tokenizer: Any

    def run(self, state: State, progress: bool) -> State:
        done, a_epoch = state.epochs_done, self.recipe.steps_an_epoch(len(self.training))
        model, optimizer = self.trainable.model, optimizer_of(self.trainable, self.recipe)
        if not state.history:
            state = self._wrote(state, self._record(0, None))
        if done:
            store.read_checkpoint(self.folder, done, done * a_epoch, model, optimizer)
        total = self.recipe.epochs * a_epoch
        with tqdm(total=total, initial=done * a_epoch, disable=not progress, desc="fine-tuning", unit="batch") as bar:
            for epoch in range(done + 1, self.recipe.epochs + 1):
                loss = train_epoch(self.trainable, optimizer, self.training, self.recipe, epoch, bar)
                record = self._record(epoch, loss)
                store.write_checkpoint(self.folder, epoch, model, optimizer)
                state = self._wrote(state, record)
                store.drop_checkpoints(self.folder, but=epoch)
        return self._finish(state)

    def _wrote(self, state: State, record: dict[str, Any]) -> State:
        """The state with one more record, as it is in the folder from now on."""
        further = State(state.settings, (*state.history, record), False, state.about)
        store.write_state(self.folder, further)
        return further

    def _finish(self, state: State) -> State:
        store.publish(self.folder, self.trainable.model.eval(), self.tokenizer)
        finished = State(state.settings, state.history, True, state.about)
        store.write_state(self.folder, finished)
        store.drop_checkpoints(self.folder)
        return finished

    def _record(self, number: int, loss: float | None) -> dict[str, Any]:
        if not self.held_out:
            return {"epoch": number, "loss": loss, "accuracy": None}
        wins = good_wins(self.trainable, self.held_out, self.recipe.batch_size)
        return {"epoch": number, "loss": loss, "accuracy": asdict(bootstrap_mean([float(win) for win in wins]))}


def _epoch(record: Mapping[str, Any]) -> Epoch:
    measured = record["accuracy"]
    return Epoch(record["epoch"], record["loss"], None if measured is None else Estimate(**measured))


def _laid_out(model: nn.Module, examples: Sequence[Example], half: Half | None) -> tuple[TokenizedExample, ...]:
    """The examples of a half on the model's tokens, each with two forms."""
    if half is not None and half not in HALVES:
        raise unknown_name("half", half, HALVES)
    chosen = [each for each in examples if half is None or each.split == half]
    if examples and not chosen:
        raise InputError(
            f"none of {len(examples)} examples is in the {half} half: expected split_in_halves(examples, seed=...) "
            "before, or half=None for all"
        )
    laid = tokenize_examples(model, chosen).examples
    check_wrong_forms(laid, "the choice at the mask")
    longest = context_length(model)
    too_long = [each.example.id for each in laid if longest is not None and len(each) > longest]
    if too_long:
        raise InputError(
            f"{len(too_long)} examples are longer than the model's context of {longest} tokens, first {too_long[0]}: "
            "leave them out"
        )
    return laid


def _held_out(model: nn.Module, examples: Sequence[Example], half: Half | None) -> tuple[TokenizedExample, ...]:
    for other in HALVES:
        if half is not None and other != half and any(each.split == other for each in examples):
            return _laid_out(model, examples, other)
    return ()


def _settings(
    recipe: Recipe, trainable: Trainable, training: Sequence[TokenizedExample], held_out: Sequence[TokenizedExample]
) -> dict[str, Any]:
    """Everything that decides the weights in the end, as plain data."""
    return {
        **asdict(recipe),
        "fresh_head": bool(trainable.fresh),
        "n_train": len(training),
        "n_held_out": len(held_out),
        "train_sha256": _hash_of(training),
        "held_out_sha256": _hash_of(held_out),
        "start_sha256": hash_of_tensors(trainable.model.state_dict()),
    }


def _hash_of(examples: Sequence[TokenizedExample]) -> str:
    rows = [(each.encoding.ids.tolist(), each.dest, each.encoding.good_id, each.encoding.bad_id) for each in examples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _check_recipe(recipe: Recipe) -> None:
    _check_count("epochs", recipe.epochs)
    _check_count("batch_size", recipe.batch_size)
    for name in ("learning_rate", "head_learning_rate", "warm_up"):
        given = getattr(recipe, name)
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise InputTypeError(f"{name} is {type(given).__name__}: expected a number")
        if not (isfinite(given) and given >= 0) or (given == 0 and name != "warm_up"):
            raise InputError(f"{name} is {given}: expected a finite number above 0")
    if recipe.warm_up >= 1:
        raise InputError(f"warm_up is {recipe.warm_up}: expected a part of all steps, from 0 to below 1")
    if isinstance(recipe.seed, bool) or not isinstance(recipe.seed, int):
        raise InputTypeError(f"seed is {type(recipe.seed).__name__}: expected an integer")


def _check_count(name: str, given: Any) -> None:
    if isinstance(given, bool) or not isinstance(given, int):
        raise InputTypeError(f"{name} is {type(given).__name__}: expected a positive integer")
    if given < 1:
        raise InputError(f"{name} is {given}: expected at least 1")
