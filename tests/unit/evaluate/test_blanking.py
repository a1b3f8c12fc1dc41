"""p(right form) of blanked sentences: each against one plain Hugging Face forward of that sentence alone."""

from typing import Any, get_args

import pytest
import torch
from support.evaluations import EXAMPLES, id_of, p_good
from support.models import MOST_ROUTES, build, is_causal
from support.state import left_as_found, type_checks_off

from tl_vzero.errors import InputError
from tl_vzero.evaluate import faithfulness
from tl_vzero.evaluate.faithfulness import Conventions, Replacement, probabilities, replacing_token
from tl_vzero.evaluate.sentences import TokenizedExample, tokenize_examples

BLANKS = [frozenset(), frozenset({0}), frozenset({1, 2}), frozenset({1, 2, 4})]
TOKENS = {"mask": "[MASK]", "unk": "[UNK]", "pad": "[PAD]"}


def plain(hf_model: Any, sentence: TokenizedExample, blank: frozenset[int], conventions: Conventions) -> float:
    ids, read = sentence.encoding.ids.tolist(), sentence.dest
    if conventions.replacement == "removed":
        read -= sum(position < read for position in blank)
        ids = [token_id for position, token_id in enumerate(ids) if position not in blank]
    else:
        ids = [id_of(TOKENS[conventions.replacement]) if i in blank else token_id for i, token_id in enumerate(ids)]
    if sentence.target_position is None:
        read = len(ids) - 1
    return p_good(
        hf_model,
        ids,
        read,
        sentence.encoding.good_id,
        sentence.encoding.bad_id if conventions.over == "forms" else None,
    )


@pytest.mark.parametrize("replacement", get_args(Replacement))
@pytest.mark.parametrize("over", ["vocabulary", "forms"])
def test_probabilities_are_those_of_plain_runs(replacement: Any, over: Any) -> None:
    hf_model, model = build("load_model", "bert")
    conventions = Conventions(replacement=replacement, over=over)
    examples = tokenize_examples(model, EXAMPLES[:3]).examples
    results = probabilities(model, [(sentence, BLANKS) for sentence in examples], conventions)
    for sentence, probability in zip(examples, results, strict=True):
        expected = [plain(hf_model, sentence, blank, conventions) for blank in BLANKS]
        assert probability[0].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)
def test_every_kind_of_model(route: str, architecture: str) -> None:
    hf_model, model = build(route, architecture)
    causal = is_causal(architecture)
    examples = tokenize_examples(model, EXAMPLES[:2], protocol="causal" if causal else "masked").examples
    if route == "HookedEncoder":
        pytest.skip("its conversion leaves out the head's bias: no plain model has its logits")
    with left_as_found(model):
        results = probabilities(
            model, [(sentence, BLANKS[:3]) for sentence in examples], Conventions(replacement="unk")
        )
    for sentence, probability in zip(examples, results, strict=True):
        expected = [plain(hf_model, sentence, blank, Conventions(replacement="unk")) for blank in BLANKS[:3]]
        assert probability[0].tolist() == pytest.approx(expected, rel=1e-4)


def test_equal_copies_are_run_once_and_batches_may_be_small(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = build("load_model", "bert")
    examples = tokenize_examples(model, EXAMPLES[:3]).examples
    blanked = [(sentence, [*BLANKS, *BLANKS]) for sentence in (*examples, *examples)]
    run: list[int] = []
    together = probabilities(model, blanked, Conventions(), run.append)
    assert sum(run) == len(BLANKS) * 3
    monkeypatch.setattr(faithfulness, "TOKENS_PER_BATCH", 13)
    for one, other in zip(together, probabilities(model, blanked, Conventions()), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, equal_nan=True)


def test_what_is_blanked() -> None:
    _, model = build("load_model", "bert")
    (sentence, *_) = tokenize_examples(model, EXAMPLES).examples
    assert Conventions().positions(sentence) == (1, 2, 3, 4, 5, 6, 8, 9, 10)
    assert Conventions(special_tokens=True).positions(sentence) == (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11)
    _, causal = build("load_model", "gpt2")
    (sentence, *_) = tokenize_examples(causal, EXAMPLES, protocol="causal").examples
    assert Conventions().positions(sentence) == (1, 2, 3, 4, 5, 6)


def test_a_removed_last_token_of_a_causal_input() -> None:
    hf_model, model = build("load_model", "gpt2")
    (sentence,) = tokenize_examples(model, EXAMPLES[:1], protocol="causal").examples
    blanks = [frozenset({6}), frozenset({5, 6})]
    (results,) = probabilities(model, [(sentence, blanks)], Conventions(replacement="removed"))
    good = sentence.encoding.good_id
    expected = [p_good(hf_model, sentence.encoding.ids[:end].tolist(), end - 1, good) for end in (6, 5)]
    assert results[0].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["replacement", "change", "over"])
def test_unknown_conventions(name: str) -> None:
    with type_checks_off(), pytest.raises(InputError, match=f"unknown {name} 'none'"):
        Conventions(**{name: "none"})


def test_a_token_that_the_tokenizer_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = build("load_model", "bert")
    from tl_vzero.models.facts import facts_of

    tokenizer = facts_of(model).tokenizer
    tokenizer.unk_token = None
    with pytest.raises(InputError, match="no such token; expected one of mask, pad, removed"):
        replacing_token(model, "unk")
