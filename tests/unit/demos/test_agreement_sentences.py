"""The sentence generator: determinism, the split, and the form of every sentence."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from demos.agreement_mini.grammar import PARADIGMS
from demos.agreement_mini.lexicon import NAMES, NOUNS, VERBS
from demos.agreement_mini.sentences import generate, vocabulary
from tl_vzero.data.agreement_mini import AgreementSentence, load_held_out, noun_number, words_of

REPOSITORY = Path(__file__).parents[3]

WITH_ATTRACTOR = ("subject_verb_pp", "subject_verb_relative")
# Written out again here, so that the split is recomputed without the generator's own bookkeeping.
SINGULAR_OF = {form: noun.singular for noun in (*NOUNS, *NAMES) for form in (noun.singular, noun.plural) if form}
PLURALS = {noun.plural for noun in NOUNS}
AUXILIARIES = {"is": "be", "are": "be", "was": "be", "were": "be", "has": "have", "have": "have"}
AUXILIARIES |= {"does": "do", "do": "do"}
DETERMINERS = {"this": "this", "these": "this", "that": "that", "those": "that"}
REFLEXIVES = dict.fromkeys(("himself", "herself", "themselves"), "self")
PRESENT_OF = {form: verb.base for verb in VERBS for form in (verb.base, verb.third)}
TARGET_LEXEME = AUXILIARIES | DETERMINERS | REFLEXIVES | PRESENT_OF
SINGULAR_TARGETS = {"is", "was", "has", "does", "this", "that", "himself", "herself"}
SINGULAR_TARGETS |= {verb.third for verb in VERBS}


def in_another_process(arguments: str) -> list[AgreementSentence]:
    """What generate gives there; also faster, without the run-time type checks of the tests."""
    program = (
        "import json, sys; from dataclasses import asdict; from demos.agreement_mini.sentences import generate;"
        f"json.dump([asdict(sentence) for sentence in generate({arguments})], sys.stdout)"
    )
    command = [sys.executable, "-c", program]
    outcome = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, check=True, text=True, env=os.environ | {"PYTHONHASHSEED": "5"}
    )
    records = json.loads(outcome.stdout)
    return [
        AgreementSentence(**record | {"cues": tuple(record["cues"]), "attractors": tuple(record["attractors"])})
        for record in records
    ]


@pytest.fixture(scope="module")
def train() -> list[AgreementSentence]:
    return in_another_process("30000, seed=0, split='train'")


@pytest.fixture(scope="module")
def held_out() -> list[AgreementSentence]:
    return in_another_process("3000, seed=0, split='held_out'")


def combinations(sentence: AgreementSentence) -> set[tuple[str, str]]:
    words = words_of(sentence)
    (cue,) = (SINGULAR_OF[words[index]] for index in sentence.cues)
    return {(cue, TARGET_LEXEME[sentence.good])} | {(cue, SINGULAR_OF[words[index]]) for index in sentence.attractors}


def adjacent_subjects_and_verbs(sentence: AgreementSentence) -> set[tuple[str, str]]:
    return {
        (SINGULAR_OF[left], PRESENT_OF[right])
        for left, right in pairwise(words_of(sentence))
        if left in SINGULAR_OF and right in PRESENT_OF and right != "hurt"
    }


def test_same_arguments_give_same_sentences_in_another_process() -> None:
    there = in_another_process("60, seed=3, split='held_out'")
    assert generate(60, seed=3, split="held_out") == there


def test_seeds_differ() -> None:
    assert generate(20, seed=0, split="train") != generate(20, seed=1, split="train")


def test_sentences_do_not_change_between_versions() -> None:
    assert generate(1, seed=0, split="train", paradigm="subject_verb_pp")[0] == AgreementSentence(
        text="my newspaper beside the legend near our chairs [MASK] disturbing the artist.",
        target=8,
        good="was",
        bad="were",
        cues=(1,),
        attractors=(4, 7),
        conflicting=True,
        paradigm="subject_verb_pp",
    )


def test_no_held_out_combination_is_in_training(
    train: list[AgreementSentence], held_out: list[AgreementSentence]
) -> None:
    trained = set().union(*map(combinations, train))
    trained |= set().union(*map(adjacent_subjects_and_verbs, train))
    tested = set().union(*map(combinations, held_out))
    assert len(tested) > 1000
    assert not trained & tested


def test_every_noun_and_present_verb_is_trained_in_both_numbers(train: list[AgreementSentence]) -> None:
    cues = {words_of(sentence)[index] for sentence in train for index in sentence.cues}
    assert {form for noun in NOUNS for form in (noun.singular, noun.plural)} <= cues
    assert {noun.singular for noun in NAMES} <= cues
    targets = {sentence.good for sentence in train}
    assert {form for verb in VERBS if verb.marks_number for form in (verb.base, verb.third)} <= targets
    assert AUXILIARIES.keys() | DETERMINERS.keys() | REFLEXIVES.keys() <= targets


def test_every_vocabulary_word_is_trained(train: list[AgreementSentence]) -> None:
    occurring = {word for sentence in train for word in (*words_of(sentence), sentence.good)}
    assert occurring == set(vocabulary()) - {"[PAD]", "[UNK]", "[CLS]", "[SEP]"}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_sentence_is_well_formed(split: str, request: pytest.FixtureRequest) -> None:
    tokens = set(vocabulary())
    for sentence in request.getfixturevalue(split):
        words = words_of(sentence)
        assert sentence.text.endswith(".")
        assert sentence.text == sentence.text.lower().replace("mask", "MASK")
        assert words.count("[MASK]") == 1
        assert words[sentence.target] == "[MASK]"
        assert words[-1] == "."
        assert words.count(".") == 1
        assert tokens.issuperset([*words, sentence.good, sentence.bad])
        assert len(words) <= 62


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_cue_number_decides_good_and_bad(split: str, request: pytest.FixtureRequest) -> None:
    for sentence in request.getfixturevalue(split):
        (cue,) = sentence.cues
        plural = words_of(sentence)[cue] in PLURALS
        assert (sentence.good in SINGULAR_TARGETS) != plural
        assert (sentence.bad in SINGULAR_TARGETS) == plural
        assert TARGET_LEXEME[sentence.good] == TARGET_LEXEME[sentence.bad]


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_attractors_are_the_nouns_between_cue_and_target(split: str, request: pytest.FixtureRequest) -> None:
    for sentence in request.getfixturevalue(split):
        words = words_of(sentence)
        (cue,) = sentence.cues
        between = range(min(cue, sentence.target) + 1, max(cue, sentence.target))
        assert sentence.attractors == tuple(index for index in between if words[index] in SINGULAR_OF)
        numbers = {words[index] in PLURALS for index in sentence.attractors}
        assert sentence.conflicting == ((words[cue] not in PLURALS) in numbers)


@pytest.mark.parametrize("paradigm", WITH_ATTRACTOR)
def test_attractor_paradigms_are_half_conflicting(paradigm: str) -> None:
    sentences = generate(21, seed=5, split="held_out", paradigm=paradigm)  # type: ignore[arg-type]
    assert all(sentence.attractors for sentence in sentences)
    assert sum(sentence.conflicting for sentence in sentences) == 11


def test_paradigms_take_turns() -> None:
    assert tuple(sentence.paradigm for sentence in generate(12, seed=0, split="train")) == PARADIGMS * 2


def test_vocabulary_is_special_tokens_then_distinct_words() -> None:
    tokens = vocabulary()
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(tokens) == len(set(tokens))
    assert set("the pictures of some hat are scaring marcus .".split()) <= set(tokens)


def test_no_form_is_both_noun_and_verb() -> None:
    verb_forms = {form for verb in VERBS for form in (verb.base, verb.third, verb.past, verb.gerund)}
    assert not verb_forms & SINGULAR_OF.keys()


def test_the_rule_of_plurals_holds_for_the_whole_lexicon() -> None:
    for noun in (*NOUNS, *NAMES):
        assert noun_number(noun.singular) == "singular"
        assert noun.plural is None or noun_number(noun.plural) == "plural"


def test_packaged_sentences_are_the_generated_ones(held_out: list[AgreementSentence]) -> None:
    assert load_held_out() == held_out[:500]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("0, seed=0, split='train'", "n is 0: expected a number of sentences of at least 1"),
        ("1, seed=0, split='test'", "unknown split 'test': expected one of train, held_out"),
        ("1, seed=0, split='train', paradigm='npi'", "unknown paradigm 'npi': expected one of determiner_noun,"),
    ],
)
def test_wrong_arguments_are_named(arguments: str, message: str) -> None:
    """In a process of its own: the tests' run-time type checks would refuse the value first."""
    program = f"from demos.agreement_mini.sentences import generate; generate({arguments})"
    outcome = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, check=False, text=True
    )
    assert f"InputError: {message}" in outcome.stderr


def test_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        generate(0, seed=0, split="train")


def test_importing_the_generator_loads_no_torch() -> None:
    program = "import sys, demos.agreement_mini.sentences; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0
