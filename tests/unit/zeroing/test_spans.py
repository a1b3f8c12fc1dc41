"""Positions, words and phrases zeroed jointly: one column per span, in one sentence and in a batch, in both engines."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import references
from support.closed import ARCHITECTURES, IDS, assert_same, maps, model_in_float64, shared_model, tolerance_of
from support.laws import assert_close, wide_model
from support.models import bridge, hf_bert
from support.state import left_as_found, type_checks_off
from torch import Tensor

import tl_vzero
from tl_vzero import Scores
from tl_vzero.errors import DependencyError, InputError, InputTypeError, ScoresError
from tl_vzero.inputs.text import encode
from tl_vzero.models.sites import sites_of
from tl_vzero.zeroing import request

SPANS = [[3], [0, 4, 5], [-1, 2], [7, 9, 8], [6, 1]]
NAMES = ["words", "noun_chunks", "subtrees"]
MASKED = "the pictures of some hat [MASK] scaring marcus."
# Of one length, with different phrases; and of another length.
SENTENCES = [MASKED, "the authors today [MASK] the old hats again.", "the authors [MASK] today."]


# --- spans of positions --------------------------------------------------------------------------------


def zeroed_by_hand(model: Any, span: list[int]) -> Tensor:
    """Block outputs of one run per layer, the span's values zeroed in that layer only: `[layer, dest, feature]`."""
    sites, outputs = sites_of(model), []

    def keep(output: Tensor, hook: Any) -> None:
        outputs.append(output.detach()[0])

    for layer in range(sites.n_layers):
        hooks = tl_vzero.value_zeroing_hooks(model, positions=span, layers=layer)
        with torch.no_grad():
            model.run_with_hooks(IDS.unsqueeze(0), fwd_hooks=[*hooks, (sites.outputs[layer], keep)])
    return torch.stack(outputs)


@pytest.mark.parametrize("engine", ["hooks", "closed_form"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_span_is_zeroed_as_a_whole(engine: str, architecture: str) -> None:
    model = shared_model(architecture)
    scores = tl_vzero.value_zeroing(model, IDS, spans=SPANS, engine=engine)
    clean = zeroed_by_hand(model, [])
    for column, span in enumerate(SPANS):
        expected = 1 - torch.cosine_similarity(clean, zeroed_by_hand(model, span), dim=-1)
        assert torch.allclose(scores.values[:, :, column], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "options", [{}, {"per_head": True}, {"heads": [1], "destinations": [4, 9]}], ids=lambda options: "-".join(options)
)
def test_the_engines_agree(architecture: str, options: dict[str, Any]) -> None:
    model = shared_model(architecture)
    hooked = maps(model, "hooks", spans=SPANS, **options)
    assert_same(maps(model, "closed_form", spans=SPANS, **options), hooked, tolerance_of(architecture))


@pytest.mark.parametrize("memory_mb", [0.001, 0.1])
def test_the_memory_budget_changes_nothing(memory_mb: float) -> None:
    model = shared_model("bert")
    expected = maps(model, "closed_form", spans=SPANS)
    assert torch.allclose(maps(model, "closed_form", spans=SPANS, memory_mb=memory_mb), expected, rtol=1e-10, atol=0)


def test_spans_of_one_position_are_the_plain_map() -> None:
    model = shared_model("bert")
    spans = [[j] for j in range(len(IDS))]
    assert torch.equal(maps(model, "closed_form", spans=spans), maps(model, "closed_form"))


def test_a_span_is_not_the_sum_of_its_columns() -> None:
    model = shared_model("bert")
    joint, apart = maps(model, "closed_form", spans=[[2, 3]]), maps(model, "closed_form", sources=[2, 3])
    assert not torch.allclose(joint.squeeze(-1), apart.sum(dim=-1), rtol=1e-2)


def test_several_sentences_and_one_number_for_a_span() -> None:
    model = shared_model("gpt2")
    ids = torch.nn.utils.rnn.pad_sequence([IDS, IDS[:5]], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(11), torch.ones(5)], batch_first=True)
    together = tl_vzero.value_zeroing(model, ids, attention_mask=mask, spans=[0, [-1, 1]])
    assert isinstance(together, list)
    for scores, length in zip(together, (11, 5), strict=True):
        alone = maps(model, "hooks", IDS[:length], spans=[[0], [length - 1, 1]])
        assert_same(scores.values.double(), alone, 1e-11)
        assert scores.src_spans == ((0,), (length - 1, 1))


def test_labels_table_and_file(tmp_path: Path) -> None:
    model = tl_vzero.load_model("agreement-mini")
    scores = tl_vzero.value_zeroing(model, "the authors [MASK] today.", spans=[[1, 2], [0]])
    assert isinstance(scores, Scores)
    assert scores.partial and scores.src_positions == (1, 0)
    assert scores.src_tokens == ("the authors", "[CLS]")
    frame = scores.to_frame()
    assert set(frame["src_token"]) == set(scores.src_tokens) and len(frame) == scores.values.numel()
    scores.save(tmp_path / "spans.safetensors")
    assert Scores.load(tmp_path / "spans.safetensors").src_spans == ((1, 2), (0,))
    with pytest.raises(ScoresError, match="spans"):
        scores.words()
    with pytest.raises(ScoresError):
        scores.rollout()


@pytest.mark.parametrize(
    ("spans", "error", "match"),
    [
        ([], InputError, "at least one span"),
        ([[]], InputError, r"spans\[0\] is empty"),
        ([[1], [1, 1]], InputError, r"spans\[1\] holds \[1\] more than once"),
        ([[1, 99]], InputError, r"spans\[0\] holds 99"),
        ([None], InputError, "holds None"),
        ([[1], [3, 1]], InputError, r"spans\[0\] and spans\[1\] overlap, both hold position 1"),
        ([[2, -1], [10]], InputError, r"overlap, both hold position 10"),
        ("all", InputError, r"unknown spans 'all': expected one of words, noun_chunks"),
        (3, InputTypeError, "spans is int"),
        ([["a"]], InputError, r"spans\[0\] 'a' is none of the tokens"),
        ([[1.5]], InputTypeError, r"spans\[0\] holds 1.5"),
    ],
)
def test_bad_spans(spans: Any, error: type[Exception], match: str) -> None:
    with type_checks_off(), pytest.raises(error, match=match):
        tl_vzero.value_zeroing(shared_model("bert"), IDS, spans=spans)


def test_spans_and_sources_together() -> None:
    with pytest.raises(InputError, match="sources and spans"):
        tl_vzero.value_zeroing(model_in_float64("bert"), IDS, spans=[[1]], sources=[1])


# --- named spans: words and phrases --------------------------------------------------------------------


def scored(model: Any, text: str, **options: Any) -> Scores:
    scores = tl_vzero.value_zeroing(model, text, **options)
    assert isinstance(scores, Scores)
    return scores


@pytest.fixture(scope="module")
def mini() -> Any:
    return tl_vzero.load_model("agreement-mini")


def test_noun_chunks(mini: Any) -> None:
    scores = scored(mini, MASKED, spans="noun_chunks")
    assert scores.src_tokens == (
        *("[CLS]", "the pictures", "of", "some hat", "[MASK]", "scaring", "marcus", ".", "[SEP]"),
    )
    assert scores.src_spans == ((0,), (1, 2), (3,), (4, 5), (6,), (7,), (8,), (9,), (10,))
    assert scores.values.shape == (4, 11, 9)


def test_subtrees_of_the_roots_dependents(mini: Any) -> None:
    scores = scored(mini, MASKED, spans="subtrees")
    assert scores.src_spans == ((0,), (1,), (2,), (3, 4, 5), (6,), (7, 8), (9,), (10,))
    assert scores.src_tokens[3] == "of some hat"


def test_words_join_their_pieces() -> None:
    scores = scored(wide_model("load_model", "bert")[1], "the dogs near marcus barking", spans="words")
    assert scores.src_spans == ((0,), (1,), (2, 3), (4,), (5,), (6, 7), (8,))
    assert scores.src_tokens == ("[CLS]", "the", "dogs", "near", "marcus", "barking", "[SEP]")


def test_words_of_ids_are_read_from_their_pieces() -> None:
    model = wide_model("load_model", "bert")[1]
    ids = encode(model, "the dogs near marcus barking").sentences[0].ids
    by_ids = tl_vzero.value_zeroing(model, ids, spans="words")
    assert by_ids.src_spans == ((0,), (1,), (2, 3), (4,), (5,), (6, 7), (8,))


@pytest.mark.filterwarnings("ignore::tl_vzero.errors.InputWarning")  # words that the model does not know are meant
def test_pieces_of_a_phrase_follow_its_words() -> None:
    """A word outside the vocabulary is one piece, a plural is two; both belong to the phrase they stand in."""
    scores = scored(wide_model("load_model", "bert")[1], "the gracious dogs barking near a hat", spans="noun_chunks")
    assert scores.src_spans is not None and (1, 2, 3, 4) in scores.src_spans
    assert "the gracious dogs" in scores.src_tokens
    assert sorted(p for span in scores.src_spans for p in span) == list(range(scores.n_positions))


def test_a_special_token_in_the_text_stays_single() -> None:
    scores = scored(wide_model("load_model", "bert")[1], "the dog [SEP] a hat", spans="noun_chunks")
    special = [column for column, token in enumerate(scores.src_tokens) if token in ("[CLS]", "[SEP]")]
    assert len(special) == 3
    assert scores.src_spans is not None and all(len(scores.src_spans[column]) == 1 for column in special)


@pytest.mark.parametrize("engine", ["hooks", "closed_form"])
@pytest.mark.parametrize("name", NAMES)
def test_each_sentence_of_a_batch_has_its_own_spans(mini: Any, name: str, engine: str) -> None:
    together = tl_vzero.value_zeroing(mini, [*SENTENCES, MASKED], spans=name, engine=engine)
    assert isinstance(together, list)
    assert together[0].src_spans != together[1].src_spans or name == "words"
    for text, scores in zip([*SENTENCES, MASKED], together, strict=True):
        assert scores.metadata["engine"] == engine
        alone = scored(mini, text, spans=name, engine="hooks")
        assert scores.src_spans == alone.src_spans and scores.src_tokens == alone.src_tokens
        assert torch.allclose(scores.values, alone.values, rtol=1e-4, atol=1e-9)
        by_position = scored(mini, text, spans=[list(span) for span in alone.src_spans or ()], engine="hooks")
        assert torch.allclose(alone.values, by_position.values, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("engine", ["hooks", "closed_form"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "neox"])
def test_a_column_is_the_span_zeroed_in_the_plain_model(architecture: str, engine: str) -> None:
    """Against plain torch hooks on the Hugging Face model, in float64."""
    hf_model, model = wide_model("load_model", architecture)
    text = "the dogs near marcus barking"
    sentence = encode(model, text).sentences[0]
    scores = scored(model, text, spans="words", engine=engine)
    expected = torch.zeros_like(scores.values)
    for layer, call in enumerate(references.clean_calls(hf_model, sentence.ids.unsqueeze(0))):
        clean = references.first_tensor(call.block(*call.args, **call.kwargs))[0]
        for column, span in enumerate(scores.src_spans or ()):
            with references.values_zeroed(call.block, hf_model.config, list(span)):
                changed = references.first_tensor(call.block(*call.args, **call.kwargs))[0]
            expected[layer, :, column] = references.cosine_distance(clean, changed)
    assert_close(scores.values, expected, 1e-9)


def test_a_users_cache_and_named_spans(mini: Any) -> None:
    ids = torch.stack([encode(mini, text).sentences[0].ids for text in SENTENCES[:2]])
    _, cache = mini.run_with_cache(ids)
    with_cache = tl_vzero.value_zeroing(mini, SENTENCES[:2], spans="noun_chunks", cache=cache, engine="hooks")
    without = tl_vzero.value_zeroing(mini, SENTENCES[:2], spans="noun_chunks")
    for one, other in zip(with_cache, without, strict=True):
        assert torch.allclose(one.values, other.values, rtol=1e-4, atol=1e-9)


def test_progress_counts_spans(mini: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tl_vzero.value_zeroing(mini, SENTENCES[:2], spans="noun_chunks", progress=True, layers=[0])
    assert "value zeroing" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["noun_chunks", "subtrees"])
def test_phrases_of_ids(name: str) -> None:
    with pytest.raises(InputError, match=f'spans="{name}" given with ids: expected text'):
        tl_vzero.value_zeroing(wide_model("load_model", "bert")[1], torch.tensor([2, 5, 3]), spans=name)


def test_words_without_a_tokenizer() -> None:
    model = bridge(hf_bert())
    model.tokenizer = None
    with pytest.raises(InputError, match="without a tokenizer"):
        tl_vzero.value_zeroing(model, torch.tensor([2, 5, 3]), spans="words")


def test_an_unknown_name() -> None:
    model = wide_model("load_model", "bert")[1]
    with left_as_found(model), pytest.raises(InputError, match=r"'noun_chunk'.*words.*did you mean 'noun_chunks'"):
        tl_vzero.value_zeroing(model, "the dog", spans="noun_chunk")


def test_no_parser(mini: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Any:
        raise DependencyError("no English dependency parser")

    monkeypatch.setitem(request.PHRASES, "noun_chunks", missing)
    with type_checks_off(), pytest.raises(DependencyError, match="no English dependency parser"):
        tl_vzero.value_zeroing(mini, MASKED, spans="noun_chunks")


def test_a_tokenizer_without_offsets(mini: Any) -> None:
    sentence = encode(mini, MASKED).sentences[0]
    with pytest.raises(InputError, match="fast tokenizer"):
        request.named_spans("subtrees", replace(sentence, offsets=None))
