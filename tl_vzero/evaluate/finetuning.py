"""Fine-tuning on minimal pairs, as in the paper: the right form against the wrong one at the mask.

1. The target is replaced by the mask token; the model gives the logits [good, bad] there.
2. Their cross-entropy is minimised by AdamW, with a linear warm-up and a linear decay.
3. An encoder without a trained head gets a fresh one, tied to its embeddings, with a learning rate of its own.

Source: Mohebbi et al. (2023), *Quantifying Context Mixing in Transformers*, section 4.
"""

import copy
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from tl_vzero.choices import at_least_one, integer, one_of
from tl_vzero.clean import device_of
from tl_vzero.data.examples import HALVES, Example, Half
from tl_vzero.distance import relative_difference
from tl_vzero.errors import FileFormatError, InputError, InputTypeError, ModelError, OutputPathError, foreign_errors_as
from tl_vzero.evaluate.results import COLUMNS, Row, Settings, check_same, claimed, frame_of, make_folder
from tl_vzero.evaluate.rows import check_wrong_forms, padded
from tl_vzero.evaluate.sentences import TokenizedExample, tokenize_examples
from tl_vzero.files import (
    check_writable,
    folder_of,
    from_plain,
    open_regular,
    parse_json,
    read_text,
    to_plain,
    write_atomically,
    write_text,
)
from tl_vzero.inputs.text import same_length_batches
from tl_vzero.models.changes import hash_of_tensors
from tl_vzero.models.contracts import PROBE_LENGTH, check_contracts
from tl_vzero.models.facts import ON_TWO_FORMS, context_length, facts_of, library_versions, vocabulary_size
from tl_vzero.models.hugging_face import silent_transformers
from tl_vzero.models.load import load_model
from tl_vzero.models.run import quiet, remembering_hooks, run_logits, run_word_logits
from tl_vzero.models.sites import hf_model_of, kind_of
from tl_vzero.statistics import Estimate, bootstrap_mean
from tl_vzero.targets import check_predicts_words

if TYPE_CHECKING:
    import pandas as pd

# Sentences of near lengths go together, within so many batches: less padding, and the order stays random.
BATCHES_SORTED_TOGETHER = 8
BATCH_SIZE = 32
# The paper's, for weights that were trained before; a fresh head learns little at it in three epochs.
LEARNING_RATE = 3e-5
HEAD_LEARNING_RATE = 1e-3

# What TransformerLens puts between a module's name and its weights.
_WRAPPED = "_original_component."
_SAME = 1e-3  # relative; two orders of summing differ by far less, another model by far more
_NORMAL = 0.02  # BERT's own spread, where a config names none


# The folder of a fine-tuning.
# 1. After each epoch its checkpoint is written, then the state that names it; then older checkpoints go.
# 2. At the end the model is written in Hugging Face format, config.json last, then the state says `finished`.
# An interruption at any point leaves a state and the checkpoint that belongs to it.

STATE = "finetuning.json"
TRAINING_FORMAT = "tl_vzero.finetuning"
TRAINING_FORMAT_VERSION = "1"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
ANEW = "start anew with resume=False"


@dataclass(frozen=True)
class Epoch(Row):
    """An epoch: its mean loss in nats, and the accuracy after it on the held-out examples; epoch 0 is before all.

    `loss` is None for epoch 0, `accuracy` where nothing was held out.
    """

    epoch: int
    loss: float | None
    accuracy: Estimate | None = field(metadata={COLUMNS: ""})


@dataclass(frozen=True)
class State:
    """How far a fine-tuning came: epoch 0, the start, then every finished epoch; none at the very first."""

    settings: Settings
    history: tuple[Epoch, ...]
    finished: bool
    about: Settings

    def __post_init__(self) -> None:
        if [record.epoch for record in self.history] != [*range(len(self.history))]:
            raise ValueError("the epochs of its history are not 0, 1, 2, ...")
        if self.finished and not self.history:
            raise ValueError("it is finished, and has no epoch")

    @property
    def epochs_done(self) -> int:
        return max(0, len(self.history) - 1)


def read_state(folder: Path) -> State | None:
    """The state in a folder; None where there is none. Raises FileFormatError for a file that is no state."""
    path = folder / STATE
    if not path.is_file():
        return None
    with foreign_errors_as(FileFormatError, f"{path} is no state of a fine-tuning: give another folder, or {ANEW}"):
        record = parse_json(read_text(path))
        written, readable = (record["format"], record["version"]), (TRAINING_FORMAT, TRAINING_FORMAT_VERSION)
        if written != readable:
            raise ValueError(f"it has format {written[0]} {written[1]}, and this version reads {' '.join(readable)}")
        state: State = from_plain(State, record)
    return state


def write_state(folder: Path, state: State) -> None:
    """Write how far the fine-tuning came, whole or not at all."""
    about = {"format": TRAINING_FORMAT, "version": TRAINING_FORMAT_VERSION, "epochs_done": state.epochs_done}
    write_text(folder / STATE, json.dumps(about | to_plain(state), indent=2) + "\n")


def begin(folder: Path, settings: Settings, about: Settings) -> State:
    """Start anew: the state first, as it says whose the folder is, then what an earlier fine-tuning left goes."""
    state = State(settings, (), False, about)
    write_state(folder, state)
    for path in (folder / CONFIG, folder / WEIGHTS, *_checkpoints(folder)):
        path.unlink(missing_ok=True)
    return state


def write_checkpoint(folder: Path, epoch: int, model: Any, optimizer: torch.optim.AdamW) -> None:
    """Write the weights and the optimiser's moments after an epoch."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach().cpu().contiguous()
        for moment in MOMENTS:
            if parameter in optimizer.state:
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment].cpu().contiguous()
    write_atomically(_checkpoint(folder, epoch), lambda partial: save_file(tensors, partial))


def read_checkpoint(folder: Path, epoch: int, steps: int, model: Any, optimizer: torch.optim.AdamW) -> None:
    """Put model and optimiser where they were after an epoch, `steps` in; raises FileFormatError for damaged files."""
    from safetensors.torch import load_file

    path = _checkpoint(folder, epoch)
    with foreign_errors_as(FileFormatError, f"{path} is not the checkpoint that {STATE} names, {ANEW}"):
        open_regular(path).close()
        tensors = load_file(path)
        _check_shapes(model, tensors)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"weight.{name}"])
                if f"{MOMENTS[0]}.{name}" in tensors:
                    moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
                    optimizer.state[parameter] = {"step": torch.tensor(float(steps)), **moments}


def _check_shapes(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a tensor that is not of its parameter's shape and type: it would be spread or converted."""
    for name, parameter in model.named_parameters():
        for kind in ("weight", *MOMENTS):
            tensor = tensors.get(f"{kind}.{name}", parameter)
            if (tensor.dtype, tensor.shape) != (parameter.dtype, parameter.shape):
                expected = f"expected {parameter.dtype} of {list(parameter.shape)}"
                raise ValueError(f"{kind}.{name} is {tensor.dtype} of {list(tensor.shape)}: {expected}")


def drop_checkpoints(folder: Path, *, but: int | None = None) -> None:
    """Delete checkpoints, all or all but one."""
    for path in _checkpoints(folder):
        if but is None or path != _checkpoint(folder, but):
            path.unlink()


def publish(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write model and tokenizer in Hugging Face format; config.json comes last, so that no half model is read."""
    with (
        foreign_errors_as(OutputPathError, f"cannot write the model into {folder}"),
        tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial,
    ):
        with silent_transformers():
            model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for path in sorted(Path(partial).iterdir(), key=lambda path: path.name == CONFIG):
            path.replace(folder / path.name)


def check_published(folder: Path) -> None:
    """Raise FileFormatError where the state says finished, and the model is not there."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileFormatError(f"{folder} holds no {name}, though {STATE} says finished: {ANEW}")


def _checkpoint(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch}.safetensors"


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*.safetensors"))


# A model's weights as a plain Hugging Face model that can be trained, with a fresh head where it has none.


@dataclass(frozen=True, eq=False)
class Trainable:
    """A Hugging Face masked language model; `fresh` names the parameters that start untrained."""

    model: Any
    fresh: frozenset[str]


def trainable_copy(model: nn.Module, *, seed: int = 0) -> Trainable:
    """Copy the masked language model inside a bridge, to train it; one without a trained head gets a fresh one.

    The copy has its own weights, in float64 or else float32, and the model is left as it was. A fresh head is tied to
    the embeddings. Its square matrix starts as the identity, so that the head first compares the representation
    itself with the embeddings; only a matrix of another shape is drawn, by `seed`. Raises ModelError for a model that
    is not masked, has no Hugging Face weights inside, or computes something else than those.
    """
    inside = _masked_model_in(model)
    # Its constructor draws random weights, and the user's own draws must not change by that.
    with torch.random.fork_rng():
        copied: Any = type(inside)(copy.deepcopy(inside.config))
    first = next(inside.parameters())
    copied.to(device=first.device, dtype=first.dtype)
    weights = {name.replace(_WRAPPED, ""): tensor for name, tensor in inside.state_dict().items()}
    missing = copied.load_state_dict(weights, strict=False).missing_keys
    if missing:
        name = facts_of(model).name
        raise ModelError(f"the {type(inside).__name__} inside {name} has no {missing[0]}: expected all of its weights")
    copied.tie_weights()
    _check_same(model, copied.eval())
    copied.to(torch.float64 if first.dtype == torch.float64 else torch.float32).requires_grad_(True)
    is_headless = facts_of(model).head == "absent"
    return Trainable(copied, _give_fresh_head(copied, seed) if is_headless else frozenset())


def _masked_model_in(model: nn.Module) -> Any:
    from transformers import PreTrainedModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    inside, name = hf_model_of(model), facts_of(model).name
    if not isinstance(inside, PreTrainedModel):
        raise ModelError(
            f"{name} ({kind_of(model)}) holds no Hugging Face model to fine-tune: expected one of tl_vzero.load_model"
        )
    masked: Any = MODEL_FOR_MASKED_LM_MAPPING
    if not isinstance(inside, masked.get(type(inside.config), ())):
        raise ModelError(
            f"{name} is a {type(inside).__name__}: expected a masked language model, to choose between two words at a "
            'mask; a causal model is evaluated as it is (protocol="causal")'
        )
    return inside


def _check_same(model: nn.Module, copied: Any) -> None:
    """Compare the copy with what the model really computes: the last block's input, and the logits."""
    sites = check_contracts(model)
    ids = (torch.arange(PROBE_LENGTH, device=device_of(model)) % vocabulary_size(model)).unsqueeze(0)
    inputs: dict[str, Tensor] = {}
    with quiet(model):
        logits = run_word_logits(model, ids, remembering_hooks(sites.inputs[-1:], inputs))
        by_copy = copied(input_ids=ids, output_hidden_states=True)
    pairs = (inputs[sites.inputs[-1]], by_copy.hidden_states[sites.n_layers - 1]), (logits, by_copy.logits)
    # One model in half precision, or with fused attention, adds up in another order.
    tolerance = max(_SAME, 10 * torch.finfo(logits.dtype).eps)
    if not all(relative_difference(other.float(), one.float()) <= tolerance for one, other in pairs):
        raise ModelError(
            f"{facts_of(model).name} computes something else than the Hugging Face weights inside it: hooks act on it, "
            "or its weights were processed; expected a model fresh from tl_vzero.load_model"
        )


def _give_fresh_head(model: Any, seed: int) -> frozenset[str]:
    """Fill every parameter outside the base model; returns their names."""
    model.config.tie_word_embeddings = True
    model.tie_weights()
    of_base = {id(parameter) for parameter in getattr(model, model.base_model_prefix).parameters()}
    fresh = {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in of_base}
    generator = torch.Generator().manual_seed(seed)
    spread = getattr(model.config, "initializer_range", _NORMAL)
    with torch.no_grad():
        for name, parameter in fresh.items():
            if parameter.ndim == 1:
                parameter.fill_(0 if name.endswith("bias") else 1)
            elif parameter.ndim == 2 and parameter.shape[0] == parameter.shape[1]:
                nn.init.eye_(parameter)
            else:
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return frozenset(fresh)


# One epoch: seeded batches, AdamW, a learning rate that rises and then falls linearly.
#
# An epoch draws from seeds of its own, so that training goes on after an interruption with the same batches and the
# same dropout, and gives the same weights.


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned; `warm_up` is the part of all steps in which the learning rate rises.

    Raises InputError or InputTypeError for a value that cannot be used.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    warm_up: float
    seed: int

    def __post_init__(self) -> None:
        at_least_one("epochs", self.epochs)
        at_least_one("batch_size", self.batch_size)
        for name in ("learning_rate", "head_learning_rate", "warm_up"):
            rate = getattr(self, name)
            if isinstance(rate, bool) or not isinstance(rate, int | float):
                raise InputTypeError(f"{name} is {type(rate).__name__}: expected a number")
            if not (isfinite(rate) and rate >= 0) or (rate == 0 and name != "warm_up"):
                raise InputError(f"{name} is {rate}: expected a finite number above 0")
        if self.warm_up >= 1:
            raise InputError(f"warm_up is {self.warm_up}: expected a part of all steps, from 0 to below 1")
        integer("seed", self.seed)

    def steps_per_epoch(self, n_examples: int) -> int:
        return -(-n_examples // self.batch_size)


def logits_of_forms(hf_model: Any, examples: Sequence[TokenizedExample]) -> Float[Tensor, "example form"]:
    """The logits [good, bad] of each example at its mask, in one padded batch; the model may be in training.

    The head reads the target's position only: the logits of all others would cost as much as the encoder.
    """
    device = next(hf_model.parameters()).device
    ids, mask = (part.to(device) for part in padded(examples))
    rows = torch.arange(len(examples), device=device)
    targets = torch.tensor([example.dest for example in examples], device=device)

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
    return torch.tensor([[example.encoding.good_id, example.encoding.bad_id] for example in examples])


def optimizer_of(trainable: Trainable, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over all weights; those of a fresh head, far from where they will end, take larger steps."""
    named = dict(trainable.model.named_parameters())
    groups = [
        ([named[name] for name in named if name not in trainable.fresh], recipe.learning_rate),
        ([named[name] for name in named if name in trainable.fresh], recipe.head_learning_rate),
    ]
    return torch.optim.AdamW(
        [{"params": parameters, "lr": rate, "peak": rate} for parameters, rate in groups if parameters]
    )


def share_of_peak(step: int, steps: int, warm_up: float) -> float:
    """The learning rate of a step, counted from 0, as a share of its peak; of 10 steps by 0.2: 0.5, 1, 1, 0.875, ..."""
    rising = round(warm_up * steps)
    return (step + 1) / rising if step < rising else (steps - step) / (steps - rising)


def in_batches(examples: Sequence[TokenizedExample], size: int) -> list[list[TokenizedExample]]:
    """Examples in their order, some at a time."""
    return [list(examples[start : start + size]) for start in range(0, len(examples), size)]


def batches_of(examples: Sequence[TokenizedExample], recipe: Recipe, epoch: int) -> list[list[TokenizedExample]]:
    """All examples once, in an order that seed and epoch decide."""
    generator = torch.Generator().manual_seed(_seed_of(recipe.seed, epoch, "order"))
    shuffled = [examples[index] for index in torch.randperm(len(examples), generator=generator).tolist()]
    window = BATCHES_SORTED_TOGETHER * recipe.batch_size
    ordered = [example for part in in_batches(shuffled, window) for example in sorted(part, key=len)]
    batches = in_batches(ordered, recipe.batch_size)
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def train_epoch(
    trainable: Trainable,
    optimizer: torch.optim.AdamW,
    examples: Sequence[TokenizedExample],
    recipe: Recipe,
    epoch: int,
    bar: Any,
) -> float:
    """Train on all examples once, in epoch 1 or later; the mean loss in nats. Raises ModelError for one not finite."""
    model, total = trainable.model, 0.0
    steps = recipe.steps_per_epoch(len(examples))
    model.train()
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(_seed_of(recipe.seed, epoch, "dropout"))
        for step, batch in enumerate(batches_of(examples, recipe, epoch), start=(epoch - 1) * steps):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share_of_peak(step, recipe.epochs * steps, recipe.warm_up)
            optimizer.zero_grad()
            logits = logits_of_forms(model, batch)  # the right form is the first
            loss = cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
            if not torch.isfinite(loss):
                raise ModelError(
                    f"the loss is {loss.item()} in epoch {epoch}: expected a finite number; take a lower learning_rate "
                    f"than {recipe.learning_rate:g}, head_learning_rate than {recipe.head_learning_rate:g}"
                )
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
            bar.update()
    return total / len(examples)


def _accuracy_by(logits: Sequence[Float[Tensor, "_ form"]]) -> Estimate:
    """How often the right form, the first, has the higher logit."""
    good, bad = torch.cat(list(logits)).unbind(dim=1)
    return bootstrap_mean((good > bad).double())


def _seed_of(seed: int, epoch: int, what: str) -> int:
    digest = hashlib.sha256(f"{seed} {epoch} {what}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


# The whole of a fine-tuning, which goes on from wherever its folder says it is.


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
        """A pandas table, one row per epoch: loss, accuracy, its interval and n."""
        return frame_of(self.history).rename(columns={"mean": "accuracy"}).set_index("epoch")


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
    a form that is not one token, or a folder that another run is working in or that holds a fine-tuning of other data
    or options; ModelError for a causal model; OutputPathError for a folder that cannot be written or holds other files.

    >>> import tempfile
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tuned = finetune("agreement-mini", agreement_examples()[:8], folder, half=None, epochs=1)
    ...     tuned.history[1].epoch, accuracy(tuned.load(), agreement_examples()[8:40], half=None).n
    (1, 32)
    """
    recipe = Recipe(epochs, batch_size, learning_rate, head_learning_rate, warm_up, seed)
    where = folder_of(folder)
    loaded = load_model(model) if isinstance(model, str | Path) else model
    trainable = trainable_copy(loaded, seed=seed)
    training = _tokenized(loaded, examples, half)
    other: Half = "test" if half == "train" else "train"
    has_other = half is not None and any(example.split == other for example in examples)
    held_out = _tokenized(loaded, examples, other) if has_other else ()
    settings = _settings(recipe, trainable, training, held_out)
    make_folder(where, STATE)
    with claimed(where):
        state = read_state(where) if resume else None
        if state is None:
            state = begin(where, settings, {"model": facts_of(loaded).name, "versions": library_versions()})
        check_same(where, "a fine-tuning", state.settings, settings, f", or {ANEW}")
        if not state.finished:
            check_writable(where / STATE)
            state = _train(where, trainable, recipe, training, held_out, state, progress)
            setattr(trainable.model.config, ON_TWO_FORMS, True)
            publish(where, trainable.model.eval(), facts_of(loaded).tokenizer)
            state = replace(state, finished=True)
            write_state(where, state)
            drop_checkpoints(where)
        check_published(where)
    return FineTuned(where, state.history, state.settings)


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
    at_least_one("batch_size", batch_size)
    check_predicts_words(model)
    batches = same_length_batches(_tokenized(model, examples, half), len, lambda _: batch_size)
    logits = []
    with quiet(model):
        for batch in batches:
            ids = torch.stack([example.encoding.ids for example in batch]).to(device_of(model))
            at_target = run_logits(model, ids, [])[range(len(batch)), [example.dest for example in batch]]
            logits.append(at_target.gather(1, ids_of_forms(batch).to(ids.device)))
    return _accuracy_by(logits)


def _train(
    folder: Path,
    trainable: Trainable,
    recipe: Recipe,
    training: Sequence[TokenizedExample],
    held_out: Sequence[TokenizedExample],
    state: State,
    progress: bool,
) -> State:
    """Train on from the folder's state to the last epoch; whatever is finished is in the folder at once."""
    done, steps = state.epochs_done, recipe.steps_per_epoch(len(training))
    optimizer = optimizer_of(trainable, recipe)

    def measured(epoch: int, loss: float | None) -> Epoch:
        trainable.model.eval()
        with torch.no_grad():
            logits = [logits_of_forms(trainable.model, batch) for batch in in_batches(held_out, recipe.batch_size)]
        return Epoch(epoch, loss, _accuracy_by(logits) if logits else None)

    def written(record: Epoch) -> State:
        further = replace(state, history=(*state.history, record))
        write_state(folder, further)
        return further

    if not state.history:
        state = written(measured(0, None))
    if done:
        read_checkpoint(folder, done, done * steps, trainable.model, optimizer)
    total = recipe.epochs * steps
    with tqdm(total=total, initial=done * steps, disable=not progress, desc="fine-tuning", unit="batch") as bar:
        for epoch in range(done + 1, recipe.epochs + 1):
            record = measured(epoch, train_epoch(trainable, optimizer, training, recipe, epoch, bar))
            write_checkpoint(folder, epoch, trainable.model, optimizer)
            state = written(record)
            drop_checkpoints(folder, but=epoch)
    return state


def _tokenized(model: nn.Module, examples: Sequence[Example], half: Half | None) -> tuple[TokenizedExample, ...]:
    """The examples of a half on the model's tokens, each with two forms."""
    if half is not None:
        one_of("half", half, HALVES)
    chosen = [example for example in examples if half is None or example.split == half]
    if examples and not chosen:
        advice = "expected split_in_halves(examples, seed=...) before, or half=None for all"
        raise InputError(f"none of {len(examples)} examples is in the {half} half: {advice}")
    tokenized = tokenize_examples(model, chosen).examples
    check_wrong_forms(tokenized, "the choice at the mask")
    longest = context_length(model)
    too_long = [example.example.id for example in tokenized if longest is not None and len(example) > longest]
    if too_long:
        more = f"{len(too_long)} examples, first {too_long[0]}, are"
        raise InputError(f"{more} longer than the model's context of {longest} tokens: leave them out")
    return tokenized


def _settings(
    recipe: Recipe, trainable: Trainable, training: Sequence[TokenizedExample], held_out: Sequence[TokenizedExample]
) -> dict[str, Any]:
    """Everything that decides the weights in the end, as plain data."""
    counts = {"n_train": len(training), "n_held_out": len(held_out)}
    hashes = {"train_sha256": _hash_of(training), "held_out_sha256": _hash_of(held_out)}
    start = hash_of_tensors(trainable.model.state_dict())
    return {**asdict(recipe), "fresh_head": bool(trainable.fresh), **counts, **hashes, "start_sha256": start}


def _hash_of(examples: Sequence[TokenizedExample]) -> str:
    rows = [(one.encoding.ids.tolist(), one.dest, one.encoding.good_id, one.encoding.bad_id) for one in examples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
