"""Targets and cues against a list that was written by hand, from reading the sentences.

`hand_checked.json` names BLiMP's sentences by their number only; "own" holds sentences of ours in the same templates.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from tl_vzero.data.blimp import FIVE, MinimalPair, _example, cue_by_template
from tl_vzero.data.examples import ExampleSet
from tl_vzero.errors import InputError

LIST = json.loads((Path(__file__).parent / "hand_checked.json").read_text(encoding="utf-8"))


def found(example) -> tuple:
    return example.target, example.cue, example.attractor


def expected(entry: dict) -> tuple:
    return entry["target"], (entry["cue"],), tuple(entry["attractor"])


def test_the_list_is_long_enough() -> None:
    counts = Counter(entry["paradigm"] for entry in LIST["blimp"])
    assert all(counts[paradigm] >= 20 for paradigm in FIVE)
    assert len({(entry["paradigm"], entry["pair"]) for entry in LIST["blimp"]}) == len(LIST["blimp"])


def test_blimp_as_checked_by_hand(blimp: ExampleSet) -> None:
    by_id = {example.id: example for example in blimp}
    wrong = {}
    for entry in LIST["blimp"]:
        example = by_id[f"{entry['paradigm']}-{entry['pair']}"]
        if found(example) != expected(entry):
            wrong[example.id] = (found(example), expected(entry))
    assert not wrong


@pytest.mark.parametrize("entry", LIST["own"], ids=lambda entry: entry["good"])
def test_sentences_of_ours(entry: dict) -> None:
    pair = MinimalPair(entry["paradigm"], "0", entry["good"], entry["bad"])
    assert found(_example(pair, "cannot")) == expected(entry)


@pytest.mark.parametrize(
    ("paradigm", "sentence", "target", "reason"),
    [
        ("ana", "Susan saw them .", 2, "no reflexive"),
        ("ana", "The themselves .", 1, "no noun phrase"),
        ("dna", "Susan saw the dog .", 2, "no demonstrative"),
        ("dnaa", "Susan saw this .", 2, "no noun after"),
        ("darn", "A lot of dogs bark .", 4, "no about or of"),
        ("darn", "The dogs bark .", 2, "no about or of"),
        ("rpsv", "The bark .", 1, "no noun before"),
        ("rpsv", "A lot of bark .", 3, "no noun before"),
    ],
)
def test_sentences_of_another_template(paradigm: str, sentence: str, target: int, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        cue_by_template(paradigm, sentence.split(), target)
