"""Sentence pairs and a tokenizer's own output: the model reads its segments on every route."""

import copy
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from support.architectures import ARCHITECTURES
from support.encoder_rows import AFTER_PADDING, encoder
from support.models import hf_bert, hf_gpt2, hooked_encoder, loaded
from support.pairs import (
    PAIRS,
    encoded,
    ids_and_types,
    joined,
    of_one_segment,
    reference_logits,
    reference_maps,
    tokenizer,
)
from support.signal_rows import IMAGE, model_of
from support.state import left_as_found, type_checks_off
from torch import Tensor

import tl_vzero
from tl_vzero import METHODS
from tl_vzero.errors import DependencyError, InputError, InputTypeError, InputWarning, TLVZeroError

PAIR = PAIRS[0]
TARGET = 3  # [MASK] of PAIR
TARGET_IDS = (11, 12)
ENGINES = ("closed_form", "hooks", "auto")


@cache
def hf_double() -> Any:
    return hf_bert().double()


# RoBERTa as it is trained: with a vector for one segment, which all tokens are of.
hf_roberta = encoder("Roberta", **AFTER_PADDING, type_vocab_size=1)


@cache
def double_model() -> Any:
    return tl_vzero.load_model(copy.deepcopy(hf_double()), tokenizer())


@cache
def expected(pair: tuple[str, str]) -> Tensor:
    return reference_maps(hf_double(), *ids_and_types(pair))


def assert_same(values: Tensor, reference: Tensor, tolerance: float = 1e-7) -> None:
    assert values.shape == reference.shape
    assert ((values.double() - reference).abs() <= tolerance * (reference.abs() + 1e-6)).all()


def one(scores: Any) -> Any:
    """Of one sentence, also where it was given as a batch of one."""
    if isinstance(scores, list):
        (scores,) = scores
    return scores


# --- every way to give a pair -----------------------------------------------------------------------------


def ways(pair: tuple[str, str]) -> dict[str, Callable[[], tuple[Any, dict[str, Any]]]]:
    ids, types = ids_and_types(pair)
    lists = tokenizer()(*pair)
    return {
        "a pair": lambda: (pair, {}),
        "a list with a pair": lambda: ([pair], {}),
        "ids": lambda: (ids, {"token_type_ids": types}),
        "a row of ids": lambda: (ids[None], {"token_type_ids": types[None]}),
        "narrow segments": lambda: (ids.int(), {"token_type_ids": types.to(torch.int8)}),
        "a list of ids": lambda: (ids.tolist(), {"token_type_ids": types.tolist()}),
        "a list of numpy's integers": lambda: (list(ids.numpy()), {"token_type_ids": list(types.numpy())}),
        "an array": lambda: (ids.numpy(), {"token_type_ids": types.numpy()}),
        "a list of lists": lambda: ([ids.tolist()], {"token_type_ids": [types.tolist()]}),
        "a list of tensors": lambda: ([ids], {"token_type_ids": [types]}),
        "the tokenizer's tensors": lambda: (encoded(pair), {}),
        "the tokenizer's lists": lambda: (lists, {}),
        "the tokenizer's arrays": lambda: (tokenizer()(*pair, return_tensors="np"), {}),
        "a dict": lambda: (dict(encoded(pair)), {}),
        "the tokenizer's ids alone": lambda: (
            {"input_ids": lists["input_ids"]},
            {"token_type_ids": lists["token_type_ids"]},
        ),
        "offsets beside them": lambda: (tokenizer()(*pair, return_offsets_mapping=True), {}),
    }


@pytest.mark.parametrize("way", ways(PAIR))
def test_a_pair_is_read_with_its_segments_however_it_is_given(way: str) -> None:
    model = double_model()
    inputs, beside = ways(PAIR)[way]()
    with left_as_found(model):
        scores = tl_vzero.value_zeroing(model, inputs, **beside)
    is_one = way in ("a pair", "ids", "narrow segments", "an array") or way.startswith(("a list of ids", "a list of n"))
    if way not in ("a dict", "offsets beside them") and "tokenizer" not in way:
        assert isinstance(scores, list) != is_one
    assert_same(one(scores).values, expected(PAIR))
    assert one(scores).metadata["token_types"] == ids_and_types(PAIR)[1].tolist()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_what_hugging_face_computes_also_of_padded_batches(engine: str) -> None:
    model = double_model()
    batch = tokenizer()(*zip(*PAIRS, strict=True), padding=True, return_tensors="pt")
    assert bool((batch["attention_mask"] == 0).any())
    left = tokenizer(padding_side="left")
    ways = (
        PAIRS,
        batch,
        left(*zip(*PAIRS, strict=True), padding=True),
        tokenizer()(*zip(*PAIRS, strict=True)),  # of several lengths, without padding
    )
    for inputs in ways:
        scored = tl_vzero.value_zeroing(model, inputs, engine=engine)
        assert [scores.metadata["engine"] for scores in scored] == ["hooks" if engine == "hooks" else "closed_form"] * 3
        for scores, pair in zip(scored, PAIRS, strict=True):
            assert_same(scores.values, expected(pair))


def test_single_sentences_and_pairs_share_a_batch() -> None:
    model = double_model()
    texts = ["the dog is near.", *PAIRS, "some hat"]
    for engine in ENGINES:
        scored = tl_vzero.value_zeroing(model, texts, engine=engine)
        for text, scores in zip(texts, scored, strict=True):
            assert_same(scores.values, tl_vzero.value_zeroing(model, text).values.double())
            assert ("token_types" in scores.metadata) == isinstance(text, tuple)
    assert_same(scored[2].values, expected(PAIRS[1]))


def test_two_sentences_of_the_same_ids_and_other_segments_are_two_sentences() -> None:
    model = double_model()
    ids, types = ids_and_types(PAIR)
    both, segments = torch.stack([ids, ids]), torch.stack([types, torch.zeros_like(types)])
    for engine in ENGINES:
        paired, single = tl_vzero.value_zeroing(model, both, token_type_ids=segments, engine=engine)
        assert_same(paired.values, expected(PAIR))
        assert_same(single.values, reference_maps(hf_double(), ids, torch.zeros_like(types)))
    compared = tl_vzero.compare(model, both, token_type_ids=segments)
    for name in set(compared[0]) - {"random"}:
        assert (compared[0][name].values - compared[1][name].values).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["BERT", "RoBERTa", "XLM-RoBERTa", "CamemBERT", "ELECTRA"])
def test_architectures_with_segments(name: str) -> None:
    row = ARCHITECTURES[name]
    hf_model = row.tiny()
    model = tl_vzero.load_model(copy.deepcopy(hf_model), tokenizer())
    reference = reference_maps(hf_model, *ids_and_types(PAIR), blocks=row.blocks, value=row.value)
    for engine in ENGINES:
        assert_same(tl_vzero.value_zeroing(model, PAIR, engine=engine).values, reference, 1e-3)


@pytest.mark.parametrize("tiny", [ARCHITECTURES["DistilBERT"].tiny, ARCHITECTURES["MPNet"].tiny, hf_roberta])
def test_without_segments_a_pair_is_its_ids(tiny: Callable[[], Any]) -> None:
    model = tl_vzero.load_model(tiny(), tokenizer())
    ids, types = ids_and_types(PAIR)
    scores = tl_vzero.value_zeroing(model, PAIR)
    assert torch.equal(scores.values, tl_vzero.value_zeroing(model, ids).values)  # and without a warning
    assert torch.equal(scores.values, tl_vzero.value_zeroing(model, ids, token_type_ids=torch.zeros_like(types)).values)
    assert "token_types" not in scores.metadata
    with pytest.raises(InputError, match=r"inputs\[0\] run from 0 to 1: expected only 0, as this model tells no"):
        tl_vzero.value_zeroing(model, ids, token_type_ids=types)


@pytest.mark.parametrize("engine", ENGINES)
def test_hooked_encoder(engine: str) -> None:
    model = hooked_encoder(hf_double())
    batch = tokenizer()(*zip(*PAIRS, strict=True), padding=True, return_tensors="pt")
    with left_as_found(model):
        scored = tl_vzero.value_zeroing(model, batch, engine=engine)
    for scores, pair in zip(scored, PAIRS, strict=True):
        assert_same(scores.values, expected(pair), 1e-6)


def test_every_route_of_hooked_encoder() -> None:
    """What a bridge of the same weights gives, which is held against Hugging Face below."""
    hooked, (ids, types) = hooked_encoder(hf_double()), ids_and_types(PAIR)
    about_target: dict[str, Any] = {"target": TARGET, "target_ids": TARGET_IDS}
    methods = ["value_zeroing", "alti", "decompx", "hta", "gradient_x_input"]
    options = {"decompx": {"propagate": True}}
    compared, alone = (
        tl_vzero.compare(model, ids, methods, token_type_ids=types, options=options, **about_target)
        for model in (hooked, double_model())
    )
    for method in set(methods) - {"gradient_x_input"}:  # its head is random there
        assert_same(compared[method].values, alone[method].values, 1e-6)
    for effect in (tl_vzero.zero_ablation, tl_vzero.attribution_patching):
        with_segments = effect(hooked, ids, token_type_ids=types, **about_target)
        assert abs(with_segments.clean - logit_difference(hooked, ids, types)) < 1e-9
    patched = tl_vzero.value_patching(
        hooked, ids, ids, token_type_ids=types, corrupted_token_type_ids=torch.zeros_like(types), **about_target
    )
    assert abs(patched.corrupted - logit_difference(hooked, ids, torch.zeros_like(types))) < 1e-9


@torch.no_grad()
def logit_difference(model: Any, ids: Tensor, types: Tensor) -> float:
    logits = model(ids[None], token_type_ids=types[None])[0, TARGET]
    return (logits[TARGET_IDS[0]] - logits[TARGET_IDS[1]]).item()


def test_a_causal_model_and_an_encoder_decoder_read_a_pair_as_its_ids() -> None:
    model = tl_vzero.load_model(hf_gpt2(), tokenizer())
    ids, _ = ids_and_types(PAIR)
    assert torch.equal(tl_vzero.value_zeroing(model, PAIR).values, tl_vzero.value_zeroing(model, ids).values)
    with pytest.raises(InputError, match="expected only 0"):
        tl_vzero.value_zeroing(model, encoded(PAIR))


# --- every method and effect ------------------------------------------------------------------------------


@cache
def model_of_one_segment() -> Any:
    return tl_vzero.load_model(of_one_segment(hf_double()))


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "decompx": [{}, {"propagate": True}],
    "hta": [{}, {"to": "embeddings"}],
    "integrated_gradients": [{"steps": 5}, {"steps": 5, "baseline": 7}],
    "deep_lift": [{}, {"baseline": 7}],
}


@pytest.mark.parametrize("method", [name for name in METHODS if "logit" not in name])  # BERT's are no sums
def test_every_method_reads_segments(method: str) -> None:
    ids, types = ids_and_types(PAIR)
    about_target = {"target": TARGET, "target_ids": TARGET_IDS} if "target" in METHODS[method].needs else {}
    for options in OPTIONS.get(method, [{}]):
        scores = tl_vzero.score(double_model(), ids, method, token_type_ids=types, **about_target, **options)
        if "baseline" not in options:  # of which the model of one segment knows one for each segment
            alone = tl_vzero.score(model_of_one_segment(), joined(ids, types), method, **about_target, **options)
            assert_same(scores.values, alone.values.double(), 1e-6)
        assert scores.metadata["token_types"] == types.tolist()
        of_text = tl_vzero.score(double_model(), PAIR, method, **about_target, **options)
        assert torch.equal(of_text.values, scores.values)


def test_a_baseline_of_one_token_keeps_the_segments() -> None:
    """Gradients from a baseline sum to the change of the logit, which Hugging Face computes of the baseline too."""
    ids, types = ids_and_types(PAIR)
    scores = tl_vzero.score(
        double_model(),
        ids,
        "integrated_gradients",
        token_type_ids=types,
        target=TARGET,
        target_ids=TARGET_IDS[0],
        baseline=7,
        aggregate="sum",
        layers=0,
    )
    logits = [reference_logits(hf_double(), input_ids, types)[TARGET] for input_ids in (ids, torch.full_like(ids, 7))]
    change = (logits[0] - logits[1])[TARGET_IDS[0]]
    assert abs(scores.values.sum() - change) < 2e-3 * abs(change)


def test_zero_ablation_and_its_estimate_are_hugging_faces() -> None:
    ids, types = ids_and_types(PAIR)

    def metric(logits: Tensor) -> Tensor:
        return logits[TARGET, TARGET_IDS[0]] - logits[TARGET, TARGET_IDS[1]]

    clean = metric(reference_logits(hf_double(), ids, types))
    zero = torch.zeros(16, dtype=torch.float64)
    reference = torch.tensor(
        [
            [metric(reference_logits(hf_double(), ids, types, {(layer, j): zero})) - clean for j in range(len(ids))]
            for layer in range(3)
        ]
    )
    for inputs, beside in (way() for way in ways(PAIR).values()):
        if isinstance(inputs, list) and not isinstance(inputs[0], int | np.integer):
            continue
        effect = tl_vzero.zero_ablation(double_model(), inputs, target_ids=TARGET_IDS, **beside)
        assert effect.clean == pytest.approx(clean.item(), rel=1e-9)
        assert (effect.values - reference).abs().max() < 1e-9
        assert effect.metadata["token_types"] == types.tolist()
    unmarked = tl_vzero.attribution_patching(
        double_model(), ids, target_ids=TARGET_IDS, token_type_ids=torch.zeros_like(types)
    )
    with pytest.raises(InputError, match="effects of one sentence, with the same segments"):
        tl_vzero.attribution_error(unmarked, effect)
    estimate = tl_vzero.attribution_patching(double_model(), PAIR, target_ids=TARGET_IDS, per_head=True)
    alone = tl_vzero.attribution_patching(
        model_of_one_segment(), joined(ids, types), target=TARGET, target_ids=TARGET_IDS, per_head=True
    )
    assert estimate.clean == pytest.approx(clean.item(), rel=1e-9)
    assert (estimate.values - alone.values).abs().max() < 1e-9


def test_value_patching_runs_each_sentence_in_its_own_segments() -> None:
    model, (ids, types) = double_model(), ids_and_types(PAIR)
    others = torch.zeros_like(types)

    def metric(logits: Tensor) -> Tensor:
        return logits[TARGET, TARGET_IDS[0]] - logits[TARGET, TARGET_IDS[1]]

    values: list[Tensor] = []
    clean = metric(reference_logits(hf_double(), ids, types, values=values))
    before = metric(reference_logits(hf_double(), ids, others))
    reference = torch.tensor(
        [
            [
                metric(reference_logits(hf_double(), ids, others, {(layer, j): values[layer][j]})) - before
                for j in range(len(ids))
            ]
            for layer in range(3)
        ]
    )
    effect = tl_vzero.value_patching(
        model, ids, ids, target_ids=TARGET_IDS, token_type_ids=types, corrupted_token_type_ids=others
    )
    assert effect.clean == pytest.approx(clean.item(), rel=1e-9)
    assert effect.corrupted == pytest.approx(before.item(), rel=1e-9)
    assert (effect.values - reference).abs().max() < 1e-9
    with pytest.raises(InputError, match="are the same tokens"):
        tl_vzero.value_patching(model, PAIR, PAIR, target_ids=TARGET_IDS)


def test_tables_of_pairs() -> None:
    ids, types = ids_and_types(PAIR)
    model, alone, both = double_model(), model_of_one_segment(), joined(ids, types)
    heads = tl_vzero.head_importance(alone, both, layers=[1])["lost"]
    spans = tl_vzero.span_interaction(alone, both, [[1, 2], [4]])["interaction"]
    for inputs, beside in ((PAIR, {}), (ids, {"token_type_ids": types})):
        assert np.allclose(tl_vzero.head_importance(model, inputs, layers=[1], **beside)["lost"], heads, atol=1e-9)
        table = tl_vzero.span_interaction(model, inputs, [[1, 2], [4]], **beside)
        assert np.allclose(table["interaction"], spans, atol=1e-9)


def test_a_comparison_reads_segments_on_every_route_and_keeps_its_order() -> None:
    model = double_model()
    methods = ["value_zeroing", "attention", "hta", "decompx", "gradient_x_input"]
    options = {"decompx": {"propagate": True}}
    batch = tokenizer()(*zip(*PAIRS, strict=True), padding=True, return_tensors="pt")
    targets = [encoding["input_ids"][0].tolist().index(4) for encoding in map(encoded, PAIRS)]
    needs_target = {"target_ids": TARGET_IDS}
    alone = {
        (pair, method): tl_vzero.score(
            model, pair, method, **(needs_target if "target" in METHODS[method].needs else options.get(method, {}))
        )
        for pair in PAIRS
        for method in methods[1:]
    }
    for inputs in (PAIRS, batch):
        compared = tl_vzero.compare(model, inputs, methods, options=options, target_ids=TARGET_IDS)
        for pair, target, one_pair in zip(PAIRS, targets, compared, strict=True):
            assert_same(one_pair["value_zeroing"].values, expected(pair))
            for method in methods[1:]:
                assert_same(one_pair[method].values, alone[pair, method].values.double(), 1e-6)
            logits = reference_logits(hf_double(), *ids_and_types(pair))[target]
            assert one_pair.effect.clean == pytest.approx((logits[11] - logits[12]).item(), rel=1e-9)


# --- the caller's own cache -------------------------------------------------------------------------------


def test_a_cache_is_taken_for_the_segments_it_was_made_with_and_no_others() -> None:
    model, (ids, types) = double_model(), ids_and_types(PAIR)
    _, with_segments = model.run_with_cache(ids[None], token_type_ids=types[None])
    _, without = model.run_with_cache(ids[None])
    for engine in ENGINES:
        for inputs, beside in ((PAIR, {}), (ids, {"token_type_ids": types})):
            scores = tl_vzero.value_zeroing(model, inputs, cache=with_segments, engine=engine, **beside)
            assert_same(scores.values, expected(PAIR))
            with pytest.raises(InputError, match="cache holds another activation"):
                tl_vzero.value_zeroing(model, inputs, cache=without, engine=engine, **beside)
        with pytest.raises(InputError, match="cache holds another activation"):
            tl_vzero.value_zeroing(
                model, ids, token_type_ids=torch.zeros_like(types), cache=with_segments, engine=engine
            )
    for method in ("attention", "alti", "decompx"):
        options = {"propagate": True} if method == "decompx" else {}
        scores = tl_vzero.score(model, PAIR, method, cache=with_segments, **options)
        assert_same(scores.values, tl_vzero.score(model, PAIR, method, **options).values.double(), 1e-6)


def test_phrases_are_parsed_in_each_text_by_itself() -> None:
    pytest.importorskip("spacy")
    model, pair = double_model(), ("the dog is near the hat", "the marcus of some dogs")
    try:
        spans = [
            tl_vzero.value_zeroing(model, text, spans="noun_chunks").src_tokens[1:-1] for text in (pair[0], pair[1])
        ]
    except DependencyError:
        pytest.skip("no English parser")
    both = tl_vzero.value_zeroing(model, pair, spans="noun_chunks").src_tokens
    assert both == ("[CLS]", *spans[0], "[SEP]", *spans[1], "[SEP]")


# --- labels, words, files ---------------------------------------------------------------------------------


def test_words_of_a_pair_stay_on_their_side() -> None:
    scores = tl_vzero.value_zeroing(double_model(), ("the dogs", "dogs barking"))
    assert scores.src_tokens == ("[CLS]", "the", "dog", "##s", "[SEP]", "dog", "##s", "bark", "##ing", "[SEP]")
    words = scores.words()
    assert words.src_tokens == ("[CLS]", "the", "dogs", "[SEP]", "dogs", "barking", "[SEP]")
    # Also where nothing stands between the two.
    ids, types = torch.tensor([[9, 10, 10, 9]]), torch.tensor([[0, 0, 1, 1]])
    (bare,) = tl_vzero.value_zeroing(double_model(), ids, token_type_ids=types)
    assert bare.words().src_tokens == ("dogs", "##s", "dog")
    spans = tl_vzero.value_zeroing(double_model(), ("the dogs", "dogs barking"), spans="words")
    assert spans.src_tokens == words.src_tokens


@pytest.mark.filterwarnings("ignore::tl_vzero.errors.InputWarning")
def test_a_word_outside_the_vocabulary_shows_as_it_was_written_on_either_side() -> None:
    scores = tl_vzero.value_zeroing(double_model(), ("the zebra", "a Yak is"))
    assert scores.src_tokens == ("[CLS]", "the", "zebra", "[SEP]", "a", "Yak", "is", "[SEP]")


def test_segments_are_saved_with_the_scores(tmp_path: Any) -> None:
    scores = tl_vzero.value_zeroing(double_model(), PAIR)
    scores.save(tmp_path / "pair.safetensors")
    read = tl_vzero.Scores.load(tmp_path / "pair.safetensors")
    assert read.metadata["token_types"] == ids_and_types(PAIR)[1].tolist()
    assert json.dumps(scores.to_dict())


# --- ids that look like a pair ----------------------------------------------------------------------------


def test_ids_of_a_pair_without_segments_are_warned_of_once() -> None:
    model, (ids, types) = double_model(), ids_and_types(PAIR)
    calls: list[Callable[[], Any]] = [
        lambda: tl_vzero.value_zeroing(model, ids),
        lambda: tl_vzero.value_zeroing(model, torch.stack([ids, ids])),
        lambda: tl_vzero.compare(model, ids, ["value_zeroing", "attention", "hta"], target_ids=TARGET_IDS),
        lambda: tl_vzero.zero_ablation(model, ids),
        lambda: tl_vzero.value_patching(model, ids, torch.where(ids == 9, 6, ids)),
        lambda: tl_vzero.score(model, ids, "attention"),
    ]
    for call, times in zip(calls, (1, 1, 1, 1, 2, 1), strict=True):
        with pytest.warns(InputWarning, match=r"pair and is read as one segment: pass token_type_ids") as warned:
            call()
        assert len(warned) == times  # a clean and a corrupted sentence are two
    silent = [
        (ids, {"token_type_ids": torch.zeros_like(types)}),
        (torch.tensor([2, 5, 9, 3]), {}),
        (torch.tensor([2, 5, 9, 3, 3]), {}),
        (torch.tensor([2, 5, 3, 9]), {}),
        ("the dog [SEP] near", {}),
    ]
    for inputs, beside in silent:
        tl_vzero.value_zeroing(model, inputs, **beside)
    # A tokenizer that returns no segments of itself, though it could say them.
    unsaid = loaded(hf_double())
    with pytest.warns(InputWarning, match="model_input_names"):
        assert "token_types" not in tl_vzero.value_zeroing(unsaid, PAIR).metadata
    with pytest.warns(InputWarning, match="pass token_type_ids"):
        tl_vzero.value_zeroing(unsaid, ids)
    assert_same(tl_vzero.value_zeroing(unsaid, ids, token_type_ids=types).values, expected(PAIR))
    tl_vzero.value_zeroing(tl_vzero.load_model(hf_bert()), ids)  # without a tokenizer nothing is known of [SEP]


# --- what is refused --------------------------------------------------------------------------------------

IDS, TYPES = torch.tensor([2, 5, 3, 9, 3]), torch.tensor([0, 0, 0, 1, 1])


def refused(name: str, inputs: Any, kind: type[TLVZeroError], message: str, **beside: Any) -> Any:
    return pytest.param(inputs, beside, kind, message, id=name)


REFUSED = [
    refused(
        "segments_of_text", "the dog", InputError, r"token_type_ids given with text.*\(a, b\)", token_type_ids=TYPES
    ),
    refused("segments_of_a_pair", PAIR, InputError, "token_type_ids given with text", token_type_ids=TYPES),
    refused("segments_twice", {"input_ids": IDS, "token_type_ids": TYPES}, InputError, "both", token_type_ids=TYPES),
    refused("mask_twice", encoded(PAIR), InputError, "attention_mask given, and the Bat", attention_mask=TYPES),
    refused("segment_2", IDS, InputError, "run from 0 to 2: expected 0 to 1, the segments", token_type_ids=2 * TYPES),
    refused("segment_minus_1", IDS, InputError, "run from -1 to 0: expected 0 to 1", token_type_ids=-TYPES),
    refused("float_segments", IDS, InputTypeError, "float32: expected integers", token_type_ids=TYPES.float()),
    refused("bool_segments", IDS, InputTypeError, "bool: expected integers", token_type_ids=TYPES > 0),
    refused("segments_of_other_length", IDS, InputError, r"\[4\]: expected \[5\]", token_type_ids=TYPES[1:]),
    refused("segments_of_other_shape", IDS, InputError, r"\[1, 5\]: expected \[5\]", token_type_ids=TYPES[None]),
    refused("listed_segments", IDS, InputTypeError, "list: expected a tensor", token_type_ids=TYPES.tolist()),
    refused("text_segments", IDS, InputTypeError, "str: expected a tensor", token_type_ids="00011"),
    refused("ragged_segments", [[2, 3], [2, 5, 3]], InputError, r"\[\[3\], \[2\]\]", token_type_ids=[[0] * 3, [0] * 2]),
    refused(
        "words_as_segments", [2, 5, 3], InputTypeError, "token_type_ids is a list of str", token_type_ids=["a"] * 3
    ),
    refused("three_texts_in_a_tuple", ("a", "the", "dog"), InputError, "tuple of str, 3 of them.*as a list"),
    refused("one_text_in_a_tuple", ("the dog",), InputError, "expected a pair of two strings"),
    refused("two_pairs_in_a_tuple", (PAIR, PAIR), InputError, "several texts as a list"),
    refused("a_list_for_a_pair", [["the dog", "a hat"]], InputTypeError, r"inputs\[0\] is a list of str.*pair"),
    refused("a_pair_and_ids", [PAIR, [2, 3]], InputTypeError, "list of list, tuple: expected only strings and pairs"),
    refused("a_pair_of_a_text_and_none", ("the dog", None), InputError, "tuple of NoneType, str"),
    refused("an_empty_second_text", ("the dog", " "), InputError, r"inputs\[0\]\[1\] is an empty text"),
    refused("an_empty_first_text", [PAIR, ("", "the dog")], InputError, r"inputs\[1\]\[0\] is an empty text"),
    refused("no_ids_in_a_dict", {"ids": IDS}, InputTypeError, "dict with 'ids': expected 'input_ids'"),
    refused("an_empty_dict", {}, InputTypeError, "dict with nothing"),
    refused("embeddings", {"input_ids": IDS, "inputs_embeds": IDS}, InputError, "'inputs_embeds', which is not read"),
    refused("positions", {"input_ids": IDS, "position_ids": IDS}, InputError, "'position_ids', which is not read"),
    refused("text_in_a_dict", {"input_ids": "the dog"}, InputTypeError, "is str: expected"),
    refused("an_empty_row", [[2, 5, 3], []], InputError, r"inputs\[1\] is an empty list"),
    refused("a_row_past_the_vocabulary", [[2], [2, 60]], InputError, r"inputs\[1\] run from 2 to 60: expected 0 to 59"),
    refused("a_huge_id", [2, 2**70], InputError, "an integer that no id can be"),
    refused("a_fraction", [2, 5.5], InputTypeError, "list of float, int"),
    refused("a_truth_among_ids", [2, True], InputTypeError, "list of bool, int"),
    refused("truths", [True, False], InputTypeError, "bool"),
    refused("an_array_of_words", np.array(["the"]), InputTypeError, "array of <U3"),
    refused("an_array_of_fractions", np.array([2.0]), InputTypeError, "float64"),
    refused("rows_of_rows", [IDS[None]], InputError, r"inputs\[0\] has 2 dimensions"),
]


@pytest.mark.parametrize(("inputs", "beside", "kind", "message"), REFUSED)
def test_refused(inputs: Any, beside: dict[str, Any], kind: type[TLVZeroError], message: str) -> None:
    model = double_model()
    with type_checks_off(), left_as_found(model), pytest.raises(kind, match=message):
        tl_vzero.value_zeroing(model, inputs, **beside)


def test_segments_of_an_image_are_refused() -> None:
    with type_checks_off(), pytest.raises(InputError, match="token_type_ids given with an image"):
        tl_vzero.value_zeroing(model_of("ViT"), IMAGE, token_type_ids=TYPES)


def test_ids_of_several_lengths_give_a_list_in_order() -> None:
    rows = [[2, 5, 9, 10, 3], [2, 9, 3], [2, 5, 3, 9]]
    scored = tl_vzero.value_zeroing(double_model(), rows)
    for row, scores in zip(rows, scored, strict=True):
        assert_same(scores.values, reference_maps(hf_double(), torch.tensor(row), torch.zeros(len(row), dtype=int)))
