"""Heads for images and CTC: effects, gradients and comparisons against the caller's own model with plain hooks."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.signal_rows import IMAGE, ON_THIS_LINE, SIGNALS, SOUND
from support.state import type_checks_off
from torch import Tensor
from transformers import Wav2Vec2CTCTokenizer

import tl_vzero
from tl_vzero.errors import HeadlessModelError, InputError

LABELS = {0: "cat", 1: "dog"}
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFG"]
EXACT = {"rtol": 1e-6, "atol": 1e-9}
CLASSES = {"ViT": ("dog", "cat"), "DeiT": ("dog", "cat"), "HuBERT": ("C", "A"), "wav2vec2": ("C", "A")}
NAMES = [name for name in CLASSES if name in ON_THIS_LINE]
FRAME = 4

each_name = pytest.mark.parametrize("name", NAMES)


def wide(name: str) -> Any:
    hf_model = copy.deepcopy(SIGNALS[name].tiny()).double()
    hf_model.set_attn_implementation("eager")
    if name in ("ViT", "DeiT"):
        hf_model.config.id2label, hf_model.config.label2id = LABELS, {"cat": 0, "dog": 1}
    return hf_model


def letters(folder: Path) -> Any:
    vocabulary = "{" + ", ".join(f'"{letter}": {number}' for number, letter in enumerate(LETTERS)) + "}"
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    return Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))


def loaded(name: str, hf_model: Any, folder: Path) -> Any:
    return tl_vzero.load_model(hf_model, letters(folder) if is_sound(name) else None)


def is_sound(name: str) -> bool:
    return SIGNALS[name].signal is SOUND


def number_of(name: str, label: str) -> int:
    return LETTERS.index(label) if is_sound(name) else {"cat": 0, "dog": 1}[label]


def logits_of(name: str, hf_model: Any, signal: Tensor) -> Tensor:
    """At the frame, or of the image."""
    logits: Tensor = hf_model(signal.double().unsqueeze(0)).logits[0]
    return logits[FRAME] if is_sound(name) else logits


def zeroed(name: str, hf_model: Any, metric: Callable[[Tensor], Tensor]) -> Tensor:
    row = SIGNALS[name]
    blocks = hf_model.get_submodule(row.blocks)
    effects = torch.zeros(len(blocks), row.positions, dtype=torch.float64)
    with torch.no_grad():
        clean = metric(logits_of(name, hf_model, row.signal))
        for layer, block in enumerate(blocks):
            for source in range(row.positions):

                def zero(_: Any, __: Any, output: Tensor, source: int = source) -> Tensor:
                    output = output.clone()
                    output[:, source] = 0
                    return output

                handle = block.get_submodule(row.value).register_forward_hook(zero)
                effects[layer, source] = metric(logits_of(name, hf_model, row.signal)) - clean
                handle.remove()
    return effects


@each_name
@pytest.mark.parametrize("where", ["memory", "folder"])
def test_a_difference_of_classes_as_in_the_callers_own_model(name: str, where: str, tmp_path: Path) -> None:
    hf_model, (good, bad) = wide(name), CLASSES[name]
    expected = zeroed(name, hf_model, lambda logits: logits[number_of(name, good)] - logits[number_of(name, bad)])
    if where == "memory":
        model = loaded(name, hf_model, tmp_path)
    else:
        hf_model.save_pretrained(tmp_path)
        if is_sound(name):
            letters(tmp_path).save_pretrained(tmp_path)
        model = tl_vzero.load_model(tmp_path, dtype=torch.float64)
    at = FRAME if is_sound(name) else None
    effect = tl_vzero.zero_ablation(model, SIGNALS[name].signal, target=at, target_ids=(good, bad))
    torch.testing.assert_close(effect.values, expected, **EXACT)
    assert effect.metric == f"logit of '{good}' minus logit of '{bad}'"
    assert effect.target == (FRAME if is_sound(name) else 0)
    likely = logits_of(name, hf_model, SIGNALS[name].signal).softmax(-1)
    best = [
        (LETTERS if is_sound(name) else list(LABELS.values()))[number] for number in likely.argsort(descending=True)
    ]
    assert [label for label, _ in effect.predicted] == best[:5]


@each_name
def test_first_orders_and_methods_beside_the_effect(name: str, tmp_path: Path) -> None:
    hf_model, row, (good, _) = wide(name), SIGNALS[name], CLASSES[name]
    at = FRAME if is_sound(name) else 0
    expected = []
    for block in hf_model.get_submodule(row.blocks):
        written: list[Tensor] = []

        def remember(_: Any, __: Any, output: Tensor, written: list[Tensor] = written) -> None:
            output.retain_grad()
            written.append(output)

        handle = block.get_submodule(row.value).register_forward_hook(remember)
        logits_of(name, hf_model, row.signal)[number_of(name, good)].backward()
        handle.remove()
        assert written[0].grad is not None
        expected.append(-(written[0] * written[0].grad)[0].sum(-1).detach())
    model = loaded(name, hf_model, tmp_path)
    effects = ["zero_ablation", "attribution_patching"]
    compared: Any = tl_vzero.compare(
        model,
        row.signal,
        ["value_zeroing", "attention", "gradient_x_input"],
        target=at,
        target_ids=good,
        effects=effects,
    )
    torch.testing.assert_close(compared.effects["attribution_patching"].values, torch.stack(expected), **EXACT)
    assert (
        compared["gradient_x_input"].dest_positions == (at,) and compared["attention"].values.shape[1] == row.positions
    )
    assert compared.effect.metric == f"logit of '{good}'"
    attributed: Any = tl_vzero.score(
        model, row.signal, "integrated_gradients", target=at, target_ids=good, aggregate="sum", layers=1
    )
    assert abs(attributed.metadata["convergence_delta"][0]) < 0.01 * max(1.0, abs(attributed.values.sum().item()))


@pytest.mark.parametrize("name", [name for name in NAMES if SIGNALS[name].signal is SOUND])
def test_the_default_frame_is_the_surest_that_is_no_blank(name: str, tmp_path: Path) -> None:
    hf_model = wide(name)
    shares, numbers = hf_model(SOUND.double().unsqueeze(0)).logits[0].softmax(-1).max(-1)
    expected = int(shares.masked_fill(numbers == hf_model.config.pad_token_id, 0).argmax())
    effect = tl_vzero.zero_ablation(loaded(name, hf_model, tmp_path), SOUND, layers=0, sources=0)
    assert (effect.target, effect.metric) == (expected, f"logit of '{LETTERS[int(numbers[expected])]}'")
    by_id = tl_vzero.zero_ablation(tl_vzero.load_model(wide(name)), SOUND, target_ids=6, layers=0, sources=0)
    assert by_id.metric == "logit of '6'"


def test_values_of_another_image_are_put_in(tmp_path: Path) -> None:
    hf_model, other = wide("ViT"), IMAGE.flip(0)
    model = loaded("ViT", hf_model, tmp_path)
    effect = tl_vzero.value_patching(model, IMAGE, other, target_ids="dog")
    with torch.no_grad():
        assert effect.clean == pytest.approx(float(logits_of("ViT", hf_model, IMAGE)[1]), rel=1e-6)
        assert effect.corrupted == pytest.approx(float(logits_of("ViT", hf_model, other)[1]), rel=1e-6)
    with pytest.raises(InputError, match="the same"):
        tl_vzero.value_patching(model, IMAGE, IMAGE, target_ids="dog")


def test_what_cannot_be_asked_for(tmp_path: Path) -> None:
    model = loaded("ViT", wide("ViT"), tmp_path)
    with type_checks_off():
        for target_ids, says in (("Dog", "did you mean 'dog'"), (2, "a number from 0 to 1")):
            with pytest.raises(InputError, match=says):
                tl_vzero.zero_ablation(model, IMAGE, target_ids=target_ids)
        with pytest.raises(InputError, match="reads position 0 alone"):
            tl_vzero.zero_ablation(model, IMAGE, target=3)
        with pytest.raises(InputError, match="reads no tokens"):
            tl_vzero.score(model, IMAGE, "integrated_gradients", baseline=3)
    with pytest.raises(HeadlessModelError, match="no trained prediction head"):
        tl_vzero.zero_ablation(tl_vzero.load_model(SIGNALS["ViT without a head"].tiny()), IMAGE)
