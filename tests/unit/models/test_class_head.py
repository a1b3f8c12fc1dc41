"""Classifiers: effects, gradients and comparisons on classes, against the caller's own Hugging Face model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.encoder_rows import DISENTANGLED, encoder
from support.models import VOCABULARY, hf_bert, hf_gpt2, randomise, tokenizer
from support.state import left_as_found
from torch import Tensor
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import tl_vzero
from tl_vzero.data.agreement_mini import agreement_examples
from tl_vzero.errors import HeadlessModelError, InputError, InputTypeError, ModelError
from tl_vzero.evaluate.finetuning import accuracy
from tl_vzero.models.facts import facts_of
from tl_vzero.report import make_report

TEXT = "the hat of some dog near marcus."
CORRUPTED = "a hat of some dog near marcus."
IDS = torch.tensor(tokenizer()(TEXT)["input_ids"])
LABELS = {0: "NEGATIVE", 1: "NEUTRAL", 2: "POSITIVE"}
EXACT = {"rtol": 1e-6, "atol": 1e-9}


def bert(kind: type = BertForSequenceClassification, **config: Any) -> Any:
    return labelled(hf_bert(kind=kind), **config)


def labelled(hf_model: Any, labels: dict[int, str] = LABELS, problem_type: str | None = None) -> Any:
    """Its class head for these labels, in float64."""
    config = hf_model.config
    config.id2label, config.label2id = labels, {label: number for number, label in labels.items()}
    config.problem_type = problem_type
    return randomise(type(hf_model)(config), 3).double()


def roberta() -> Any:
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        pad_token_id=0,
    )
    return labelled(RobertaForSequenceClassification(config))


def distilbert() -> Any:
    config = DistilBertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=40,
        dim=16,
        n_layers=3,
        n_heads=2,
        hidden_dim=32,
        pad_token_id=0,
    )
    return labelled(DistilBertForSequenceClassification(config))


def gpt2(kind: type = GPT2ForSequenceClassification) -> Any:
    return labelled(hf_gpt2(kind=kind))


def deberta() -> Any:
    return labelled(encoder("DebertaV2 ForSequenceClassification", **DISENTANGLED, num_attention_heads=2)())


# Of each: the model, the modules whose outputs end in the values, the position that the head reads.
CLASSIFIERS: dict[str, tuple[Callable[[], Any], str, int]] = {
    "bert": (bert, "bert.encoder.layer.{}.attention.self.value", 0),
    "roberta": (roberta, "roberta.encoder.layer.{}.attention.self.value", 0),
    "distilbert": (distilbert, "distilbert.transformer.layer.{}.attention.v_lin", 0),
    "deberta": (deberta, "deberta.encoder.layer.{}.attention.self.value_proj", 0),
    "gpt2": (gpt2, "transformer.h.{}.attn.c_attn", len(IDS) - 1),
}
each_classifier = pytest.mark.parametrize("name", CLASSIFIERS)


@torch.no_grad()
def with_value(hf_model: Any, module: str, source: int, put_in: Tensor | None, ids: Tensor = IDS) -> Tensor:
    """All outputs of the caller's own model with one position's value replaced, by a hook of torch's; None: zero."""

    def change(_: Any, __: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[0, source, -16:] = 0 if put_in is None else put_in
        return output

    handle = hf_model.get_submodule(module).register_forward_hook(change)
    try:
        return torch.stack(list(hf_model(ids.reshape(1, -1)).to_tuple()[: count_of(hf_model)]))
    finally:
        handle.remove()


def count_of(hf_model: Any) -> int:
    """Outputs that are logits: both ends of a span."""
    return 2 if isinstance(hf_model, BertForQuestionAnswering) else 1


@torch.no_grad()
def clean(hf_model: Any, ids: Tensor = IDS) -> Tensor:
    return torch.stack(list(hf_model(ids.reshape(1, -1)).to_tuple()[: count_of(hf_model)]))


def zeroed(hf_model: Any, modules: str, metric: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.tensor(
        [
            [metric(with_value(hf_model, modules.format(layer), src, None)) for src in range(len(IDS))]
            for layer in range(3)
        ]
    ) - metric(clean(hf_model))


@each_classifier
def test_a_class_as_in_the_callers_own_model(name: str) -> None:
    build, modules, read = CLASSIFIERS[name]
    hf_model = build()
    expected = zeroed(hf_model, modules, lambda logits: logits[0, 0, 2])
    model = tl_vzero.load_model(hf_model, tokenizer())
    with left_as_found(model):
        effect = tl_vzero.zero_ablation(model, TEXT, target_ids="POSITIVE")
    torch.testing.assert_close(effect.values, expected, **EXACT)
    assert (effect.target, effect.metric) == (read, "logit of 'POSITIVE'")
    assert effect.clean == pytest.approx(float(clean(hf_model)[0, 0, 2]), rel=1e-6)
    likely = clean(hf_model)[0, 0].softmax(-1).sort(descending=True)
    assert [label for label, _ in effect.predicted] == [LABELS[number] for number in likely.indices.tolist()]
    assert [share for _, share in effect.predicted] == pytest.approx(likely.values.tolist())
    assert effect.metadata["predicts"] == "class"


@each_classifier
@pytest.mark.parametrize("where", ["memory", "folder"])
def test_a_difference_of_classes_by_every_effect(name: str, where: str, tmp_path: Path) -> None:
    build, modules, _ = CLASSIFIERS[name]
    hf_model = build()

    def metric(logits: Tensor) -> Tensor:
        return logits[0, 0, 2] - logits[0, 0, 0]

    hf_model.save_pretrained(tmp_path)
    model = (
        tl_vzero.load_model(hf_model, tokenizer())
        if where == "memory"
        else tl_vzero.load_model(tmp_path, tokenizer(), dtype=torch.float64)
    )
    pair: Any = ("POSITIVE", 0)
    effect = tl_vzero.zero_ablation(model, TEXT, target_ids=pair)
    torch.testing.assert_close(effect.values, zeroed(hf_model, modules, metric), **EXACT)
    corrupted = torch.tensor(tokenizer()(CORRUPTED)["input_ids"])
    patched = tl_vzero.value_patching(model, TEXT, CORRUPTED, target_ids=pair)
    values: list[Tensor] = []
    handle = hf_model.get_submodule(modules.format(1)).register_forward_hook(
        lambda _, __, output: values.append(output[0, :, -16:])
    )
    clean(hf_model)
    handle.remove()
    after = [metric(with_value(hf_model, modules.format(1), src, values[0][src], corrupted)) for src in range(len(IDS))]
    torch.testing.assert_close(patched.values[1], torch.tensor(after) - metric(clean(hf_model, corrupted)), **EXACT)


@each_classifier
def test_first_orders_as_torch_has_them(name: str) -> None:
    build, modules, read = CLASSIFIERS[name]
    hf_model = build()
    expected = []
    for layer in range(3):
        written: list[Tensor] = []

        def remember(_: Any, __: Any, output: Tensor, written: list[Tensor] = written) -> None:
            output.retain_grad()
            written.append(output)

        handle = hf_model.get_submodule(modules.format(layer)).register_forward_hook(remember)
        hf_model(IDS.reshape(1, -1)).logits[0, 1].backward()
        handle.remove()
        assert written[0].grad is not None
        expected.append(-(written[0] * written[0].grad)[0, :, -16:].sum(-1).detach())
    model = tl_vzero.load_model(hf_model, tokenizer())
    effect = tl_vzero.attribution_patching(model, TEXT, target_ids="NEUTRAL")
    torch.testing.assert_close(effect.values, torch.stack(expected), **EXACT)
    scores: Any = tl_vzero.score(
        model, TEXT, method="integrated_gradients", target_ids="NEUTRAL", aggregate="sum", layers=1
    )
    assert scores.dest_positions == (read,)
    assert abs(scores.metadata["convergence_delta"][0]) < 0.01 * max(1.0, abs(scores.values.sum().item()))


def test_probabilities_sum_to_one_or_stand_for_themselves() -> None:
    for problem, shares in (("single_label_classification", "softmax"), ("multi_label_classification", "sigmoid")):
        hf_model = bert(problem_type=problem)
        logits = clean(hf_model)[0, 0]
        expected = logits.softmax(-1)[1] if shares == "softmax" else logits[1].sigmoid()
        model = tl_vzero.load_model(hf_model, tokenizer())
        effect = tl_vzero.zero_ablation(model, TEXT, target_ids=1, metric="probability", layers=0, sources=1)
        assert effect.clean == pytest.approx(float(expected))


@pytest.mark.parametrize("labels", [{0: "LABEL_0"}, LABELS])
def test_a_regression_has_a_logit_and_no_probability(labels: dict[int, str]) -> None:
    hf_model = bert(labels=labels, problem_type="regression")
    model = tl_vzero.load_model(hf_model, tokenizer())
    effect = tl_vzero.zero_ablation(model, TEXT, target_ids=0)
    expected = zeroed(hf_model, CLASSIFIERS["bert"][1], lambda logits: logits[0, 0, 0])
    torch.testing.assert_close(effect.values, expected, **EXACT)
    assert effect.predicted == ()
    with pytest.raises(InputError, match="no probabilities of classes"):
        tl_vzero.zero_ablation(model, TEXT, metric="probability")
    with pytest.raises(ModelError, match="does not choose among classes"):
        tl_vzero.optimised_values(model, [TEXT], steps=1)


@pytest.mark.parametrize("kind", [BertForTokenClassification, GPT2ForTokenClassification])
def test_each_token_has_its_class(kind: type) -> None:
    is_bert = kind is BertForTokenClassification
    hf_model = bert(kind) if is_bert else gpt2(kind)
    modules = CLASSIFIERS["bert" if is_bert else "gpt2"][1]
    expected = zeroed(hf_model, modules, lambda logits: logits[0, 0, 5, 2] - logits[0, 0, 5, 1])
    model = tl_vzero.load_model(hf_model, tokenizer())
    effect = tl_vzero.zero_ablation(model, TEXT, target="dog", target_ids=("POSITIVE", "NEUTRAL"))
    torch.testing.assert_close(effect.values, expected, **EXACT)
    lens = tl_vzero.logit_lens(model, TEXT, target=5, target_ids=2)
    torch.testing.assert_close(lens.values[-1], clean(hf_model)[0, 0, :, 2])


@pytest.mark.parametrize("end", ["start", "end"])
def test_the_ends_of_an_answer(end: str) -> None:
    hf_model = bert(BertForQuestionAnswering, labels={0: "a", 1: "b"})
    model = tl_vzero.load_model(hf_model, tokenizer())
    effect = tl_vzero.zero_ablation(model, TEXT, target=5, target_ids=end)
    expected = zeroed(hf_model, CLASSIFIERS["bert"][1], lambda logits: logits[("start", "end").index(end), 0, 5])
    torch.testing.assert_close(effect.values, expected, **EXACT)
    with pytest.raises(InputError, match="no probabilities"):
        tl_vzero.zero_ablation(model, TEXT, target=5, metric="probability")


@pytest.mark.parametrize(
    ("kind", "label"), [(BertForMultipleChoice, "choice"), (BertForNextSentencePrediction, "next")]
)
def test_a_choice_and_a_next_sentence(kind: type, label: str) -> None:
    hf_model, is_choice = hf_bert(kind=kind).double(), kind is BertForMultipleChoice
    segments = torch.tensor([0] * 5 + [1] * (len(IDS) - 5))
    with torch.no_grad():
        rows = [beside[None, None] if is_choice else beside[None] for beside in (IDS, segments)]
        expected = hf_model(rows[0], token_type_ids=rows[1]).logits[0, 0].item()
    model = tl_vzero.load_model(hf_model, tokenizer())
    effect = tl_vzero.zero_ablation(model, IDS, token_type_ids=segments, target_ids=label)
    assert (effect.clean, effect.target) == (pytest.approx(expected, rel=1e-6), 0)
    assert effect.values.abs().max() > 1e-3


def test_methods_are_compared_with_the_effect_on_a_class() -> None:
    model = tl_vzero.load_model(bert(), tokenizer())
    compared: Any = tl_vzero.compare(
        model, TEXT, ["value_zeroing", "gradient_x_input"], target_ids="POSITIVE", effects=["attribution_patching"]
    )
    effect = tl_vzero.zero_ablation(model, TEXT, target_ids=2)
    torch.testing.assert_close(compared.effect.values, effect.values)
    assert compared.target == 0
    assert compared["gradient_x_input"].dest_positions == (0,)
    report = make_report(model, TEXT, target_ids=("POSITIVE", "NEGATIVE"))
    assert [bool(of_position) for of_position in report.predictions] == [True] + [False] * (len(IDS) - 1)
    page = report.to_html()
    assert "POSITIVE" in page


@pytest.mark.parametrize(
    ("target_ids", "error", "says"),
    [
        ("positive", InputError, "did you mean 'POSITIVE'"),
        ("dog", InputError, "expected one of NEGATIVE, NEUTRAL, POSITIVE"),
        (3, InputError, "a number from 0 to 2"),
        (-1, InputError, "a number from 0 to 2"),
        (True, InputTypeError, "by its label or a number"),
        (("POSITIVE", 2), InputError, "both class 2"),
    ],
)
def test_bad_labels(target_ids: Any, error: type, says: str) -> None:
    model = tl_vzero.load_model(bert(), tokenizer())
    with left_as_found(model), pytest.raises(error, match=says):
        tl_vzero.zero_ablation(model, TEXT, target_ids=target_ids)


def test_a_label_of_two_classes_is_named_by_number() -> None:
    model = tl_vzero.load_model(bert(labels={0: "A", 1: "A"}), tokenizer())
    with pytest.raises(InputError, match="several classes"):
        tl_vzero.zero_ablation(model, TEXT, target_ids="A")
    assert tl_vzero.zero_ablation(model, TEXT, target_ids=1, layers=0, sources=0).metric == "logit of 'A'"


def test_what_a_head_for_the_sentence_cannot_do() -> None:
    model = tl_vzero.load_model(bert(), tokenizer())
    with left_as_found(model):
        with pytest.raises(InputError, match="reads position 0 alone"):
            tl_vzero.zero_ablation(model, TEXT, target=3)
        with pytest.raises(ModelError, match="reads position 0 for the whole sentence"):
            tl_vzero.logit_lens(model, TEXT)
        with pytest.raises(ModelError, match="is a classifier, and what attention adds"):
            tl_vzero.direct_logit_attribution(model, TEXT)
        with pytest.raises(HeadlessModelError, match="'POSITIVE'] and predicts no words"):
            accuracy(model, agreement_examples()[:2])


def test_padding_at_the_end_is_not_read() -> None:
    hf_model = gpt2()
    hf_model.config.pad_token_id = 0
    ids = torch.tensor([7, 8, 9, 0])
    with torch.no_grad():
        expected = hf_model(ids.reshape(1, -1)).logits[0, 1].item()
    effect = tl_vzero.zero_ablation(tl_vzero.load_model(hf_model), ids, target_ids=1)
    assert (effect.target, effect.clean) == (2, pytest.approx(expected, rel=1e-6))


def test_a_head_that_reads_all_positions_says_so() -> None:
    class Pooled(BertForSequenceClassification):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, **options: Any) -> Any:
            output = super().forward(input_ids, **options)
            output.logits = self.classifier(self.bert(input_ids)[0].mean(dim=1))
            return output

    model = tl_vzero.load_model(bert(Pooled), tokenizer())
    with pytest.raises(HeadlessModelError, match=r"its head reads positions \[0, 1, 2, 3, 4\]"):
        tl_vzero.zero_ablation(model, TEXT)


def test_the_default_of_a_tagger_is_its_surest_token() -> None:
    """Of those that it says something about, by one clean run of the caller's own model."""
    for labels in (LABELS, {0: "O", 1: "B-PER", 2: "B-LOC"}):
        hf_model = bert(BertForTokenClassification, labels=labels)
        shares, numbers = clean(hf_model)[0, 0].softmax(-1)[1:-1].max(-1)
        usable = (numbers > 0) | ("O" not in labels.values())
        assert usable.any()
        expected = 1 + int(shares.masked_fill(~usable, 0).argmax())
        model = tl_vzero.load_model(hf_model, tokenizer())
        compared: Any = tl_vzero.compare(model, TEXT, ["attention"])
        assert compared.target == compared.effect.target == expected


def test_the_default_of_an_answer_is_where_its_best_span_starts() -> None:
    hf_model = bert(BertForQuestionAnswering, labels={0: "a", 1: "b"})
    segments = torch.tensor([0] * 5 + [1] * (len(IDS) - 5))
    with torch.no_grad():
        output = hf_model(IDS[None], token_type_ids=segments[None])
    within = range(5, len(IDS) - 1)  # the last is [SEP]
    spans = [(float(output.start_logits[0, i] + output.end_logits[0, j]), i) for i in within for j in within if i <= j]
    model = tl_vzero.load_model(hf_model, tokenizer())
    effect = tl_vzero.zero_ablation(model, IDS, token_type_ids=segments, target_ids="start", layers=0, sources=0)
    assert effect.target == max(spans)[1]


@pytest.mark.parametrize("kind", [BertForSequenceClassification, BertForTokenClassification])
def test_a_head_follows_a_loaded_model_that_is_cast(kind: type, tmp_path: Path) -> None:
    bert(kind).save_pretrained(tmp_path)
    wide = tl_vzero.load_model(tmp_path, tokenizer(), dtype=torch.float64)
    expected = tl_vzero.zero_ablation(wide, TEXT, target=0, target_ids="POSITIVE").values
    model = tl_vzero.load_model(tmp_path, tokenizer())
    assert tl_vzero.zero_ablation(model, TEXT, target=0, target_ids=2, layers=0).values.dtype == torch.float32
    model.to(torch.float64)
    effect = tl_vzero.zero_ablation(model, TEXT, target=0, target_ids="POSITIVE")
    assert effect.values.dtype == torch.float64
    torch.testing.assert_close(effect.values, expected, rtol=1e-4, atol=1e-7)


def test_the_page_says_where_no_class_is_predicted() -> None:
    page = make_report(tl_vzero.load_model(bert(), tokenizer()), TEXT, methods=["attention"]).to_html()
    assert "Class predicted at" in page and "No probabilities of classes at" in page


def test_commands_take_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bert().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    from tl_vzero.cli import app

    arguments = ["compare", TEXT, "--model", str(tmp_path), "--method", "attention", "--quiet", "--good", "POSITIVE"]
    app([*arguments, "--bad", "#0"], standalone_mode=False)
    assert "on the logit of 'POSITIVE' minus logit of 'NEGATIVE' at 0 [CLS]" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_a_head_of_two_stacks_is_refused_for_what_it_is(where: str, tmp_path: Path) -> None:
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=40,
        architectures=["BartForSequenceClassification"],
    )
    hf_model: Any = randomise(BartForSequenceClassification(config), 0)
    hf_model.save_pretrained(tmp_path)
    model = tl_vzero.load_model(hf_model if where == "memory" else tmp_path, tokenizer())
    assert "reads both stacks" in str(facts_of(model).classes)


def test_a_folder_without_its_heads_weights(tmp_path: Path) -> None:
    hf_model = bert()
    hf_model.save_pretrained(tmp_path, state_dict={k: v for k, v in hf_model.state_dict().items() if "cl" not in k})
    with pytest.raises(HeadlessModelError, match="its head was never trained"):
        tl_vzero.zero_ablation(tl_vzero.load_model(tmp_path, tokenizer()), TEXT)
