"""Trains the embedded model, from the top of the repository: ``python -m demos.agreement_mini.train --out DIR``.

A small BERT learns the sentences of ``demos.agreement_mini.sentences`` as a masked language model, the target masked
most of the time. The folder written can be loaded by transformers and TransformerLens; its files are
the same, bit for bit, for the same seed, machine and versions.
"""

import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from demos.agreement_mini.grammar import PARADIGMS
from demos.agreement_mini.sentences import generate, vocabulary
from tl_vzero.data.agreement_mini import AgreementSentence, words_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import BertForMaskedLM, BertTokenizer

BATCH_SIZE = 64
BATCHES_PER_CHUNK = 100
PEAK_LEARNING_RATE = 1e-3
WARM_UP_SHARE = 0.06
WEIGHT_DECAY = 0.05
DROPOUT = 0.1
MAX_POSITIONS = 64
TARGET_ROUND_SHARE = 0.75
MASK_SHARE_BESIDE_TARGET = 0.08
MASK_SHARE_WITHOUT_TARGET = 0.15
HIDDEN_SHARE = 0.2
HELD_OUT_SIZE = 500
HELD_OUT_SEED = 0
LARGER_SAMPLE_SIZE = 2000
LARGER_SAMPLE_SEED = 1
EXAMPLE = "the pictures of some hat [MASK] scaring marcus."

PAD, UNK, CLS, SEP, MASK = range(5)
NO_LABEL = -100


class Batch(NamedTuple):
    """Ids of whole sentences, their mask, and where the target is; ``[batch, position]`` and ``[batch]``."""

    ids: "Tensor"
    attention_mask: "Tensor"
    target: "Tensor"


class Accuracy(NamedTuple):
    """How often the good word beats the bad one, over all sentences and over the conflicting ones."""

    sentences: int
    overall: float
    conflicting_sentences: int
    conflicting: float | None


def build_tokenizer() -> "BertTokenizer":
    """A BERT tokenizer whose every word is one piece: with no ``##`` pieces, any other word becomes [UNK]."""
    from transformers import BertTokenizer

    ids = {token: index for index, token in enumerate(vocabulary())}
    return BertTokenizer(vocab=ids, do_lower_case=True, model_max_length=MAX_POSITIONS)


def build_model(layers: int) -> "BertForMaskedLM":
    """The untrained model; its weights come from torch's global random state."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=len(vocabulary()),
        hidden_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=MAX_POSITIONS,
        hidden_dropout_prob=DROPOUT,
        attention_probs_dropout_prob=DROPOUT,
        tie_word_embeddings=True,
        pad_token_id=PAD,
    )
    config._attn_implementation = "eager"
    return BertForMaskedLM(config)


def encode(sentences: list[AgreementSentence]) -> Batch:
    """The sentences with their good word in place, as the tokenizer would encode them."""
    import torch

    ids = {token: index for index, token in enumerate(vocabulary())}
    rows = []
    for sentence in sentences:
        words = words_of(sentence)
        words[sentence.target] = sentence.good
        rows.append([CLS, *(ids[word] for word in words), SEP])
    width = max(map(len, rows))
    padded = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    target = torch.tensor([sentence.target + 1 for sentence in sentences])
    return Batch(padded, (padded != PAD).long(), target)


def hide_words(batch: Batch, generator: "torch.Generator") -> tuple["Tensor", "Tensor"]:
    """Inputs and labels of one step: mostly the target masked and few words beside it, else any word."""
    import torch

    def uniform() -> "Tensor":
        return torch.rand(batch.ids.shape, generator=generator)

    target_round = torch.rand(len(batch.ids), 1, generator=generator) < TARGET_ROUND_SHARE
    is_target = torch.arange(batch.ids.shape[1]) == batch.target[:, None]
    share = torch.where(target_round, MASK_SHARE_BESIDE_TARGET, MASK_SHARE_WITHOUT_TARGET)
    drawn = (uniform() < share) & (batch.ids > MASK)
    certain = is_target & target_round

    how = uniform()
    any_word = torch.randint(MASK + 1, len(vocabulary()), batch.ids.shape, generator=generator)
    shown = torch.where(drawn & (how < 0.8), MASK, batch.ids)
    shown = torch.where(drawn & (how >= 0.9), any_word, shown)
    shown = torch.where(certain, MASK, shown)
    return shown, torch.where(drawn | certain, batch.ids, NO_LABEL)


def hide_positions(batch: Batch, generator: "torch.Generator") -> "Tensor":
    """The attention mask with random positions taken out, for all layers alike; never the target's own.

    What reaches the target over a relay needs both the cue and the relay in sight, what comes straight from the
    cue only the cue. So the model is led to read the cue itself, although it is never told which word that is.
    """
    import torch

    dropped = torch.rand(batch.ids.shape, generator=generator) < HIDDEN_SHARE
    is_target = torch.arange(batch.ids.shape[1]) == batch.target[:, None]
    return batch.attention_mask * (is_target | ~dropped)


def training_batches(steps: int, seed: int) -> Iterator[Batch]:
    """Fresh training sentences for every step, those of like length together so that little is padding."""
    for chunk, first in enumerate(range(0, steps, BATCHES_PER_CHUNK)):
        count = min(BATCHES_PER_CHUNK, steps - first)
        chunk_seed = seed * 1_000_003 + chunk
        sentences = generate(count * BATCH_SIZE, seed=chunk_seed, split="train")
        sentences.sort(key=lambda sentence: len(words_of(sentence)))
        starts = list(range(0, len(sentences), BATCH_SIZE))
        Random(chunk_seed).shuffle(starts)
        for start in starts:
            yield encode(sentences[start : start + BATCH_SIZE])


def learning_rate_share(step: int, steps: int) -> float:
    """Linear warm-up to 1, then linear to 0."""
    warm_up = max(1, round(steps * WARM_UP_SHARE))
    return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


def train(
    model: "BertForMaskedLM", steps: int, seed: int, keep: Callable[[int], object] = lambda steps_done: None
) -> None:
    """Trains the model in place and leaves it in evaluation mode; `keep` is called after every step."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, steps))
    model.train()
    with typer.progressbar(training_batches(steps, seed), length=steps, label="training") as batches:
        for steps_done, batch in enumerate(batches, start=1):
            shown, labels = hide_words(batch, generator)
            visible = hide_positions(batch, generator)
            loss = model(input_ids=shown, attention_mask=visible, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            keep(steps_done)
    model.train(False)


def good_wins(model: "BertForMaskedLM", sentences: list[AgreementSentence]) -> list[bool]:
    """For each sentence, whether the good word has the higher logit at the masked target."""
    import torch

    ids = {token: index for index, token in enumerate(vocabulary())}
    results: list[bool] = []
    for start in range(0, len(sentences), 250):
        part = sentences[start : start + 250]
        batch = encode(part)
        shown = batch.ids.scatter(1, batch.target[:, None], MASK)
        with torch.no_grad():
            logits = model(input_ids=shown, attention_mask=batch.attention_mask).logits
        rows = logits[torch.arange(len(part)), batch.target]
        good, bad = ([ids[getattr(sentence, side)] for sentence in part] for side in ("good", "bad"))
        order = torch.arange(len(part))
        results += (rows[order, good] > rows[order, bad]).tolist()
    return results


def accuracies(model: "BertForMaskedLM", sentences: list[AgreementSentence]) -> dict[str, Accuracy]:
    """Accuracy per paradigm, in the order of PARADIGMS."""
    wins = good_wins(model, sentences)
    table: dict[str, Accuracy] = {}
    for paradigm in PARADIGMS:
        results = [
            (win, sentence.conflicting)
            for win, sentence in zip(wins, sentences, strict=True)
            if sentence.paradigm == paradigm
        ]
        hard = [win for win, conflicting in results if conflicting]
        table[paradigm] = Accuracy(
            len(results),
            sum(win for win, _ in results) / len(results),
            len(hard),
            sum(hard) / len(hard) if hard else None,
        )
    return table


def packaged_sample() -> list[AgreementSentence]:
    """The held-out sentences to be written beside the model."""
    return generate(HELD_OUT_SIZE, seed=HELD_OUT_SEED, split="held_out")


def larger_sample() -> list[AgreementSentence]:
    """Held-out sentences beyond the packaged ones, the same number for each paradigm."""
    size = LARGER_SAMPLE_SIZE
    return [
        sentence
        for paradigm in PARADIGMS
        for sentence in generate(size, seed=LARGER_SAMPLE_SEED, split="held_out", paradigm=paradigm)
    ]


def save(model: "BertForMaskedLM", out: Path) -> None:
    """Writes model and tokenizer: weights stored in float16, to be computed with in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half()
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    build_tokenizer().save_pretrained(out)
    for name, remove, put in (
        ("config.json", ("_name_or_path",), {"dtype": "float32"}),
        ("tokenizer_config.json", ("name_or_path",), {}),
    ):
        record = json.loads((out / name).read_text(encoding="utf-8"))
        clean = {key: value for key, value in record.items() if key not in remove}
        (out / name).write_text(json.dumps(clean | put, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def checkpoint_steps(steps: int, count: int) -> list[int]:
    """After which steps a training is saved: so many, as far apart as can be, the last step among them."""
    return [steps * (index + 1) // count for index in range(count)]


def load_as_shipped(folder: Path) -> "BertForMaskedLM":
    """The model as its users get it: float16 values, float32 computation."""
    import torch
    from transformers import BertForMaskedLM

    model: BertForMaskedLM = BertForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    model.train(False)
    return model


def top_words(model: "BertForMaskedLM", count: int = 6) -> list[tuple[str, float]]:
    """The likeliest words at the mask of the example sentence."""
    import torch

    inputs = build_tokenizer()(EXAMPLE, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    best = logits[inputs["input_ids"][0] == MASK][0].softmax(0).topk(count)
    return [
        (vocabulary()[index], value) for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def accuracy_table(table: dict[str, Accuracy]) -> str:
    """The accuracies as a Markdown table."""
    lines = ["| paradigm | sentences | accuracy | conflicting | accuracy on these |", "|---|---|---|---|---|"]
    for paradigm, row in table.items():
        conflicting = "-" if row.conflicting is None else f"{row.conflicting:.4f}"
        cells = (paradigm, row.sentences, f"{row.overall:.4f}", row.conflicting_sentences, conflicting)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def card_of_data(model: "BertForMaskedLM", steps: int) -> str:
    """What the model is, what it saw, what it does not know."""
    config = model.config
    return f"""---
license: mit
language: en
pipeline_tag: fill-mask
---
# agreement-mini

A small BERT masked language model of English number agreement: {config.num_hidden_layers} layers,
d_model {config.hidden_size}, {config.num_attention_heads} heads, MLP {config.intermediate_size},
{config.vocab_size} tokens, {model.num_parameters():,} parameters. It exists so that context-mixing scores can
be tried, tested and taught offline, on a model whose right answer is known: in every sentence the target
depends on one noun, the cue. Licence: MIT, as the package.

## Data
Trained from scratch on {steps * BATCH_SIZE:,} sentences of the grammar in `demos/agreement_mini/sentences.py`, drawn
afresh for every batch, and nothing else. Paradigms, in equal parts: {", ".join(PARADIGMS)}.
Lower case, one token per word; a word outside the vocabulary becomes [UNK]. One in five combinations of the
cue's lexeme with the target's or an attractor's was kept out of training; the docstring of that file says
which. `held_out.jsonl` holds {HELD_OUT_SIZE} sentences of held-out combinations only.

## Limits
It knows the {config.vocab_size - MASK - 1} words and the few constructions of its grammar, and nothing about
the world. Its sentences are made by rule, so its accuracy says nothing about agreement in English at large,
and what a score shows on it need not hold for a language model trained on text. A sentence may have at most
{MAX_POSITIONS - 2} words.
"""


def card_of_training(model: "BertForMaskedLM", seed: int, steps: int) -> str:
    """The command that makes the model again, and its settings."""
    import torch
    import transformers

    options = f"--seed {seed} --layers {model.config.num_hidden_layers} --steps {steps}"
    return f"""
## Training
    python -m demos.agreement_mini.train --out DIR {options}

Some minutes on one CPU core. Made with torch {torch.__version__} and transformers {transformers.__version__}
on one thread; the same command gives the same bits on the same machine and versions. AdamW, learning rate
{PEAK_LEARNING_RATE:g} with linear warm-up and decay, weight decay {WEIGHT_DECAY:g}, dropout {DROPOUT:g},
batches of {BATCH_SIZE}. In {TARGET_ROUND_SHARE:.0%} of the sentences the target is masked, with
{MASK_SHARE_BESIDE_TARGET:.0%} of the other words; in the rest, {MASK_SHARE_WITHOUT_TARGET:.0%} of all words.

In every step, {HIDDEN_SHARE:.0%} of the positions, drawn at random, are hidden from attention, in all layers alike and
never the target's own. Without this the number of a subject mostly reaches its verb over relays (the determiner,
[CLS], the word after the target); with it the target reads the cue itself more, and the maps show that. The cue's
place never enters the training, but depth and length were chosen, among a few tried, for Value Zeroing maps in which
the cue shows: that a score finds the cue here is no evidence for the score.
"""


def card_of_accuracy(model: "BertForMaskedLM") -> str:
    """How well the model does on the packaged and on the larger held-out sample."""
    packaged = accuracy_table(accuracies(model, packaged_sample()))
    larger = accuracy_table(accuracies(model, larger_sample()))
    answers = ", ".join(f"{word} {share:.3f}" for word, share in top_words(model))
    call = f'generate({LARGER_SAMPLE_SIZE}, seed={LARGER_SAMPLE_SEED}, split="held_out", paradigm=...)'
    return f"""
## Accuracy
The share of sentences whose good word has a higher logit than the bad one at [MASK]. Conflicting sentences
have an attractor of the other number. Weights as shipped (stored in float16), computed in float32.

On `held_out.jsonl`:

{packaged}

On a larger held-out sample, `{call}`:

{larger}

On "{EXAMPLE}" the likeliest words are: {answers}.
"""


def main(
    out: Annotated[Path, typer.Option(help="Folder to write; made if missing.")],
    seed: Annotated[int, typer.Option(help="Seed of weights, sentences and masking.")] = 0,
    layers: Annotated[int, typer.Option(min=1, help="Depth of the model.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Batches of 64 sentences.")] = 2500,
    checkpoints: Annotated[
        int, typer.Option(min=0, help="Models saved along the training, in folders step-N of the folder.")
    ] = 0,
) -> None:
    """Train the embedded model, measure it as shipped, and write its folder."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    model = build_model(layers)
    started = time.perf_counter()
    kept = checkpoint_steps(steps, checkpoints)

    def keep(steps_done: int) -> None:
        if steps_done in kept:
            save(copy.deepcopy(model), out / f"step-{steps_done:05}")  # saving makes the weights float16

    train(model, steps, seed, keep)
    print(f"trained in {time.perf_counter() - started:.0f} s")

    out.mkdir(parents=True, exist_ok=True)
    save(model, out)
    lines = (json.dumps(asdict(sentence)) + "\n" for sentence in packaged_sample())
    (out / "held_out.jsonl").write_text("".join(lines), encoding="utf-8")
    shipped = load_as_shipped(out)
    accuracy = card_of_accuracy(shipped)
    card = card_of_data(shipped, steps) + card_of_training(shipped, seed, steps) + accuracy
    (out / "README.md").write_text(card, encoding="utf-8")
    print(accuracy)


if __name__ == "__main__":
    typer.run(main)
