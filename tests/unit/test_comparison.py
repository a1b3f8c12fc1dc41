"""Several methods from one clean run: the same numbers, one run, a table that plain loops confirm."""

import itertools
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from support.models import build, hf_bert, hf_bert_headless, hf_gpt2, hf_llama, hooked_encoder, loaded
from support.paired import IN_DOUBLE, PAIRED, READ, STACKS, WRITTEN, double_model, model_of, zeroed
from support.state import type_checks_off
from torch.overrides import TorchFunctionMode

import tl_vzero
from tl_vzero.clean import CleanRun, clean_from_cache
from tl_vzero.comparison import _spearman
from tl_vzero.errors import HeadlessModelError, InputError, InputTypeError, ModelError, TLVZeroError
from tl_vzero.inputs.text import encode
from tl_vzero.methods.layer import Layer
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.run import quiet

IDS = torch.tensor([2, 5, 17, 9, 4, 31, 3])  # 4 is the mask token
CAUSAL = torch.tensor([2, 5, 17, 9, 9, 31, 3])
OF_CLEAN_RUN = [name for name, method in tl_vzero.METHODS.items() if "clean run" in method.needs]
TEXT = "the pictures of some hat [MASK] scaring marcus."


@pytest.fixture(scope="module")
def mini() -> Any:
    return tl_vzero.load_model("agreement-mini")


@contextmanager
def sentences_run(model: Any) -> Iterator[list[int]]:
    """How many sentences each pass through the word embeddings holds, once contracts and probes have been run.

    Counted where torch is called: the package would see a hook, and check the model again.
    """
    passes: list[int] = []

    class Counting(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.nn.functional.embedding and len(args[1]) == model.cfg.d_vocab:
                passes.append(len(args[0]))
            return function(*args, **(kwargs or {}))

    tl_vzero.value_zeroing(model, CAUSAL)
    with Counting():
        yield passes


ROUTES = [("load_model", "bert"), ("load_model", "gpt2"), ("load_model", "llama"), ("HookedEncoder", "bert")]


@pytest.mark.parametrize(("route", "architecture"), ROUTES)
def test_scores_are_those_of_each_method_alone(route: str, architecture: str) -> None:
    _, model = build(route, architecture)
    compared = tl_vzero.compare(model, CAUSAL)
    assert {*compared} | {*compared.left_out} == {*OF_CLEAN_RUN} and "value_zeroing" in compared
    for name, scores in compared.items():
        alone = tl_vzero.score(model, CAUSAL, method=name)
        assert torch.allclose(scores.values, alone.values, rtol=1e-5, atol=1e-9)
        assert scores.labels() == alone.labels()


OF_ITS_EFFECT = [1, 3 * len(CAUSAL)]  # a clean run to the logits, and one copy per layer and source


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_one_clean_run_serves_all(architecture: str) -> None:
    _, model = build("load_model", architecture)
    model.tokenizer = None
    with sentences_run(model) as passes:
        compared = tl_vzero.compare(model, CAUSAL)
    effect = [] if architecture == "bert" else OF_ITS_EFFECT
    assert (compared.effect is None) == (effect == []) and compared["value_zeroing"].metadata["engine"] == "closed_form"
    assert passes == [1, *effect]


def test_methods_share_each_layer_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layers_made: list[int] = []
    make = Layer.__init__

    def counted(layer: Layer, *arguments: Any) -> None:
        layers_made.append(arguments[0])
        make(layer, *arguments)

    monkeypatch.setattr(Layer, "__init__", counted)
    tl_vzero.compare(loaded(hf_bert()), CAUSAL, [name for name, method in tl_vzero.METHODS.items() if method.layer])
    assert layers_made == [0, 1, 2]


def test_the_hook_engine_takes_the_same_clean_run() -> None:
    model = loaded(hf_gpt2())
    options = {"value_zeroing": {"engine": "hooks"}}
    with sentences_run(model) as passes:
        compared = tl_vzero.compare(model, CAUSAL, ["value_zeroing", "attention", "alti"], options=options)
    assert compared["value_zeroing"].metadata["engine"] == "hooks"
    assert passes == [1, len(CAUSAL), *OF_ITS_EFFECT]


def test_sentences_of_one_length_share_the_run(mini: Any) -> None:
    texts = ["the authors [MASK] today.", "the authors near the hat [MASK] today.", "the hats [MASK] today."]
    alone = [tl_vzero.compare(mini, text) for text in texts]
    with sentences_run(mini) as passes:
        together = tl_vzero.compare(mini, texts)
    effects = [1, 4 * 7, 1, 4 * 7, 1, 4 * 10]  # each a clean run to the logits, and one copy per layer and source
    assert isinstance(together, list) and passes == [2, 1, *effects]
    for one, of_batch, text in zip(alone, together, texts, strict=True):
        assert of_batch.tokens == one.tokens and of_batch.effect is not None
        assert torch.allclose(of_batch.effect.values, one.effect.values, atol=1e-5)
        for name in one:
            measured, expected = of_batch[name].normalized().values, one[name].normalized().values
            assert torch.allclose(measured, expected, atol=1e-5), (name, text)


def test_a_padded_batch_equals_the_sentences_alone() -> None:
    model = tl_vzero.load_model(hf_bert(1), dtype=torch.float64)
    lengths = [4, 7, 4]
    ids = torch.nn.utils.rnn.pad_sequence([CAUSAL[:n] for n in lengths], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(n) for n in lengths], batch_first=True)
    together = tl_vzero.compare(model, ids, ["value_zeroing", "hta", "decompx", "alti"], attention_mask=mask)
    for n, compared in zip(lengths, together, strict=True):
        alone = tl_vzero.compare(model, CAUSAL[:n], list(compared))
        for name, scores in compared.items():
            assert torch.allclose(scores.values, alone[name].values, rtol=1e-9, atol=1e-12)


def test_long_lists_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(hf_gpt2())
    rows = CAUSAL.repeat(5, 1) + torch.arange(10, 15).unsqueeze(1)
    whole = tl_vzero.compare(model, rows, ["attention", "value_zeroing"])
    monkeypatch.setattr("tl_vzero.comparison.TOKENS_PER_PART", 2 * len(CAUSAL))
    with sentences_run(model) as passes:
        parts = tl_vzero.compare(model, rows, ["attention", "value_zeroing"])
    assert passes == [2, *OF_ITS_EFFECT * 2, 2, *OF_ITS_EFFECT * 2, 1, *OF_ITS_EFFECT]
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one["attention"].values, other["attention"].values, atol=1e-7)


def test_blocks_of_the_shared_run_stay_as_they_were() -> None:
    model = loaded(hf_bert())
    sites, sentences = check_contracts(model), encode(model, CAUSAL).sentences
    with quiet(model):
        run = CleanRun(model, sites, sentences, last=2)
    before = {layer: block.input.clone() for layer, block in run.blocks(sentences, (0, 1, 2)).items()}
    inside = {layer: block.mlp_pre.clone() for layer, block in run.blocks(sentences, (0, 1, 2)).items()}
    for name in OF_CLEAN_RUN:
        tl_vzero.score(model, CAUSAL, method=name, cache=run)
    for layer, block in run.blocks(sentences, (0, 1, 2)).items():
        assert torch.equal(block.input, before[layer]) and torch.equal(block.mlp_pre, inside[layer])


def test_a_clean_run_hands_out_its_own_sentences_only() -> None:
    model = loaded(hf_bert())
    sites = check_contracts(model)
    sentences = encode(model, torch.stack([CAUSAL, IDS, CAUSAL])).sentences
    other = encode(model, torch.tensor([2, 8, 8])).sentences
    with quiet(model):
        run = CleanRun(model, sites, sentences, last=1)
    assert run.blocks(sentences[:2], [1])[1].input.shape[0] == 2
    one = clean_from_cache(run, model, sites, sentences[1:2], [0])[0]
    assert torch.equal(one.output[0], run.blocks(sentences, [0])[0].output[1])
    with pytest.raises(InputError, match="other sentences"):
        run.blocks(other, [0])
    with pytest.raises(InputError, match="layers 0 to 1"):
        run.blocks(sentences, [2])


def test_undefined_methods_are_left_out_with_the_reason_and_raise_when_named() -> None:
    model = loaded(hf_llama())
    compared = tl_vzero.compare(model, CAUSAL)
    assert {"globenc", "attention_norm_res_ln"} <= {*compared.left_out}
    assert "undefined for this model" in compared.left_out["globenc"]
    for name in ("globenc", "decompx"):
        with pytest.raises(ModelError, match=f"{name} is undefined"):
            tl_vzero.compare(model, CAUSAL, [name])


def test_what_costs_much_is_left_out_of_long_sentences_unless_named() -> None:
    model = loaded(hf_gpt2())
    ids = torch.arange(33) % 50 + 5
    compared = tl_vzero.compare(model, ids, layers=0)
    assert "33 tokens" in compared.left_out["attention_flow"]
    assert [*tl_vzero.compare(model, ids, ["attention_flow"], layers=0)] == ["attention_flow"]


def test_a_hook_of_the_users_leaves_out_what_reads_weights(mini: Any) -> None:
    site = check_contracts(mini).values[0]
    with mini.hooks(fwd_hooks=[(site, lambda value, hook: 2 * value)]):
        compared = tl_vzero.compare(mini, "the authors today.")
        assert "hooks of yours" in compared.left_out["alti"]
        alone = tl_vzero.value_zeroing(mini, "the authors today.")
    assert compared["value_zeroing"].metadata["engine"] == "hooks"
    assert torch.allclose(compared["value_zeroing"].values, alone.values, rtol=1e-5, atol=1e-9)


def test_order_options_layers_and_mapping(mini: Any) -> None:
    methods = ["alti", "hta", "value_zeroing"]
    options = {"hta": {"to": "embeddings"}, "value_zeroing": {"distance": "euclidean"}}
    compared = tl_vzero.compare(mini, TEXT, methods, options=options, layers=[-1, 0])
    assert [*compared] == methods and len(compared) == 3 and "attention" not in compared
    assert compared["hta"].stage == "rollout" and all(scores.layers == (3, 0) for scores in compared.values())
    assert compared["value_zeroing"].metadata["options"]["distance"] == "euclidean"
    assert compared.effect is not None and compared.effect.layers == (3, 0)
    assert repr(compared).startswith("Comparison(alti, hta, value_zeroing: '[CLS] the")


def test_a_baseline_is_that_of_value_zeroing_and_of_the_effect(mini: Any) -> None:
    text = "the author near the hats [MASK] today."
    compared = tl_vzero.compare(mini, text, ["value_zeroing", "attention"], baseline="mean")
    assert isinstance(compared, tl_vzero.Comparison) and compared.effect is not None
    alone = tl_vzero.value_zeroing(mini, text, baseline="mean")
    assert torch.equal(compared["value_zeroing"].values, alone.values)
    assert torch.equal(compared.effect.values, tl_vzero.zero_ablation(mini, text, baseline="mean").values)
    assert compared.to_dict()["effect"]["baseline"] == compared.effect.baseline == "mean"
    with pytest.raises(InputError, match="did you mean 'mean'"):
        tl_vzero.compare(mini, text, ["attention"], baseline="men")


def test_gradient_methods_get_the_target(mini: Any) -> None:
    pytest.importorskip("captum")
    compared = tl_vzero.compare(mini, TEXT, ["gradient_x_input", "value_zeroing"], target_ids=("are", "is"))
    alone = tl_vzero.score(mini, TEXT, method="gradient_x_input", target_ids=("are", "is"))
    assert torch.allclose(compared["gradient_x_input"].values, alone.values, rtol=1e-4)
    assert compared.target == 6 and compared.effect is not None and "are" in compared.effect.metric
    table = compared.table().set_index(["method", "layer"])
    row = table.loc[("gradient_x_input", 1)]
    assert math.isfinite(row["rank_with_effect"]) and math.isfinite(row["rank_with_value_zeroing"])
    with pytest.raises(InputError, match="no target"):
        tl_vzero.compare(mini, "the authors today.", ["gradient_x_input"])


def test_effect_and_why_there_is_none(mini: Any) -> None:
    compared = tl_vzero.compare(mini, TEXT, ["attention"])
    alone = tl_vzero.zero_ablation(mini, TEXT)
    assert compared.effect is not None and torch.equal(compared.effect.values, alone.values)
    assert compared.no_effect_reason is None
    unmasked = tl_vzero.compare(mini, "the authors today.", ["attention"])
    assert unmasked.target is None and unmasked.effect is None and "0 mask tokens" in unmasked.no_effect_reason
    with_targets = tl_vzero.compare(mini, ["the authors today.", "the hat."], ["attention"], target=[1, -2])
    assert [compared.target for compared in with_targets] == [1, 3] and all(
        compared.effect is not None for compared in with_targets
    )
    headless = tl_vzero.compare(loaded(hf_bert_headless()), IDS, ["attention"])
    assert (
        headless.target == 4 and headless.effect is None and "no trained prediction head" in headless.no_effect_reason
    )


def test_effects_by_name_and_how_every_method_agrees_with_them(mini: Any) -> None:
    corrupted, pair = TEXT.replace("some hat", "some hats"), ("are", "is")
    names = ["logit_lens", "value_patching", "resid_pre_patching"]
    options: Any = {"target_ids": pair, "layers": [1, 2], "effects": names}
    compared = tl_vzero.compare(mini, TEXT, ["attention"], corrupted=corrupted, **options)
    assert [*compared.effects] == ["zero_ablation", *names] and compared.effect is compared.effects["zero_ablation"]
    patched = tl_vzero.activation_patching(mini, TEXT, corrupted, target_ids=pair, layers=[1, 2])
    assert torch.equal(compared.effects["resid_pre_patching"].values, patched.values)
    table = compared.agreements(resamples=50)
    assert table["effect"].tolist() == [name for name in compared.effects for _ in range(2)]
    for name, effect in compared.effects.items():
        ranks = tl_vzero.agreement(compared["attention"], effect, resamples=50)
        assert table[table["effect"] == name]["rho"].tolist() == pytest.approx([*ranks.rho], nan_ok=True)
    assert [*compared.to_dict()["effects"]] == [*compared.effects]
    several = tl_vzero.compare(mini, [TEXT, corrupted], ["attention"], corrupted=[corrupted, TEXT], **options)
    assert torch.allclose(several[0].effects["value_patching"].values, compared.effects["value_patching"].values)
    assert tl_vzero.compare(mini, "the authors today.", ["attention"]).agreements().empty
    for bad, mention in [
        ({"effects": ["lens"]}, "'lens'"),
        ({"effects": ["q_patching"]}, "give it as corrupted"),
        ({"effects": ["q_patching"], "corrupted": "the hat."}, "as many"),
    ]:
        with pytest.raises(InputError, match=mention):
            tl_vzero.compare(mini, TEXT, ["attention"], **bad)
    with pytest.raises(InputError, match="one for each"):
        tl_vzero.compare(mini, [TEXT, TEXT], ["attention"], corrupted=[corrupted])
    with pytest.raises(ModelError, match="no sum of what"):
        tl_vzero.compare(mini, TEXT, ["attention"], effects=["direct_logit_attribution"])


def test_a_gradient_method_that_is_named_raises_without_a_head() -> None:
    pytest.importorskip("captum")
    with pytest.raises(HeadlessModelError):
        tl_vzero.compare(loaded(hf_bert_headless()), IDS, ["gradient_x_input"])


# The table, again in plain loops.


def slow_entropy(scores: Any, layer: int) -> float:
    rows = scores.normalized().values[layer].double().tolist()
    entropies = [-sum(p * math.log2(p) for p in row if p > 0) for row in rows if sum(row) > 0]
    return sum(entropies) / len(entropies)


def slow_rank(scores: Any, other: Any, layer: int) -> float:
    correlations = []
    for dest, sources in itertools.product([layer], zip(scores.values[layer], other.values[layer], strict=True)):
        assert dest == layer
        pairs = [(a, b) for a, b in zip(*(row.tolist() for row in sources), strict=True) if a != 0 or b != 0]
        mine, others = [a for a, _ in pairs], [b for _, b in pairs]
        if len(pairs) >= 3 and len({*mine}) > 1 and len({*others}) > 1:
            correlations.append(spearmanr(mine, others).statistic)
    return sum(correlations) / len(correlations)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_the_table_is_what_plain_loops_give(architecture: str) -> None:
    _, model = build("load_model", architecture)
    text = "the hat of [MASK] near marcus."
    compared = tl_vzero.compare(model, text)
    table = compared.table(resamples=50)
    assert [*zip(table["method"], table["layer"], strict=True)] == [*itertools.product(compared, range(3))]
    special = [token in ("[CLS]", "[SEP]") for token in compared.tokens]
    for row in table.to_dict("records"):
        scores, layer = compared[row["method"]], row["layer"]
        shares = scores.normalized().values[layer].double()
        assert row["entropy"] == pytest.approx(slow_entropy(scores, layer), rel=1e-6)
        assert row["self_weight"] == pytest.approx(shares.diagonal().mean().item(), rel=1e-6)
        assert row["special_weight"] == pytest.approx(shares[:, special].sum(1).mean().item(), rel=1e-6)
        reference = compared["value_zeroing"]
        if scores.stage == "rollout":
            reference = reference.rollout()
        assert row["rank_with_value_zeroing"] == pytest.approx(slow_rank(scores, reference, layer), rel=1e-6)
        sizes = compared.effect.values[layer].abs()
        reached = slice(compared.target + 1) if architecture == "gpt2" else slice(None)
        rho = spearmanr(scores.row(compared.target)[layer, reached], sizes[reached]).statistic
        assert row["rank_with_effect"] == pytest.approx(rho, rel=1e-6)
        assert row["rank_with_effect_low"] <= row["rank_with_effect_high"]
    ones = table[table["method"] == "value_zeroing"]["rank_with_value_zeroing"]
    assert ones.tolist() == pytest.approx([1.0] * 3)


def test_what_is_undefined_is_nan_without_a_warning() -> None:
    model = loaded(hf_gpt2())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = tl_vzero.compare(model, CAUSAL[:1], ["value_zeroing", "attention"]).table()
        no_reference = tl_vzero.compare(model, CAUSAL, ["attention", "attention_rollout"]).table()
        some_layers = tl_vzero.compare(model, CAUSAL, ["value_zeroing", "attention_rollout"], layers=[1]).table()
    assert alone["entropy"].tolist() == [0.0] * 6 and alone["self_weight"].tolist() == [1.0] * 6
    assert alone["rank_with_value_zeroing"].isna().all() and alone["rank_with_effect"].isna().all()
    assert no_reference["rank_with_value_zeroing"].isna().all() and no_reference["entropy"].notna().all()
    assert some_layers["rank_with_value_zeroing"].isna().tolist() == [False, True]


def test_empty_rows_and_chosen_rows(mini: Any) -> None:
    options = {"value_zeroing": {"destinations": [6, 2], "sources": [1, 2, 6, 7]}}
    compared = tl_vzero.compare(mini, TEXT, ["value_zeroing", "attention"], options=options)
    table = compared.table(resamples=10).set_index(["method", "layer"])
    shares = compared["value_zeroing"].normalized().values[1].double()
    of_itself = (shares[0, 2] + shares[1, 1]) / 2
    assert table.loc[("value_zeroing", 1), "self_weight"] == pytest.approx(of_itself.item(), rel=1e-6)
    assert table["rank_with_value_zeroing"].notna().all()


def test_tied_and_unreached_sources_have_the_ranks_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 4, (50, 9), generator=generator).double().numpy()
    second = torch.randint(0, 4, (50, 9), generator=generator).double().numpy()
    for mine, one, other in zip(_spearman(first, second), first, second, strict=True):
        reached = (one != 0) | (other != 0)
        assert mine == pytest.approx(spearmanr(one[reached], other[reached]).statistic)


def test_signed_rows_are_no_shares_and_still_have_ranks(mini: Any) -> None:
    pytest.importorskip("captum")
    options = {"gradient_x_input": {"aggregate": "sum"}}
    compared = tl_vzero.compare(mini, TEXT, ["gradient_x_input"], options=options, progress=True)
    assert (compared["gradient_x_input"].values < 0).any()
    table = compared.table(resamples=10)
    signed = (compared["gradient_x_input"].values < 0).any(-1).flatten().tolist()
    assert table["entropy"].isna().tolist() == signed and table["rank_with_effect"].notna().all()


def test_to_dict_is_json_with_maps_and_table(mini: Any) -> None:
    compared = tl_vzero.compare(mini, TEXT, ["value_zeroing", "attention_rollout"], layers=1)
    written = json.loads(json.dumps(compared.to_dict(), allow_nan=False))
    assert written["target"] == 6 and len(written["table"]) == 2
    assert written["table"][1]["rank_with_value_zeroing"] is None
    assert torch.allclose(
        torch.tensor(written["scores"]["value_zeroing"]["values"]), compared["value_zeroing"].values, rtol=1e-6
    )
    assert written["effect"]["layers"] == [1] and written["left_out"] == {}


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"methods": []}, InputError, "empty"),
        ({"methods": "attention"}, InputTypeError, "list of names"),
        ({"methods": ["attention", "attention"]}, InputError, "attention more than once"),
        ({"methods": ["atention"]}, InputError, "did you mean 'attention'"),
        ({"options": {"hta": {"to": "layer"}}}, InputError, "method in options 'hta'"),
        ({"methods": ["hta"], "options": {"hta": {"too": "layer"}}}, InputError, "did you mean 'to'"),
        ({"options": {"value_zeroing": {"layers": [0]}}}, InputError, "compare itself"),
        ({"options": {"attention": {"per_head": True}}}, InputError, "one map per layer"),
        ({"options": {"attention": {"sed": 1}}}, InputError, "option of attention 'sed'"),
        ({"options": [("attention", {})]}, InputTypeError, "options is"),
        ({"options": {"attention": True}}, InputTypeError, "options is"),
        ({"layers": [9]}, InputError, "layers holds 9"),
        ({"target": 99}, InputError, "outside the sentence"),
        ({"target": [1, 2]}, InputError, "2 positions for 1 sentences"),
        ({"target_ids": 10**6}, InputError, "vocabulary"),
        ({"target_ids": ("is", "are", "was")}, InputTypeError, "pair"),
        ({"inputs": "the hat.", "target_ids": "is"}, InputError, "no target given"),
        ({"inputs": " "}, InputError, "empty text"),
    ],
)
def test_bad_input_is_told_before_any_run(
    mini: Any, arguments: dict[str, Any], kind: type[TLVZeroError], said: str
) -> None:
    wrong = {"inputs": TEXT, **arguments}
    with type_checks_off(), sentences_run(mini) as passes, pytest.raises(kind, match=said):
        tl_vzero.compare(mini, **wrong)
    assert passes == []


def test_every_map_names_its_rollout_rule(mini: Any) -> None:
    compared = tl_vzero.compare(mini, "the authors [MASK] today.", [*OF_CLEAN_RUN, "hta"])
    added = {name for name, scores in compared.items() if scores.metadata["rollout"] == "identity added"}
    assert added == {"attention", "attention_rollout", "attention_flow", "attention_norm", "contribution_weights"}
    assert all(compared[name].metadata["rollout"] == "no identity" for name in {*compared} - added)


def test_a_hooked_encoder_of_the_users_own() -> None:
    model = hooked_encoder(hf_bert())
    compared = tl_vzero.compare(model, "the hat of [MASK] near marcus.", target_ids=("is", "are"))
    assert {*compared.left_out} == {"contribution_weights"} and compared.effect is not None


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", IN_DOUBLE)
def test_an_encoder_decoder_by_plain_hooks(name: str, stack: str) -> None:
    """Maps, the effect on the decoder's prediction, and how they agree, of the stack that was named."""
    row, options = PAIRED[name], {"target": 2, "target_ids": (11, 30)}
    compared = tl_vzero.compare(
        double_model(name), torch.tensor(READ), stack=stack, decoder_inputs=torch.tensor(WRITTEN), **options
    )
    maps, effect = row.reference(stack), zeroed(name, stack, lambda source: (0, source))
    torch.testing.assert_close(compared["value_zeroing"].values, maps, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(compared.effect.values, effect, rtol=1e-6, atol=1e-6)
    assert set(compared) == set(OF_CLEAN_RUN) - set(compared.left_out) >= {"value_zeroing", "random", "attention"}
    assert ("attention_rollout" in compared.left_out) == (stack == "cross")
    rows = compared.table(resamples=1).query("method == 'value_zeroing'")
    if stack == "encoder":  # the target is no row of its map
        assert rows["rank_with_effect"].isna().all()
        with pytest.raises(InputError, match="the rows of the scores are the encoder's"):
            compared.agreements()
    else:
        reached = slice(None) if stack == "cross" else slice(3)
        expected = [spearmanr(m[2, reached], e[reached].abs()).statistic for m, e in zip(maps, effect, strict=True)]
        assert list(rows["rank_with_effect"]) == pytest.approx(expected)
    shares = maps / maps.sum(-1, keepdim=True)
    own = float("nan") if stack == "cross" else shares[0].diagonal().mean().item()
    assert rows["self_weight"].iloc[0] == pytest.approx(own, abs=1e-5, nan_ok=True)
    json.dumps(compared.to_dict(), allow_nan=False)


def test_gradients_to_the_encoder_have_the_targets_row_and_its_agreement() -> None:
    options: dict[str, Any] = {"stack": "encoder", "decoder_inputs": torch.tensor(WRITTEN), "layers": 1}
    methods = ["value_zeroing", "gradient_x_input"]
    compared = tl_vzero.compare(model_of("BART"), torch.tensor(READ), methods, **options)
    rows = compared.table(resamples=1).set_index("method")["rank_with_effect"]
    size = compared.effect.values[0].abs()
    assert rows["gradient_x_input"] == pytest.approx(
        spearmanr(compared["gradient_x_input"].values[0, 0], size).statistic
    )
    assert math.isnan(rows["value_zeroing"])
    assert math.isnan(compared.table().set_index("method")["rank_with_value_zeroing"]["gradient_x_input"])


def test_an_encoder_alone_has_maps_and_no_effect_and_pairs_of_texts_are_each_as_alone() -> None:
    model, texts, out = model_of("BART"), ["the dogs bark .", "a hat of the dogs"], ["the hat", "marcus is near"]
    alone = tl_vzero.compare(model, texts[0], ["attention"], stack="encoder")
    assert alone.target is None and "no decoder_inputs" in (alone.no_effect_reason or "")
    methods, more = ["value_zeroing", "attention"], {"effects": ["attribution_patching"]}
    both = tl_vzero.compare(model, texts, methods, stack="cross", decoder_inputs=out, layers=1, **more)
    for compared, text, written in zip(both, texts, out, strict=True):
        options: dict[str, Any] = {"stack": "cross", "decoder_inputs": written, "layers": 1}
        for method in methods:
            expected = tl_vzero.score(model, text, method, **options)
            assert compared[method].labels() == expected.labels()
            assert torch.allclose(compared[method].values, expected.values, rtol=1e-4)
        assert torch.allclose(compared.effect.values, tl_vzero.zero_ablation(model, text, **options).values, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"stack": "cross"}, InputError, "no decoder_inputs given"),
        ({"stack": "encoder", "target": 1}, InputError, "no decoder_inputs given"),
        ({"stack": "encoder", "methods": ["gradient_x_input"]}, InputError, "no decoder_inputs given"),
        ({"decoder_inputs": "the hat"}, InputError, "no stack named"),
        ({"stack": "cross", "decoder_inputs": "a hat", "effects": ["logit_lens"]}, InputError, "'decoder'"),
        ({"stack": "cross", "decoder_inputs": "", "effects": ["direct_logit_attribution"]}, InputError, "one stack"),
        (
            {"stack": "cross", "decoder_inputs": "a hat", "methods": ["logit_contributions"]},
            ModelError,
            "logits are followed through",
        ),
        ({"stack": "cross", "decoder_inputs": "a hat", "methods": ["attention_flow"]}, ModelError, "two sequences"),
    ],
)
def test_what_an_encoder_decoder_is_refused(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        tl_vzero.compare(model_of("BART"), "the dogs bark .", **options)
