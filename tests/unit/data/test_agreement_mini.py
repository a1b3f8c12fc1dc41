"""The embedded model as its users get it, read with transformers only, and its sentences as examples."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from demos.agreement_mini.grammar import PARADIGMS
from demos.agreement_mini.sentences import generate, vocabulary
from tl_vzero.data.agreement_mini import AgreementSentence, agreement_examples, load_held_out, words_of
from tl_vzero.data.examples import split_in_halves

FOLDER = Path(str(files("tl_vzero") / "assets" / "agreement-mini"))
FILES = {
    "README.md",
    "config.json",
    "held_out.jsonl",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
REQUIRED_ACCURACY = 0.98
EXAMPLE = "the pictures of some hat [MASK] scaring marcus."

Results = dict[str, list[tuple[bool, bool]]]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForMaskedLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def batches(sentences: list[AgreementSentence], size: int = 200) -> Iterator[list[AgreementSentence]]:
    for start in range(0, len(sentences), size):
        yield sentences[start : start + size]


@torch.no_grad()
def measure(model, tokenizer, sentences: list[AgreementSentence]) -> Results:
    """Per paradigm and sentence: whether the good word wins, and whether the sentence is conflicting."""
    results = defaultdict(list)
    for batch in batches(sentences):
        inputs = tokenizer([sentence.text for sentence in batch], padding=True, return_tensors="pt")
        logits = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id]
        for row, sentence in zip(logits, batch, strict=True):
            good, bad = tokenizer.convert_tokens_to_ids([sentence.good, sentence.bad])
            results[sentence.paradigm].append((bool(row[good] > row[bad]), sentence.conflicting))
    return results


@pytest.fixture(scope="module")
def packaged(model, tokenizer) -> Results:
    return measure(model, tokenizer, load_held_out())


@pytest.fixture(scope="module")
def larger(model, tokenizer) -> Results:
    samples = (generate(2000, seed=1, split="held_out", paradigm=paradigm) for paradigm in PARADIGMS)
    return measure(model, tokenizer, [sentence for sample in samples for sentence in sample])


def share(wins: list[bool]) -> float:
    return sum(wins) / len(wins)


SAMPLES = ["packaged", pytest.param("larger", marks=pytest.mark.slow)]


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_accuracy_is_as_required(sample: str, paradigm: str, request: pytest.FixtureRequest) -> None:
    results = request.getfixturevalue(sample)[paradigm]
    assert share([win for win, _ in results]) >= REQUIRED_ACCURACY
    conflicting = [win for win, conflicting in results if conflicting]
    if paradigm in ("subject_verb_pp", "subject_verb_relative", "reflexive"):
        assert len(conflicting) >= len(results) / 2
        assert share(conflicting) >= REQUIRED_ACCURACY


def card_tables() -> dict[str, dict[str, tuple[int, str, int, str]]]:
    """The two accuracy tables of the model card, by paradigm."""
    row = re.compile(r"\| (\w+) \| (\d+) \| ([\d.]+) \| (\d+) \| ([\d.]+|-) \|")
    table_rows = row.findall((FOLDER / "README.md").read_text(encoding="utf-8"))
    rows = [(name, (int(count), all_, int(hard), hard_share)) for name, count, all_, hard, hard_share in table_rows]
    return {"packaged": dict(rows[: len(PARADIGMS)]), "larger": dict(rows[len(PARADIGMS) :])}


@pytest.mark.parametrize("sample", SAMPLES)
def test_card_states_the_measured_accuracies(sample: str, request: pytest.FixtureRequest) -> None:
    measured = {}
    for paradigm, results in request.getfixturevalue(sample).items():
        wins = [win for win, _ in results]
        hard = [win for win, conflicting in results if conflicting]
        measured[paradigm] = (
            len(wins),
            f"{share(wins):.4f}",
            len(hard),
            f"{share(hard):.4f}" if hard else "-",
        )
    assert card_tables()[sample] == measured


def test_example_prefers_agreeing_verbs(model, tokenizer) -> None:
    inputs = tokenizer(EXAMPLE, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id][0]
    best = tokenizer.convert_ids_to_tokens(logits.topk(2).indices)
    assert set(best) == {"are", "were"}


def test_every_word_is_one_token_with_its_offsets(tokenizer) -> None:
    for sentence in load_held_out():
        encoded = tokenizer(sentence.text, return_offsets_mapping=True)
        pieces = [sentence.text[start:end] for start, end in encoded["offset_mapping"][1:-1]]
        assert pieces == words_of(sentence)
        expected = ["[CLS]", *words_of(sentence), "[SEP]"]
        assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == expected


def test_tokenizer_lowers_case_and_marks_unknown_words(tokenizer) -> None:
    assert tokenizer.tokenize("The HATS xylophone.") == ["the", "hats", "[UNK]", "."]
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == vocabulary()


def test_weights_are_stored_in_float16_and_read_in_float32() -> None:
    stored = load_file(FOLDER / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert AutoModelForMaskedLM.from_pretrained(FOLDER).dtype == torch.float32


def test_folder_holds_these_files_only() -> None:
    assert {path.name for path in FOLDER.iterdir()} == FILES
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2.5e6


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_name_no_place_on_a_machine(name: str) -> None:
    content = (FOLDER / name).read_bytes()
    for trace in (b"/home", b"/tmp", b"/root", b"/work", b"/opt", b"/Users", b"C:\\", b"_name_or_path"):
        assert trace not in content


def test_held_out_file_is_regenerated_from_its_seed() -> None:
    sentences = generate(500, seed=0, split="held_out")
    lines = "".join(json.dumps(asdict(sentence)) + "\n" for sentence in sentences)
    assert (FOLDER / "held_out.jsonl").read_text(encoding="utf-8") == lines
    assert len({(sentence.text, sentence.good) for sentence in sentences}) == 500


def test_every_sentence_is_an_example() -> None:
    for example, sentence in zip(agreement_examples(), load_held_out(), strict=True):
        assert example.with_target("[MASK]") == sentence.text
        assert (example.good, example.bad, example.cue) == (sentence.good, sentence.bad, sentence.cues)
        assert example.paradigm == sentence.paradigm
        assert set(example.attractor) <= set(sentence.attractors)
        assert bool(example.attractor) == sentence.conflicting


def test_every_example_has_a_number() -> None:
    """Both numbers occur, neither seldom, so that a probe has something to tell apart."""
    numbers = [example.number for example in agreement_examples()]
    assert None not in numbers
    assert 200 <= numbers.count("plural") <= 300


def test_halves_of_the_default() -> None:
    halves = split_in_halves(agreement_examples(), seed=0)
    assert abs(len(halves.half("train")) - len(halves.half("test"))) <= len(halves.counts())
