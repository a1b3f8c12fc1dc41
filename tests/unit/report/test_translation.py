"""The page of an encoder-decoder: what it holds is what its maps say, by plain sums, and bad input is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.models import loaded, tokenizer
from support.page import Page, page_numbers
from support.paired import ON_THIS_LINE, PAIRED, STACKS
from support.state import type_checks_off

import tl_vzero
from tl_vzero.errors import HeadlessModelError, InputError, InputTypeError, ModelError
from tl_vzero.models.facts import facts_of, remember
from tl_vzero.report import Translation, generate, make_report
from tl_vzero.report.translation import StackMaps

READ, WRITTEN = "the dogs bark", "marcus is near"
ODD = "</script><script evil>&"


@pytest.fixture(scope="module")
def bart() -> Any:
    return loaded(PAIRED["BART"].tiny())


@pytest.fixture(scope="module")
def translation(bart: Any) -> Translation:
    return make_report(bart, READ, decoder_inputs=WRITTEN)


def test_shares_are_both_maps_of_a_row_by_their_one_sum(bart: Any, translation: Translation) -> None:
    assert next(iter(translation.methods)) == "value_zeroing" and "attention" in translation.methods
    for method, maps in translation.methods.items():
        for stack in STACKS:
            read = {} if stack == "encoder" else {"decoder_inputs": WRITTEN}
            alone = tl_vzero.score(bart, READ, method, stack=stack, **read)
            assert isinstance(alone, tl_vzero.Scores)
            assert torch.equal(getattr(maps, stack).values, alone.values)
        for layer, rows in enumerate(maps.shares.tolist()):
            for row, shares in enumerate(rows):
                parts = maps.decoder.values[layer, row].tolist() + maps.cross.values[layer, row].tolist()
                assert shares == pytest.approx([part / sum(parts) for part in parts], abs=1e-6)
        joint = tl_vzero.joint_rollout(maps.encoder, maps.decoder, maps.cross)
        assert torch.equal(maps.joint.values, joint.values)


def test_a_step_has_the_token_read_next_and_the_models_own_probability(translation: Translation) -> None:
    ids = tokenizer()(READ, return_tensors="pt")["input_ids"]
    written = [3, *tokenizer()(WRITTEN)["input_ids"][:-1]]
    with torch.no_grad():
        logits = PAIRED["BART"].tiny()(input_ids=ids, decoder_input_ids=torch.tensor([written])).logits[0]
    assert [step.token for step in translation.steps[:-1]] == list(translation.decoder_tokens[1:])
    following = [*written[1:], int(logits[-1].argmax())]
    for step, row, token_id in zip(translation.steps, logits, following, strict=True):
        assert step.probability == pytest.approx(row.softmax(-1)[token_id].item(), abs=1e-5)
        assert step.likeliest[0][1] == pytest.approx(row.softmax(-1).max().item(), abs=1e-5)


@pytest.mark.parametrize("name", [name for name in ("T5", "BART", "Marian") if name in ON_THIS_LINE])
def test_what_is_generated_is_the_likeliest_token_at_every_step(name: str) -> None:
    hf_model = PAIRED[name].tiny()
    ids, written = tokenizer()(READ, return_tensors="pt")["input_ids"], [3]
    ends = hf_model.generation_config.eos_token_id
    forbidden = [words[0] for words in hf_model.generation_config.bad_words_ids or []]
    with torch.no_grad():
        while len(written) < 6:
            logits = hf_model(input_ids=ids, decoder_input_ids=torch.tensor([written])).logits[0, -1]
            logits[forbidden] = -torch.inf
            if (likeliest := int(logits.argmax())) == ends:
                break
            written.append(likeliest)
    model = loaded(hf_model)
    assert generate(model, READ, max_tokens=5).tolist() == written


def test_the_table_and_the_json_have_every_number(translation: Translation) -> None:
    table, numbers = translation.to_frame(), translation.to_dict()
    steps, both = len(translation.steps), len(translation.decoder_tokens) + len(translation.encoder_tokens)
    assert len(table) == len(translation.methods) * 3 * steps * both
    of_row = table.query("method == 'value_zeroing' and layer == 2 and step == 1")
    assert of_row["share"].tolist() == pytest.approx(numbers["methods"]["value_zeroing"]["shares"][2][1])
    assert of_row["joint_rollout"].sum() == pytest.approx(1, abs=1e-6)
    assert of_row["src_token"].tolist() == [*translation.decoder_tokens, *translation.encoder_tokens]
    assert set(of_row["writes"]) == {translation.steps[1].token}


def renamed(scores: tl_vzero.Scores) -> tl_vzero.Scores:
    """With markup for its first tokens."""
    return replace(scores, dest_tokens=(ODD, *scores.dest_tokens[1:]), src_tokens=(ODD, *scores.src_tokens[1:]))


def test_the_page_holds_three_maps_the_joint_rollout_and_no_markup_of_a_token(translation: Translation) -> None:
    odd = {
        name: StackMaps(**{stack: renamed(getattr(maps, stack)) for stack in STACKS})
        for name, maps in translation.methods.items()
    }
    odd = {
        name: replace(
            maps,
            decoder=replace(
                maps.decoder,
                metadata={**maps.decoder.metadata, "encoder_tokens": [ODD, *translation.encoder_tokens[1:]]},
            ),
        )
        for name, maps in odd.items()
    }
    page = Page(replace(translation, methods=odd, model=ODD, text=ODD).to_html())
    data, numbers = page.data(), page_numbers(page)
    read, written, methods = len(data["read"]["names"]), len(data["written"]["names"]), len(data["methods"])
    assert len(numbers) == methods * 3 * (read * read + 2 * written * (read + written))
    for figure, titles in {
        "encoder": ("source (column)", "destination (row)"),
        "decoder": ("source (column)", "destination (row)"),
        "cross": ("encoder: source (column)", "decoder: destination (row)"),
        "joint": ("decoder, then encoder: source (column)", "decoder: destination (row)"),
    }.items():
        layout = data["figures"][figure]["layout"]
        assert tuple(layout[axis]["title"]["text"] for axis in ("xaxis", "yaxis")) == titles
    assert ODD in data["read"]["names"] and ODD in page.text
    assert not any(tag == "script" and "evil" in attributes for tag, attributes in page.tags)
    assert "What it does not say" in page.text and "no weighted average" in page.text


def test_methods_that_are_undefined_for_a_stack_say_why(translation: Translation) -> None:
    assert "attention_rollout" in translation.left_out
    assert not set(translation.left_out) & set(translation.methods)


def test_a_model_without_a_head_for_words_has_maps_and_says_why_nothing_is_predicted() -> None:
    headless = loaded(PAIRED["BART"].tiny())
    remember(headless, replace(facts_of(headless), head="absent"))
    page = make_report(headless, READ, decoder_inputs=WRITTEN)
    assert page.no_prediction and page.steps[0].probability is None and page.steps[-1].token is None
    assert page.no_prediction in Page(page.to_html()).text
    with pytest.raises(HeadlessModelError):
        generate(headless, READ)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda model: make_report(model, READ), InputError, "no decoder_inputs given"),
        (lambda model: make_report(model, [READ], decoder_inputs=[WRITTEN]), InputTypeError, "text is list"),
        (lambda model: make_report(model, READ, decoder_inputs=WRITTEN, target=1), InputError, "target given"),
        (lambda model: make_report(model, READ, decoder_inputs=WRITTEN, heads=True), InputError, "heads given"),
        (lambda model: make_report(model, READ, decoder_inputs=WRITTEN, methods=["x"]), InputError, "unknown method"),
        (
            lambda model: make_report(model, READ, decoder_inputs=WRITTEN, methods=["attention_rollout"]),
            ModelError,
            "two sequences",
        ),
        (
            lambda model: make_report(model, READ, decoder_inputs=WRITTEN, baseline=torch.zeros(1)),
            InputTypeError,
            "of one stack",
        ),
        (lambda model: generate(model, READ, max_tokens=0), InputError, "max_tokens is 0"),
    ],
)
def test_bad_input(bart: Any, call: Callable[[Any], object], error: type[Exception], message: str) -> None:
    with type_checks_off(), pytest.raises(error, match=message):
        call(bart)


def test_a_model_with_one_stack_takes_no_decoder_inputs() -> None:
    model = tl_vzero.load_model("agreement-mini")
    with pytest.raises(InputError, match="reads no second sequence"):
        make_report(model, "the hat [MASK] old.", decoder_inputs="the hat")
