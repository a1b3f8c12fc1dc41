"""Values to put in: means against a plain loop over positions, a sentence's, the optimised constant, their files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.effects import TEXT, double_model, ids_of_text, logits_with
from support.effects import values_of as plain_values
from support.models import MOST_ROUTES, logits_of
from support.paired import model_of
from support.scores import make_scores
from support.state import left_as_found, type_checks_off
from torch import Tensor

import tl_vzero
from tl_vzero.errors import FileFormatError, InputError, InputTypeError, OutputPathError
from tl_vzero.inputs.baselines import BaselineValues

TEXTS = [TEXT, "the dogs near marcus are barking.", TEXT, "a hat [MASK]."]
LAYERS = range(3)
SPECIAL = {0, 2, 3}  # [PAD], [CLS] and [SEP]


@pytest.fixture
def bert() -> Any:
    return double_model("load_model", "bert")


@pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)
def test_the_mean_is_over_every_text_position_of_every_text(route: str, architecture: str) -> None:
    model = double_model(route, architecture)
    mean = tl_vzero.mean_values(model, iter(TEXTS), batch_size=3)
    of_text: list[list[Tensor]] = [[] for _ in LAYERS]
    for ids in map(ids_of_text, TEXTS):
        for layer in LAYERS:
            values = plain_values(model, ids, layer)[0]
            of_text[layer] += [value for token, value in zip(ids.tolist(), values, strict=True) if token not in SPECIAL]
    expected = torch.stack([torch.stack(values).mean(dim=0) for values in of_text])
    torch.testing.assert_close(mean.values, expected, rtol=1e-9, atol=1e-12)
    assert (mean.metadata["texts"], mean.metadata["positions"]) == (4, len(of_text[0]))
    weights = tl_vzero.value_zeroing(model, TEXT, layers=0).metadata["weights_sha256"]
    assert (mean.metadata["weights_sha256"], mean.metadata["stack"]) == (weights, None)


def test_one_text_at_a_time_and_ids_give_the_same(bert: Any) -> None:
    whole = tl_vzero.mean_values(bert, TEXTS)
    alone = tl_vzero.mean_values(bert, map(ids_of_text, TEXTS), batch_size=1)
    torch.testing.assert_close(alone.values, whole.values)
    assert alone.metadata["texts_sha256"] == whole.metadata["texts_sha256"]
    assert tl_vzero.mean_values(bert, TEXTS[::-1]).metadata["texts_sha256"] != whole.metadata["texts_sha256"]


def test_texts_are_read_as_they_are_needed(bert: Any) -> None:
    read: list[str] = []
    read_at_runs: list[int] = []

    def texts() -> Iterator[str]:
        for _ in range(9):
            read.append(TEXT)
            yield TEXT

    with bert.hooks(fwd_hooks=[("blocks.0.attn.hook_v", lambda value, hook: read_at_runs.append(len(read)))]):
        tl_vzero.mean_values(bert, texts(), batch_size=4)
    assert [count for count in read_at_runs if count] == [4, 8, 9]


def test_values_of_a_sentence_are_those_of_its_clean_run(bert: Any) -> None:
    with left_as_found(bert):
        one = tl_vzero.values_of(bert, TEXT)
    for layer in LAYERS:
        assert torch.equal(one.values[layer], plain_values(bert, ids_of_text(TEXT), layer)[0])
    assert one.metadata["tokens"][5] == "[MASK]"


@pytest.mark.parametrize("stack", ["encoder", "decoder", "cross"])
def test_values_of_every_stack(stack: str) -> None:
    model, ids, decoder_ids = model_of("BART"), torch.tensor([5, 6, 7, 8, 1]), torch.tensor([8, 9, 10])
    options: Any = {} if stack == "encoder" else {"decoder_inputs": decoder_ids}
    one = tl_vzero.values_of(model, ids, stack, **options)
    assert one.values.shape[:2] == (3, 3 if stack == "decoder" else 5)
    assert not tl_vzero.value_zeroing(model, ids, stack=stack, baseline=one, **options).values.any()
    options = {} if stack == "encoder" else {"decoder_inputs": [decoder_ids, decoder_ids]}
    mean = tl_vzero.mean_values(model, [ids, ids], stack, **options)
    assert mean.metadata["stack"] == one.metadata["stack"] == stack
    torch.testing.assert_close(mean.values, one.values.mean(dim=1))


# The optimised constant.


def mean_divergence(model: Any, texts: list[str], constants: Tensor) -> Tensor:
    """KL(clean || changed) of the mask's prediction, one run for each text, layer and head."""
    losses = torch.zeros(constants.shape[:2], dtype=torch.float64)
    for text in texts:
        ids = ids_of_text(text)
        target = ids.tolist().index(4)
        clean = logits_of(model, ids.reshape(1, -1))[0, target].log_softmax(-1)
        for layer, head in torch.cartesian_prod(*map(torch.arange, constants.shape[:2])).tolist():

            def change(value: Tensor, layer: int = layer, head: int = head) -> None:
                value[0, :, head] = constants[layer, head]

            changed = logits_with(model, ids, change, layer)[0, target].log_softmax(-1)
            losses[layer, head] += (clean.exp() * (clean - changed)).sum() / len(texts)
    return losses


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_the_optimised_constant_hurts_no_more_than_the_mean(architecture: str) -> None:
    model = double_model("load_model", architecture)
    texts, target = [TEXT, "a hat [MASK]."], [5, 3]
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with left_as_found(model):
        constants = tl_vzero.optimised_values(model, texts, target, steps=8, seed=3)
    assert all(parameter.grad is None for parameter in model.parameters())
    best = mean_divergence(model, texts, constants.values)
    of_mean = mean_divergence(model, texts, tl_vzero.mean_values(model, texts).values)
    assert (best <= of_mean).all() and (best < 0.9 * of_mean).any()
    torch.testing.assert_close(torch.tensor(constants.metadata["loss"]["optimised"]).double(), best)
    torch.testing.assert_close(torch.tensor(constants.metadata["loss"]["mean"]).double(), of_mean)
    again = tl_vzero.optimised_values(model, texts, target, steps=8, seed=3)
    assert torch.equal(again.values, constants.values) and again.metadata == constants.metadata


def test_a_rate_that_leads_astray_gives_the_mean(bert: Any) -> None:
    constants = tl_vzero.optimised_values(bert, [TEXT], steps=1, learning_rate=1e6)
    assert torch.equal(constants.values, tl_vzero.mean_values(bert, [TEXT]).values)


# Files.


def test_saved_and_loaded(bert: Any, tmp_path: Path) -> None:
    for values in (tl_vzero.mean_values(bert, TEXTS), tl_vzero.values_of(bert, TEXT)):
        values.save(tmp_path / "values.safetensors")
        again = BaselineValues.load(tmp_path / "values.safetensors")
        assert torch.equal(again.values, values.values)
        assert (again.name, again.metadata) == (values.name, values.metadata)
        assert repr(again) == repr(values)


@pytest.mark.parametrize(
    ("labels", "mentions"),
    [
        ([], "labels"),
        ({"name": "mean", "shape": [1, 2]}, "labels"),
        ({"name": 1, "shape": [1, 2, 3], "metadata": {}}, "labels"),
        ({"name": "mean", "shape": [1, 2], "metadata": {}}, "shape"),
        ({"name": "mean", "shape": [1, 2, "3"], "metadata": {}}, "shape"),
        ({"name": "mean", "shape": [1, 2, 4], "metadata": {}}, "shape"),
    ],
)
def test_a_file_whose_labels_are_not_its_values(labels: Any, mentions: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.safetensors"
    header = {"format": "tl_vzero.baseline_values", "version": "1", "labels": json.dumps(labels)}
    save_file({"values": torch.zeros(1, 2, 3)}, path, metadata=header)
    with pytest.raises(FileFormatError, match=mentions):
        BaselineValues.load(path)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    make_scores().save(tmp_path / "scores.safetensors")
    (tmp_path / "text.safetensors").write_text("hat")
    for name in ("scores", "text", "none"):
        with pytest.raises(FileFormatError, match=r"BaselineValues\.save"):
            BaselineValues.load(tmp_path / f"{name}.safetensors")
    values = BaselineValues(torch.zeros(1, 2, 3), "zero", {})
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        values.save(tmp_path / "values.pt")
    with pytest.raises(OutputPathError, match="does not exist"):
        values.save(tmp_path / "none" / "values")
    with pytest.raises(InputError, match="metadata"):
        BaselineValues(torch.zeros(1, 2, 3), "zero", {"model": object()}).save(tmp_path / "values")


# Bad input.


@pytest.mark.parametrize(
    ("texts", "error", "mentions"),
    [
        (TEXT, InputTypeError, "values_of"),
        (("a hat", "a dog"), InputTypeError, "tuple"),
        (7, InputTypeError, "int"),
        ([], InputError, "empty"),
        ([2, 5, 3], InputTypeError, "texts hold int"),
        ([TEXT, 5.0], InputTypeError, r"texts\[1\]"),
        ([TEXT, ""], InputError, r"texts\[1\]"),
        ([torch.tensor([2, 3])], InputError, "special tokens only"),
        ([torch.arange(65) % 60], InputError, r"texts\[0\].*65"),
    ],
)
def test_texts_that_have_no_mean(bert: Any, texts: Any, error: type[Exception], mentions: str) -> None:
    with left_as_found(bert), type_checks_off(), pytest.raises(error, match=mentions):
        tl_vzero.mean_values(bert, texts)


def test_other_bad_input(bert: Any) -> None:
    with left_as_found(bert), type_checks_off():
        with pytest.raises(InputTypeError, match="several sentences"):
            tl_vzero.values_of(bert, [TEXT, TEXT])
        with pytest.raises(InputError, match="batch_size"):
            tl_vzero.mean_values(bert, TEXTS, batch_size=0)
        with pytest.raises(InputError, match="1 positions for 4"):
            tl_vzero.optimised_values(bert, TEXTS, [1])
        with pytest.raises(InputError, match="no target given"):
            tl_vzero.optimised_values(bert, ["a hat."])
        for options in ({"steps": 0}, {"learning_rate": 0}, {"learning_rate": float("nan")}):
            with pytest.raises(InputError, match=next(iter(options))):
                tl_vzero.optimised_values(bert, [TEXT], **options)
    with pytest.raises(InputError, match="decoder_inputs hold 1"):
        tl_vzero.mean_values(
            model_of("BART"), [torch.tensor([5, 1])] * 2, "decoder", decoder_inputs=[torch.tensor([8, 9])]
        )
